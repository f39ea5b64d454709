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

        def drop_input(x, name):
            site = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return dropout(x, adapter_dropout, site, inputs.row_ids)

        drop = None if key is None else drop_input
        constrain = inputs.hooks.constrain_activations or (lambda x: x)
        std = stddev(m.width)
        # 2N branches are added to the residual stream, so their outputs start smaller by sqrt(2N) (GPT-2, section 2.3).
        output_std = std if m.norm_place == 'post' else std / (2 * m.num_layers) ** 0.5

        def norm(x, name):
            return Norm(m.norm, m.norm_eps, 'norm' in m.biases, name=name)(x)

        def enter(x, name):
            """The input of a branch: the norm before it ('pre', 'sandwich')."""
            # ModernBERT's first layer reads embeddings that are normalised already: its segment has no attention norm.
            no_norm = not m.first_norm and name == 'attention' and not self.is_initializing()
            no_norm = no_norm and not self.has_variable('params', 'attention_norm')
            return norm(x, f'{name}_norm') if m.norm_place in ('pre', 'sandwich') and not no_norm else x

        def leave(y, name):
            """The summand of a branch: dropout, and the norm after it ('branch', OLMo 2, and 'sandwich')."""
            if key is not None:
                y = dropout(y, m.dropout, jax.random.fold_in(key, name == 'mlp'), inputs.row_ids)
            if m.norm_place in ('branch', 'sandwich'):
                y = norm(y, f'{name}_norm' if m.norm_place == 'branch' else f'{name}_post_norm')
            return y

        def settle(x, name):
            """The residual stream after a branch: the norm of the sum ('post')."""
            x = constrain(x)
            return norm(x, f'{name}_norm') if m.norm_place == 'post' else x

        attention = Attention(m, std, output_std, name='attention')
        mlp = FeedForward(m.width, m.mlp_dim, m.activation, 'mlp' in m.biases, std, output_std, name='mlp')
        y_BTD, cache = attention(enter(x_BTD, 'attention'), inputs, cache, drop)
        sum_BTD = x_BTD + leave(y_BTD, 'attention')
        if not m.parallel:  # else both branches read the input of the layer (GPT-NeoX, arXiv 2204.06745)
            x_BTD = sum_BTD = settle(sum_BTD, 'attention')
        y_BTD = mlp(enter(x_BTD, 'mlp'), drop, inputs.hooks.column_parallel)
        return settle(sum_BTD + leave(y_BTD, 'mlp'), 'mlp'), cache
