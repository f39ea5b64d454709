"""One layer of a transformer: attention and feed-forward branches, each with its norms and its residual connection."""

import zlib

import flax.linen as nn
import jax

from lmtrain.models.attention import Attention, AttentionInputs
from lmtrain.models.layers import FeedForward, Norm, dropout
from lmtrain.models.linear import stddev
from lmtrain.models.settings import Settings


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x)); `model.norm_place` places the norms."""

    model: Settings

    @nn.compact
    def __call__(self, x_BTD, inputs: AttentionInputs, key=None, cache=None, adapter_dropout=0.0):
        m = self.model

        def drop(x, name):
            site = None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))
            return dropout(x, adapter_dropout, site, inputs.row_ids)

        constrain = inputs.hooks.constrain_activations or (lambda x: x)
        std = stddev(m.width)
        # 2N branches are added to the residual stream, so their outputs start smaller by sqrt(2N) (GPT-2, section 2.3).
        output_std = std if m.norm_place == 'post' else std / (2 * m.num_layers) ** 0.5

        def norm(name):
            return Norm(m.norm, m.norm_eps, m.has_bias('norm'), name=name)

        def branch(x, name, function):
            """The branch's summand: norm before it ('pre'), after it ('branch', OLMo 2), or both ('sandwich')."""
            # ModernBERT's first layer reads embeddings that are normalised already: its segment has no attention norm.
            no_norm = not m.first_norm and name == 'attention' and not self.is_initializing()
            no_norm = no_norm and not self.has_variable('params', 'attention_norm')
            if m.norm_place in ('pre', 'sandwich') and not no_norm:
                x = norm(f'{name}_norm')(x)
            site = None if key is None else jax.random.fold_in(key, name == 'mlp')
            y = dropout(function(x), m.dropout, site, inputs.row_ids)
            if m.norm_place in ('branch', 'sandwich'):
                y = norm(f'{name}_norm' if m.norm_place == 'branch' else f'{name}_post_norm')(y)
            return y

        def residual(x, name, function):
            y = constrain(x + branch(x, name, function))
            return norm(f'{name}_norm')(y) if m.norm_place == 'post' else y

        def attention(x):
            nonlocal cache
            y, cache = Attention(m, std, output_std, name='attention')(x, inputs, cache, drop)
            return y

        mlp = FeedForward(m.width, m.mlp_dim, m.activation, m.has_bias('mlp'), std, output_std, name='mlp')

        def feed_forward(x):
            return mlp(x, drop, inputs.hooks.column_parallel)

        if m.parallel:  # GPT-NeoX, arXiv 2204.06745
            return constrain(x_BTD + branch(x_BTD, 'attention', attention) + branch(x_BTD, 'mlp', feed_forward)), cache
        x_BTD = residual(x_BTD, 'attention', attention)
        return residual(x_BTD, 'mlp', feed_forward), cache
