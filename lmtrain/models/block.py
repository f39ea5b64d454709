"""One layer of a transformer: attention and feed-forward branches, each with its norms and its residual connection."""

import functools
import zlib

import flax.linen as nn
import jax

from lmtrain.models.attention import Attention, AttentionInputs
from lmtrain.models.layers import FeedForward, Norm, dropout
from lmtrain.models.settings import Settings


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)); `model.norm_place` places the norms."""

    model: Settings

    @nn.compact
    def __call__(self, x_BTD, inputs: AttentionInputs, key=None, cache=None, adapter_dropout=0.0):
        m = self.model

        def drop_input(x, name):
            site = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return dropout(x, adapter_dropout, site, inputs.row_ids)

        drop, std = None if key is None else drop_input, m.init_stddev
        # 2N branches are added to the residual stream, so their outputs start smaller by sqrt(2N) (GPT-2, section 2.3).
        output_std = std if m.norm_place == 'post' else std / (2 * m.num_layers) ** 0.5
        attention = Attention(m, std, output_std, name='attention')
        mlp = FeedForward(m.width, m.mlp_dim, m.activation, 'mlp' in m.biases, std, output_std, name='mlp')
        norm = functools.partial(Norm, m.norm, m.norm_eps, 'norm' in m.biases)
        constrain, sum_BTD = inputs.hooks.constrain_activations, x_BTD
        for name in ('attention', 'mlp'):
            if not m.parallel:  # else both branches read the input of the layer (GPT-NeoX, arXiv 2204.06745)
                x_BTD = sum_BTD
            y_BTD = x_BTD
            # ModernBERT's first layer reads embeddings that are normalised already: its segment has no attention norm.
            has_norm = m.first_norm or name == 'mlp' or self.is_initializing()
            if m.norm_place in ('pre', 'sandwich') and (has_norm or self.has_variable('params', 'attention_norm')):
                y_BTD = norm(name=f'{name}_norm')(y_BTD)
            if name == 'attention':
                y_BTD, cache = attention(y_BTD, inputs, cache, drop)
            else:
                y_BTD = mlp(y_BTD, drop, inputs.hooks.column_parallel)
            if key is not None:
                y_BTD = dropout(y_BTD, m.dropout, jax.random.fold_in(key, name == 'mlp'), inputs.row_ids)
            if m.norm_place in ('branch', 'sandwich'):  # OLMo 2, Gemma 2
                y_BTD = norm(name=f'{name}_norm' if m.norm_place == 'branch' else f'{name}_post_norm')(y_BTD)
            sum_BTD = sum_BTD + y_BTD
            if name == 'attention' and m.parallel:
                continue  # the sum is not read before the other branch is added
            if constrain:
                sum_BTD = constrain(sum_BTD)
            if m.norm_place == 'post':
                sum_BTD = norm(name=f'{name}_norm')(sum_BTD)
        return sum_BTD, cache
