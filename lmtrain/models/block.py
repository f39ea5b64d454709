"""One layer of a transformer: attention, then the feed-forward, each around its norm and beside its residual."""

import zlib

import flax.linen as nn
import jax

from lmtrain.models.attention import Attention, Places
from lmtrain.models.layers import FeedForward, Norm, dropout
from lmtrain.models.linear import stddev
from lmtrain.models.settings import Settings


class Block(nn.Module):
    """One layer: attention, then the feed-forward, each around its norm and beside its residual."""

    model: Settings

    @nn.compact
    def __call__(self, x_BTD, places: Places, key=None, cache=None, adapter_dropout=0.0):
        m = self.model

        def drop(x, name):
            site = None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))
            return dropout(x, adapter_dropout, site, places.row)

        std = stddev(m.width)
        # What is added 2N times to the residual is made smaller by sqrt(2N) (GPT-2, section 2.3).
        output_std = std / (2 * m.num_layers) ** 0.5 if m.norm_place == 'pre' else std

        def beside(x, name, function):
            norm = Norm(m.norm, m.norm_eps, m.bias, name=f'{name}_norm')
            site = None if key is None else jax.random.fold_in(key, name == 'mlp')
            y = dropout(function(norm(x) if m.norm_place == 'pre' else x), m.dropout, site, places.row)
            return x + y if m.norm_place == 'pre' else norm(x + y)

        def attention(x):
            nonlocal cache
            y, cache = Attention(m, std, output_std, name='attention')(x, places, cache, drop)
            return y

        x_BTD = beside(x_BTD, 'attention', attention)
        mlp = FeedForward(m.width, m.mlp_dim, m.activation, m.bias, std, output_std, name='mlp')
        return beside(x_BTD, 'mlp', mlp), cache
