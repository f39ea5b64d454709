"""Pretrains a transformer of 2M parameters on the text that is part of Python, for 3.75 minutes.

Command: bash launch/run.sh train --config=configs/quickstart.py --workdir=runs/quickstart
Cost:    under 4 minutes of training; nothing to download, the text is Python's own reference, docstrings and source
Score:   bits per byte of modules it has not seen: experiments/quickstart has it, beside a bigram's and `xz -9e`'s
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.batch_size = 8  # many small steps: so short a run is short of updates, not of tokens
    config.model.num_layers = 3
    config.model.width = 192
    config.model.num_heads = 3
    # SwiGLU, as in Qwen 3, as which the model is exported: three matrices that weigh as much as the usual two of 4 D.
    config.model.mlp_dim = config.model.get_oneway_ref('width') * 8 // 3
    config.model.qk_norm = True
    config.budget.hours = 3.75 / 60
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 6e-3
    config.schedule.name = 'wsd'
    config.schedule.decay = 0.4
    config.schedule.final = 0.0
    config.evaluate.every_steps = 250
    config.evaluate.max_batches = 0
    return config
