"""Multi-head attention with grouped keys and values, and its key-value cache."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lmtrain.models.attention_kernels import AttentionMask, attend, attend_chunked
from lmtrain.models.hooks import NO_SHARDING, ShardingHooks
from lmtrain.models.kv_cache import Past, append, attend_past, attend_token
from lmtrain.models.layers import Norm
from lmtrain.models.linear import Linear, shared_input_matmul
from lmtrain.models.rotary import rotate


class AttentionInputs(NamedTuple):
    """What the attention of every layer reads beside its input: positions, segments, cache slots and hooks.

    Attributes:
      rotary: (cos, sin) of the positions, or None.
      local_rotary: the same for layers with a sliding window, if their angles differ; else None.
      positions: int32 [B, T], of the tokens in their documents, without virtual tokens.
      window: number of keys that a query sees, itself included, 0 for all; int32 [] if one compiled program serves
        layers with different windows.
      query_segments, key_segments: int32 [B, T] and [B, S]; a query sees keys of its segment. None: one segment.
      query_index: int32 [B, T], index of each query among the keys; None: its own index in the row.
      cached: int32 [], number of tokens of each row in the cache, which the one token of the row follows; None: the
        tokens are no continuation of a cache.
      row_ids: int32 [B], index of each row in the global batch (dropout).
      hooks: collectives if parameters or positions are sharded, and the fused kernel of the devices.
      pasts: texts before the rows (lmtrain.models.kv_cache).
      branches: int32 [B, T], or None (`AttentionMask`).
    """

    rotary: Any
    local_rotary: Any
    positions: Any
    window: Any
    query_segments: Any
    key_segments: Any
    query_index: Any
    cached: Any
    row_ids: Any
    hooks: ShardingHooks = NO_SHARDING
    pasts: tuple[Past, ...] = ()
    branches: Any = None


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; `model` holds the settings (see Transformer)."""

    model: Any
    stddev: float
    output_stddev: float

    @nn.compact
    def __call__(self, x_BTD, inputs: AttentionInputs, cache=None, drop=None):
        """([B, T, D], cache). `cache` is (keys, values, layer index) of all layers, updated in place (`append`).

        Without `inputs.cached` the cache is only written: it is a stack, S is T, and the keys of the tokens are those
        of the rows.

        Optional leaves next to the projections: prefix_key and prefix_value [P, G, K] (prefix tuning, arXiv
        2101.00190). They precede every document and count towards its window.
        """
        m = self.model
        query_BTHK, key_BSGK, value_BSGK = self._project(x_BTD, inputs, drop)
        options = {'softcap': m.attention_softcap, 'scale': m.attention_scale or m.head_dim**-0.5}
        if inputs.cached is not None:
            out_BTHK, cache = self._attend_token(query_BTHK, key_BSGK, value_BSGK, inputs, cache, options)
        else:
            cache = None if cache is None else _store(cache, key_BSGK, value_BSGK)
            gather, prefix = inputs.hooks.all_gather_sequence, self.get_variable('params', 'prefix_key')
            if gather:
                key_BSGK, value_BSGK = gather(key_BSGK), gather(value_BSGK)
            if prefix is not None:
                key_BSGK = _prepend(prefix, key_BSGK)
                value_BSGK = _prepend(self.get_variable('params', 'prefix_value'), value_BSGK)
            reads_positions = prefix is not None or inputs.pasts or inputs.branches is not None
            mask = AttentionMask(
                causal=m.causal,
                window=inputs.window,
                query_segments=inputs.query_segments,
                key_segments=inputs.key_segments,
                query_index=inputs.query_index,
                prefix=0 if prefix is None else prefix.shape[0],
                positions=inputs.positions if reads_positions else None,
                branches=inputs.branches,
            )
            operands = query_BTHK, key_BSGK, value_BSGK, mask
            if inputs.pasts:
                out_BTHK = attend_past(*operands, inputs.pasts, **options)
            else:
                own_keys = attend_chunked if gather else attend
                out_BTHK = own_keys(*operands, **options, backend=m.attention, hooks=inputs.hooks)
        out_BTD = out_BTHK.reshape(*x_BTD.shape[:2], m.num_heads * m.head_dim)
        return Linear(m.width, 'output' in m.biases, self.output_stddev, name='output')(out_BTD, drop), cache

    def _attend_token(self, query_B1HK, key_B1GK, value_B1GK, inputs: AttentionInputs, cache, options):
        """([B, 1, H, K], cache) of the one token of each row."""
        new = (x.swapaxes(1, 2) for x in (key_B1GK, value_B1GK))
        *own, cache = append(cache, *new, inputs.cached)
        prefix = self.get_variable('params', 'prefix_key'), self.get_variable('params', 'prefix_value')
        if prefix[0] is not None:
            options = options | {'prefix': [x.swapaxes(0, 1)[None].astype(query_B1HK.dtype) for x in prefix]}
        own = [x.astype(query_B1HK.dtype) for x in own]
        mask = AttentionMask(True, inputs.window, positions=inputs.positions)
        out_BHK = attend_token(query_B1HK[:, 0], own, inputs.cached, mask, inputs.pasts, **options)
        return out_BHK[:, None], cache

    def _project(self, x_BTD, inputs: AttentionInputs, drop):
        """(query [B, T, H, K], key, value [B, T, G, K]), normalised and rotated."""
        m = self.model

        def norm(name):
            kind = 'rmsnorm1p' if m.norm == 'rmsnorm1p' else 'rmsnorm'
            return Norm(kind, m.norm_eps, False, name=f'{name}_norm')

        num_heads = {'query': m.num_heads, 'key': m.num_kv_heads, 'value': m.num_kv_heads}
        sizes, projections = {name: heads * m.head_dim for name, heads in num_heads.items()}, []
        products = shared_input_matmul(self, sizes, x_BTD, inputs.hooks.column_parallel)
        for name, heads in num_heads.items():
            y = Linear(sizes[name], name in m.biases, self.stddev, name=name)(x_BTD, drop, products.get(name))
            if m.qk_norm and m.qk_norm_over == 'projection' and name != 'value':  # OLMo 2, arXiv 2501.00656
                y = norm(name)(y)
            projections.append(y.reshape(*x_BTD.shape[:2], heads, m.head_dim))
        query_BTHK, key_BTGK, value_BTGK = projections
        if m.qk_norm and m.qk_norm_over == 'head':  # arXiv 2302.05442
            query_BTHK, key_BTGK = norm('query')(query_BTHK), norm('key')(key_BTGK)
        if inputs.rotary is not None:
            query_BTHK, key_BTGK = rotate(query_BTHK, *inputs.rotary), rotate(key_BTGK, *inputs.rotary)
        return query_BTHK, key_BTGK, value_BTGK


def _store(cache, key_BTGK, value_BTGK):
    """The cache with the keys and values of one layer."""
    *stacks, layer = cache
    new = (x.swapaxes(1, 2) for x in (key_BTGK, value_BTGK))
    return *(stack.at[layer].set(x.astype(stack.dtype)) for stack, x in zip(stacks, new, strict=True)), layer


def _prepend(prefix_PGK, own_BSGK):
    """[B, P + S, G, K]: the prefix before the keys or values of every row."""
    prefix_BPGK = jnp.broadcast_to(prefix_PGK[None].astype(own_BSGK.dtype), (own_BSGK.shape[0], *prefix_PGK.shape))
    return jnp.concatenate([prefix_BPGK, own_BSGK], axis=1)
