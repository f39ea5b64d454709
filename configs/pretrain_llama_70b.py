"""LLaMA 3's 70B from scratch on a slice of 1,024 chips: weights shared out over all of them.

Command: lmtrain plan --config=configs/pretrain_llama_70b.py --target=v5p:8x8x16
         lmtrain train --config=configs/pretrain_llama_70b.py --config.data.root=DIR --workdir=runs/llama_70b
         DIR holds fineweb/*.parquet (https://huggingface.co/datasets/HuggingFaceFW/fineweb) and llama/tokenizer.json
Cost:    20 tokens per parameter (Chinchilla, arXiv 2203.15556); what that costs, the plan says. It has not been run
Score:   not measured
Source:  arXiv 2407.21783 (shapes, learning rate)
"""

from configs import pretrain_llama


def get_config():
    config = pretrain_llama.get_config('70B')
    config.data.batch_size = 4096  # eight million tokens
    config.optimizer.learning_rate = 1.5e-4
    config.budget.tokens = 1.4e12
    return config
