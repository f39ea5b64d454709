"""One layer of a transformer: attention and feed-forward branches, each with its norms and its residual connection."""

import functools
import zlib

import flax.linen as nn
import jax

from lmtrain.models.attention import Attention, AttentionInputs
from lmtrain.models.layers import FeedForward, Norm, dropout
from lmtrain.models.linear import stddev
from lmtrain.models.settings import Settings


class Block(nn.Module):
    """One layer; `model.norm_place` places the norms of its branches, and `model.parallel` adds both to the same input.

    norm_place   each branch f, attention and then the feed-forward network
    'pre'        x + f(norm(x))               LLaMA; if parallel, x + attention(norm(x)) + mlp(norm'(x))
    'post'       norm(x + f(x))               BERT
    'branch'     x + norm(f(x))               OLMo 2
    'sandwich'   x + post_norm(f(norm(x)))    Gemma 2
    """

    model: Settings

    @nn.compact
    def __call__(self, x_BTD, inputs: AttentionInputs, key=None, cache=None, adapter_dropout=0.0):
        m, hooks = self.model, inputs.hooks

        def drop_input(x, name):
            site = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return dropout(x, adapter_dropout, site, inputs.row_ids)

        drop, std = None if key is None else drop_input, stddev(m.width)
        # 2N branches are added to the residual stream, so their outputs start smaller by sqrt(2N) (GPT-2, section 2.3).
        output_std = std if m.norm_place == 'post' else std / (2 * m.num_layers) ** 0.5
        attention = Attention(m, std, output_std, name='attention')
        mlp = FeedForward(m.width, m.mlp_dim, m.activation, 'mlp' in m.biases, std, output_std, name='mlp')
        norm = functools.partial(Norm, m.norm, m.norm_eps, 'norm' in m.biases)
        constrain = hooks.constrain_activations or (lambda x_BTD: x_BTD)

        def with_norms(name, function, x_BTD):
            """function(x) between the norms of the branch `name`; that of 'post' follows the sum."""
            # ModernBERT's first layer reads embeddings that are normalised already: its segment has no attention norm.
            has_norm = m.first_norm or self.is_initializing() or self.has_variable('params', f'{name}_norm')
            if m.norm_place in ('pre', 'sandwich') and has_norm:
                x_BTD = norm(name=f'{name}_norm')(x_BTD)
            y_BTD = function(x_BTD)
            if key is not None:
                y_BTD = dropout(y_BTD, m.dropout, jax.random.fold_in(key, name == 'mlp'), inputs.row_ids)
            if m.norm_place in ('branch', 'sandwich'):
                y_BTD = norm(name=f'{name}_norm' if m.norm_place == 'branch' else f'{name}_post_norm')(y_BTD)
            return y_BTD

        def attend(x_BTD):
            nonlocal cache
            y_BTD, cache = attention(x_BTD, inputs, cache, drop)
            return y_BTD

        def feed_forward(x_BTD):
            return mlp(x_BTD, drop, hooks.column_parallel)

        if m.parallel:  # both branches read the input of the layer (GPT-NeoX, arXiv 2204.06745)
            x_BTD = x_BTD + with_norms('attention', attend, x_BTD) + with_norms('mlp', feed_forward, x_BTD)
            return constrain(x_BTD), cache
        for name, function in (('attention', attend), ('mlp', feed_forward)):
            x_BTD = constrain(x_BTD + with_norms(name, function, x_BTD))
            if m.norm_place == 'post':
                x_BTD = norm(name=f'{name}_norm')(x_BTD)
        return x_BTD, cache
