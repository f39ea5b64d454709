"""LLaMA on 20 tokens per parameter of its layers, for scaling laws: 25M, or :1M, :3M, :10M, :85M, :200M, :400M, :700M.

Command: lmtrain train --config=configs/ladder.py:10M --config.data.root=DIR --workdir=runs/ladder_10M
         DIR holds fineweb/*.parquet (https://huggingface.co/datasets/HuggingFaceFW/fineweb)
Cost:    20 tokens per parameter, so about 120 N^2 FLOPs: 1.2e16 at 10M, 5.9e19 at 700M
Score:   not measured yet
Source:  20 tokens per parameter: arXiv 2203.15556; learning rate: arXiv 2001.08361, equation D.1
"""

import math

from configs import base
from lmtrain.models.families import llama


def get_config(size='25M'):
    config = base.get_config()
    parameters = 1e6 * float(size.removesuffix('M'))
    config.data.source = 'fineweb/*.parquet'
    config.data.validation = 0.001
    config.data.test = 0.001
    config.data.vocab_size = 16_384
    config.data.seq_len = 512
    config.data.batch_size = 64
    config.model.update(llama.LADDER[size])
    config.model.dtype = 'bfloat16'
    config.budget.tokens = 20 * parameters
    config.optimizer.learning_rate = 0.003239 - 0.0001395 * math.log(parameters)
    config.evaluate.max_batches = 40
    return config
