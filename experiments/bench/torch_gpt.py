"""The other side: a plain GPT in PyTorch, as nanoGPT writes it, and its train step."""

import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        heads = [
            y.view(B, T, self.num_heads, -1).transpose(1, 2)
            for y in self.query_key_value(self.attention_norm(x)).split(D, dim=2)
        ]
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate='tanh'))


class GPT(nn.Module):
    """GPT-2, no bias, no dropout, head tied: (tokens, targets) [B, T] -> mean loss; a target of -100 is left out.

    Under autocast the residual stream has the dtype `residual`; None is float32, that of the embeddings.
    """

    def __init__(self, num_layers, num_heads, width, seq_len, vocab_size, residual=None):
        super().__init__()
        self.residual = residual
        self.embed, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(seq_len, width)
        self.layers = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(width, bias=False)

    def forward(self, tokens, targets):
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = x if self.residual is None else x.to(self.residual)
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.final_norm(x), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def load(self, params):
        """Takes lmtrain's parameters, {path: array}: kernels are [in, out] there, and layers are stacked."""

        def put(parameter, array):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))

        put(self.embed.weight, params['embed/embedding'])
        put(self.positions.weight, params['positions/embedding'])
        put(self.final_norm.weight, params['final_norm/scale'])
        for i, layer in enumerate(self.layers):
            stacked = {path.removeprefix('layers/'): params[path][i] for path in params if path.startswith('layers/')}
            kernels = [stacked[f'attention/{name}/kernel'].T for name in ('query', 'key', 'value')]
            put(layer.query_key_value.weight, np.concatenate(kernels))
            put(layer.output.weight, stacked['attention/output/kernel'].T)
            put(layer.up.weight, stacked['mlp/up/kernel'].T)
            put(layer.down.weight, stacked['mlp/down/kernel'].T)
            put(layer.attention_norm.weight, stacked['attention_norm/scale'])
            put(layer.mlp_norm.weight, stacked['mlp_norm/scale'])


class Side:
    """What the driver asks of a worker; bench.Ours answers to the same names."""

    def __init__(self, platform: str, threads: int):
        self.device = {'cpu': 'cpu', 'gpu': 'cuda'}[platform]
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision('highest' if platform == 'cpu' else 'high')

    def build(self, shape, dtype, folder, optimizer, attention='', compiled=False, residual=''):
        """A model of lmtrain's initial parameters, its optimizer and its batches, from `folder`."""
        if attention:
            torch.backends.cuda.enable_math_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
            torch.backends.cuda.enable_flash_sdp(attention == 'flash')
            torch.backends.cuda.enable_cudnn_sdp(attention == 'cudnn')
        folder = pathlib.Path(folder)
        sizes = {name: size for name, size in shape.items() if name != 'batch_size'}
        model = GPT(**sizes, residual=getattr(torch, residual) if residual else None)
        model.load(np.load(folder / 'params.npz'))
        model.to(self.device)
        matrices = [p for p in model.parameters() if p.ndim == 2]
        norms = [p for p in model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{'params': matrices, 'weight_decay': optimizer['weight_decay']}, {'params': norms, 'weight_decay': 0.0}],
            lr=optimizer['learning_rate'],
            betas=(optimizer['b1'], optimizer['b2']),
            eps=optimizer['eps'],
            fused=True,
        )
        self.clip, self.parameters = optimizer['clip'], list(model.parameters())
        self.autocast = torch.autocast(self.device, torch.bfloat16, enabled=dtype == 'bfloat16')
        self.model = torch.compile(model) if compiled else model
        columns = np.load(folder / 'batches.npz')
        targets = np.where(columns['loss_mask'] > 0, columns['targets'], -100)
        self.batches = [
            tuple(torch.from_numpy(x.astype(np.int64)).to(self.device) for x in pair)
            for pair in zip(columns['tokens'], targets)
        ]
        self.done = 0
        return {'parameters': sum(p.numel() for p in self.parameters), 'threads': torch.get_num_threads()}

    def steps(self, count):
        """Takes `count` train steps; seconds until the last has ended, and the loss of each."""
        losses, start = [], time.perf_counter()
        for _ in range(count):
            tokens, targets = self.batches[self.done % len(self.batches)]
            with self.autocast:
                loss = self.model(tokens, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            self.done += 1
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return {'seconds': time.perf_counter() - start, 'losses': [float(loss) for loss in losses]}

    def peak_bytes(self):
        return torch.cuda.max_memory_allocated() if self.device == 'cuda' else None
