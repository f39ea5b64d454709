"""LLaMA 3's 8B from random initialisation on 256 TPU chips (FSDP): configs/pretrain_llama.py:8B.

Command: lmtrain plan --config=configs/pretrain_llama_8b.py --target=v5e:16x16
         lmtrain train --config=configs/pretrain_llama_8b.py --config.data.root=DIR --workdir=runs/llama_8b
         DIR holds fineweb/*.parquet (https://huggingface.co/datasets/HuggingFaceFW/fineweb) and llama/tokenizer.json
Cost:    20 tokens per parameter (Chinchilla, arXiv 2203.15556); `lmtrain plan` has the cost; never executed
Score:   not measured
Source:  arXiv 2407.21783 (shapes, learning rate)
"""

from configs import pretrain_llama


def get_config():
    return pretrain_llama.get_config('8B')
