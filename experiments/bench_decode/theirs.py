"""The side of transformers: `generate` of a model in eager PyTorch, with its dynamic cache."""

import gc
import os
import time

os.environ.setdefault('HF_HUB_OFFLINE', '1')


class Side:
    def __init__(self, platform: str):
        import torch

        from experiments.bench.bench import THREADS

        torch.set_num_threads(THREADS)
        self.device = {'cpu': 'cpu', 'gpu': 'cuda'}[platform]

    def create(self, folder: str, settings: dict) -> dict:
        """Writes a GPT-2 with random weights."""
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.GPT2Config(**settings)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        return {}

    def build(self, folder: str, dtype: str) -> dict:
        import torch
        import transformers

        self.model = None
        gc.collect()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = self.model.to(self.device).eval()
        return {'parameters': sum(x.numel() for x in self.model.parameters()), 'threads': torch.get_num_threads()}

    def generate(self, prompts: list, max_tokens: int, times: int = 1) -> dict:
        """Greedy texts of prompts of one length, and the seconds of each call."""
        import torch

        ids = torch.tensor(prompts, device=self.device)
        options = {'max_new_tokens': max_tokens, 'min_new_tokens': max_tokens, 'do_sample': False, 'pad_token_id': 0}
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            with torch.inference_mode():
                out = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            texts = out[:, ids.shape[1] :].tolist()  # waits for the device
            seconds.append(time.perf_counter() - start)
        return {'seconds': seconds, 'texts': texts}
