"""GPT-2 on 10 billion tokens of the web, as nanoGPT and llm.c train it; 124M, or :355M, :774M, :1558M.

Command: lmtrain train --config=configs/pretrain_gpt2.py --config.data.root=DIR --workdir=runs/gpt2
         lmtrain train --config=configs/pretrain_gpt2.py:355M --config.data.root=DIR --dry_run
         DIR holds fineweb/*.parquet, the folder sample/10BT of https://huggingface.co/datasets/HuggingFaceFW/fineweb,
         and gpt2/tokenizer.json of https://huggingface.co/openai-community/gpt2
Cost:    8.5e18 FLOPs at 124M: 45 minutes of eight H100 in llm.c
Score:   validation loss in nats per token: not measured yet (llm.c on FineWeb: 3.28)
Source:  https://github.com/karpathy/llm.c, discussion 481; https://github.com/karpathy/nanoGPT
"""

from configs import base
from lmtrain.models.families import gpt2


def get_config(size='124M'):
    config = base.get_config()
    config.data.source = 'fineweb/*.parquet'
    config.data.tokenizer = 'gpt2/tokenizer.json'
    config.data.validation = 0.001
    config.data.test = 0.001
    config.data.seq_len = 1024
    config.data.batch_size = 512  # half a million tokens
    config.data.isolate = False
    config.model.update(gpt2.SIZES[size])
    config.model.vocab_size = 50_304  # 50,257 and what a multiple of 128 wants
    config.model.max_len = config.data.get_oneway_ref('seq_len')
    config.model.dtype = 'bfloat16'
    if size != '124M':
        config.model.unroll = 1  # deeper stacks compile as one layer, not as 24 to 48
    config.budget.tokens = 10e9
    config.optimizer.learning_rate = 6e-4
    config.optimizer.accumulate = 8
    config.schedule.warmup = 0.037  # 700 of 19,073 steps
    config.schedule.final = 0.0
    config.evaluate.every_steps = 250
    config.evaluate.max_batches = 20
    config.checkpoint.every_steps = 1000
    return config
