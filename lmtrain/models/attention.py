"""Attention: the module and its cache."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lmtrain.models.attention_kernels import attend, attend_chunked
from lmtrain.models.hooks import NO_SHARDING, ShardingHooks
from lmtrain.models.layers import Norm
from lmtrain.models.linear import Linear, shared_input_matmul
from lmtrain.models.rotary import rotate


class AttentionInputs(NamedTuple):
    """Where the tokens of a forward pass stand; every layer reads the same one.

    Attributes:
      rotary: (cos, sin) of the positions, or None.
      local_rotary: the same for the layers that see a window, if their angles differ; else None.
      positions: int32 [B, T], of the tokens in their documents, without what is ahead of them.
      window: keys a query sees, itself included, 0 for all; int32 [] if one program serves layers that differ.
      query_segments, key_segments: int32 [B, T] and [B, S]; a query sees keys of its segment. None: one segment.
      query_index: int32 [B, T], the key index at which a query stands; None: its own index in the row.
      slots: int32 [B, T], the cache slots that the tokens fill (out of range: none); None without a cache.
      row: int32 [B], global rows of the batch (dropout).
      share: what brings the keys of other positions, multiplies by kernels that lie in pieces, and offers a fused one.
    """

    rotary: Any
    local_rotary: Any
    positions: Any
    window: Any
    query_segments: Any
    key_segments: Any
    query_index: Any
    slots: Any
    row: Any
    share: ShardingHooks = NO_SHARDING


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; `model` holds the settings (see Transformer)."""

    model: Any
    stddev: float
    output_stddev: float

    @nn.compact
    def __call__(self, x_BTD, places: AttentionInputs, cache=None, drop=None):
        """([B, T, D], cache). `cache` is (key [N,B,S,G,K], value, layer index): the whole stack, written in place.

        Read if they are beside the projections: prefix_key and prefix_value [P, G, K] (prefix tuning, arXiv
        2101.00190). They precede every document and count towards its window.
        """
        m = self.model

        def norm(name):
            kind = 'rmsnorm1p' if m.norm == 'rmsnorm1p' else 'rmsnorm'
            return Norm(kind, m.norm_eps, False, name=f'{name}_norm')

        made = shared_input_matmul(self, ('query', 'key', 'value'), x_BTD, places.share.columns)

        def project(name, heads):
            y = Linear(heads * m.head_dim, m.has_bias(name), self.stddev, name=name)(x_BTD, drop, made.get(name))
            if m.qk_norm and m.qk_norm_over == 'projection' and name != 'value':  # OLMo 2, arXiv 2501.00656
                y = norm(name)(y)
            return y.reshape(*x_BTD.shape[:2], heads, m.head_dim)

        query_BTHK = project('query', m.num_heads)
        key_BSGK = project('key', m.num_kv_heads)
        value_BSGK = project('value', m.num_kv_heads)
        if m.qk_norm and m.qk_norm_over == 'head':  # arXiv 2302.05442
            query_BTHK, key_BSGK = norm('query')(query_BTHK), norm('key')(key_BSGK)
        if places.rotary is not None:
            query_BTHK, key_BSGK = rotate(query_BTHK, *places.rotary), rotate(key_BSGK, *places.rotary)

        if cache is not None:
            key_NBSGK, value_NBSGK, layer = cache
            rows_B1 = jnp.arange(x_BTD.shape[0])[:, None]
            key_NBSGK = key_NBSGK.at[layer, rows_B1, places.slots].set(key_BSGK.astype(key_NBSGK.dtype), mode='drop')
            value_NBSGK = value_NBSGK.at[layer, rows_B1, places.slots].set(
                value_BSGK.astype(value_NBSGK.dtype), mode='drop'
            )
            key_BSGK, value_BSGK = key_NBSGK[layer].astype(x_BTD.dtype), value_NBSGK[layer].astype(x_BTD.dtype)
            cache = key_NBSGK, value_NBSGK, layer

        everywhere = places.share.everywhere
        if everywhere:
            key_BSGK, value_BSGK = everywhere(key_BSGK), everywhere(value_BSGK)
        prefix = self.get_variable('params', 'prefix_key')
        if prefix is not None:
            rows = x_BTD.shape[0], *prefix.shape
            values = self.get_variable('params', 'prefix_value')
            key_BSGK, value_BSGK = (
                jnp.concatenate([jnp.broadcast_to(front[None].astype(x_BTD.dtype), rows), own], axis=1)
                for front, own in ((prefix, key_BSGK), (values, value_BSGK))
            )
        out_BTHK = (attend_chunked if everywhere else attend)(
            query_BTHK,
            key_BSGK,
            value_BSGK,
            places.query_segments,
            places.key_segments,
            places.query_index,
            causal=m.causal,
            window=places.window,
            softcap=m.attention_softcap,
            scale=m.attention_scale or m.head_dim**-0.5,
            backend=m.attention,
            prefix=0 if prefix is None else prefix.shape[0],
            positions=None if prefix is None else places.positions,
            share=places.share,
        )
        out_BTD = out_BTHK.reshape(*x_BTD.shape[:2], m.num_heads * m.head_dim)
        return Linear(m.width, m.has_bias('output'), self.output_stddev, name='output')(out_BTD, drop), cache
