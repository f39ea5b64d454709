"""BERT in a day on one GPU: a masked language model whose schedule ends on a wall-clock budget.

Command: lmtrain train --config=configs/cramming_bert.py --config.data.root=DIR --workdir=runs/bert
         DIR holds fineweb/*.parquet (https://huggingface.co/datasets/HuggingFaceFW/fineweb)
Cost:    24 hours of one GPU, or whatever --config.budget.hours says
Score:   4.72 nats masked loss in two minutes on two cores at a small size (experiments/cramming); the day on a GPU was
         never run (the paper's model on an A6000 scores 80.7 on GLUE after fine-tuning)
Source:  arXiv 2212.14034 and https://github.com/JonasGeiping/cramming at 196c991; its batch ramp and its
         order of sentences by length are left out
"""

from configs import base
from lmtrain.models.families import bert


def get_config():
    config = base.get_config()
    config.data.source = 'fineweb/*.parquet'
    config.data.validation = 0.001
    config.data.test = 0.001
    config.data.vocab_size = 32_768
    config.data.seq_len = 128
    config.data.batch_size = 8192
    config.data.isolate = False
    config.data.mask_rate = 0.25
    config.model.update(bert.SIZES['crammed'])
    config.model.vocab_size = config.data.get_oneway_ref('vocab_size')
    config.model.max_len = config.data.get_oneway_ref('seq_len')
    config.model.dtype = 'bfloat16'
    config.budget.hours = 24.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-12
    config.optimizer.clip = 0.5
    config.optimizer.accumulate = 16
    config.schedule.name = 'linear'
    config.schedule.warmup = 0.75
    config.schedule.start = 0.25
    config.schedule.final = 0.0
    config.evaluate.max_batches = 20
    config.sample.prompts = ()
    return config
