"""LLaMA 3's 8B from scratch on a slice of 256 chips: weights shared out over all of them.

Command: lmtrain plan --config=configs/pretrain_llama_8b.py --target=v5e:16x16
         lmtrain train --config=configs/pretrain_llama_8b.py --config.data.root=DIR --workdir=runs/llama_8b
         DIR holds fineweb/*.parquet (https://huggingface.co/datasets/HuggingFaceFW/fineweb) and llama/tokenizer.json
Cost:    20 tokens per parameter (Chinchilla, arXiv 2203.15556); what that costs, the plan says. It has not been run
Score:   not measured
Source:  arXiv 2407.21783 (shapes, learning rate)
"""

from configs import pretrain_llama


def get_config():
    config = pretrain_llama.get_config('8B')
    config.optimizer.learning_rate = 3e-4
    config.budget.tokens = 160e9
    return config
