"""LLaMA 3's architecture from random initialisation, sharded over all devices; 1B, or :3B, :8B, :70B.

Command: lmtrain train --config=configs/pretrain_llama.py --config.data.root=DIR --workdir=runs/llama
         lmtrain train --config=configs/pretrain_llama.py:8B --dry_run
         DIR holds fineweb/*.parquet (https://huggingface.co/datasets/HuggingFaceFW/fineweb) and llama/tokenizer.json
Cost:    about 20 tokens per parameter (Chinchilla, arXiv 2203.15556): 1.8e20 FLOPs at 1B, 130 hours of an H100 at 40 %
         MFU; `lmtrain plan` has the cost of the others
Score:   not measured yet
Source:  arXiv 2407.21783 (shapes, learning rates of 8B and 70B), arXiv 2401.02385 (TinyLlama: learning rate, batch,
         schedule)
"""

from configs import base
from lmtrain.models.families import llama

# Size -> (tokens of the budget, rows of a batch, learning rate).
SCALES = {
    '1B': (25e9, 1024, 4e-4),
    '3B': (64e9, 1024, 4e-4),
    '8B': (160e9, 1024, 3e-4),
    '70B': (1.4e12, 4096, 1.5e-4),
}


def get_config(size='1B'):
    config = base.get_config()
    config.data.source = 'fineweb/*.parquet'
    config.data.tokenizer = 'llama/tokenizer.json'
    config.data.validation = 0.001
    config.data.test = 0.001
    config.data.seq_len = 2048
    config.model.update(llama.SIZES[size])
    config.model.max_len = config.data.get_oneway_ref('seq_len')
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'
    config.model.unroll = 1
    config.budget.tokens, config.data.batch_size, config.optimizer.learning_rate = SCALES[size]
    config.schedule.warmup = 0.02
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.evaluate.every_steps = 1000
    config.evaluate.max_batches = 20
    config.checkpoint.every_steps = 1000
    return config
