"""The other side: transformers' GPT-2 with PEFT's LoRA on every linear layer, and its train step."""

import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel


class Side:
    """What the driver asks of a worker."""

    def __init__(self, platform: str, threads: int):
        self.device = {'cpu': 'cpu', 'gpu': 'cuda'}[platform]
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision('highest' if platform == 'cpu' else 'high')

    def write(self, shape, directory, room):
        """A GPT-2 of random parameters in `directory`, for every side; `room` positions more than a row has."""
        torch.manual_seed(0)
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape['vocab_size'],
                n_positions=shape['seq_len'] + room,
                n_embd=shape['width'],
                n_layer=shape['num_layers'],
                n_head=shape['num_heads'],
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
        ).save_pretrained(directory)
        return {}

    def build(self, directory, folder, optimizer, rank, alpha, dtype='float32'):
        """The model of `directory` with an adapter, its optimizer, and the batches of `folder`."""
        base = GPT2LMHeadModel.from_pretrained(directory, attn_implementation='sdpa')
        targets = ['c_attn', 'c_proj', 'c_fc']
        settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, fan_in_fan_out=True)
        self.model = get_peft_model(base, settings).train().to(self.device)
        self.autocast = torch.autocast(self.device, torch.bfloat16, enabled=dtype == 'bfloat16')
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer['learning_rate'],
            betas=(optimizer['b1'], optimizer['b2']),
            eps=optimizer['eps'],
            weight_decay=optimizer['weight_decay'],
            fused=True,
        )
        self.clip, self.done = optimizer['clip'], 0
        columns = np.load(pathlib.Path(folder) / 'batches.npz')
        targets = np.where(columns['loss_mask'] > 0, columns['targets'], -100)
        self.batches = [
            tuple(torch.from_numpy(x.astype(np.int64)).to(self.device) for x in pair)
            for pair in zip(columns['tokens'], targets)
        ]
        learns = sum(p.numel() for p in self.parameters)
        return {'trainable': learns, 'threads': torch.get_num_threads()}

    def steps(self, count):
        """Takes `count` train steps; seconds until the last has ended, and the loss of each."""
        losses, start = [], time.perf_counter()
        for _ in range(count):
            tokens, targets = self.batches[self.done % len(self.batches)]
            with self.autocast:
                logits = self.model(input_ids=tokens, use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            self.done += 1
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return {'seconds': time.perf_counter() - start, 'losses': [float(loss) for loss in losses]}

    def peak_bytes(self):
        return torch.cuda.max_memory_allocated() if self.device == 'cuda' else None
