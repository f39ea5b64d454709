"""GPT-2's size on 1.7 billion tokens, with QK-norm, Muon, squared ReLU, RoPE and an untied, soft-capped head.

Command: lmtrain train --config=configs/modern.py --config.data.root=DIR --workdir=runs/modern
         DIR holds what configs/pretrain_gpt2.py reads
Cost:    1.7 billion tokens, 1.5e18 FLOPs: 8 minutes of eight H100 in the record it follows
Score:   validation loss in nats per token: not measured yet (that record: 3.28, which llm.c reaches with 10 billion)
Source:  records 3 to 9 of https://github.com/KellerJordan/modded-nanogpt; scale of Muon: arXiv 2502.16982
"""

from configs import pretrain_gpt2


def get_config(size='124M'):
    config = pretrain_gpt2.get_config(size)
    config.model.family = ''
    config.model.num_heads = config.model.get_ref('width') // 128
    config.model.positions = 'rotary'
    config.model.norm = 'rmsnorm'
    config.model.activation = 'relu2'
    config.model.bias = False
    config.model.tied = False
    config.model.qk_norm = True
    config.model.logit_softcap = 30.0
    config.budget.tokens = 1.7e9
    config.optimizer.name = 'muon'
    config.optimizer.learning_rate = 3.6e-3  # its 0.02 in the scale of Moonlight, 0.2 * sqrt(768) times smaller
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip = 0.0
    config.schedule.name = 'wsd'
    config.schedule.warmup = 0.0
    config.schedule.decay = 0.28
    return config
