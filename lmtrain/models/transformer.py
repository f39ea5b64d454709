"""The transformer. GPT-2, LLaMA, BERT and their relatives differ only in its settings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmtrain import tree
from lmtrain.errors import InputError
from lmtrain.models import lm_head, virtual_tokens
from lmtrain.models.attention import AttentionInputs
from lmtrain.models.block import Block
from lmtrain.models.hooks import NO_SHARDING, ShardingHooks
from lmtrain.models.kv_cache import chain
from lmtrain.models.layers import Norm, dropout
from lmtrain.models.linear import Embed
from lmtrain.models.rotary import by_length, lengths, rotary_angles, sinusoids
from lmtrain.models.settings import Settings
from lmtrain.models.task_head import TaskHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(Settings):
    """Settings of a model and its two functions, `init` and `apply`.

    A batch is a dict of columns: `tokens` int32 [B, T], and, each optional, `segment_ids` and `positions` int32 [B, T]
    (absent: every row is one unpadded document), `row` int32 [B] (absent: 0 .. B-1), `select` int32 [B, M] (positions
    to predict; absent: all), `targets` int32 [B, T] ([B, M] with `select`), `scored` int32 [B, S] (segments that a head
    for rows pools separately; absent: the row is one), `temperature` float32 [B] (of the logits).
    """

    def init(self, key: jax.Array, batch) -> dict:
        """{'params': float32 tree}, leaves under `layers` stacked [N, ...]; jit eliminates the forward pass."""
        return Network(self).init(key, batch)

    def apply(
        self,
        variables,
        batch,
        *,
        train: bool = False,
        cache=None,
        past: Sequence[dict[str, Any]] = (),
        store: bool = False,
        rngs=None,
        adapter_dropout: float = 0.0,
        hooks: ShardingHooks = NO_SHARDING,
    ) -> dict[str, Any]:
        """Outputs of all heads; under jit the compiler eliminates those that are not read.

        Args:
          variables: {'params': params}. train: enables dropout, with the key rngs['dropout'].
          adapter_dropout: dropout rate of the inputs of low-rank paths.
          hooks: collectives for sharded parameters and positions.
          past: caches of consecutive texts that precede the rows, read only: of B rows each, or of fewer that several
            rows share (lmtrain.models.kv_cache). All segments of a row continue them; `positions` count from their end.
            `branches` in the batch makes each segment a tree (`attention_kernels.AttentionMask`).
          store: returns keys and values of the T tokens as a cache that may be the `past` of later calls. It excludes
            `cache`. The real tokens of a row come first in it, and are one text.
          cache: from `init_cache` or an earlier call: the tokens between `past`, which it requires, and the one token
            of each row (T is 1), which is added to it. It may have `angles` (`angles_after`).

        Returns:
          'hidden' [B, T, D] compute dtype, 'logits' float32 [B, T, V]; with `targets` in the batch 'logprob' and
          'log_z', float32 [B, T], in nats; with `cache` or `store` 'cache'. An added head `heads/NAME` gives NAME,
          float32 [B, T, C]. With `select`, M replaces T in all but 'hidden'.
        """
        options = {'train': train, 'cache': cache, 'past': past, 'store': store}
        options |= {'adapter_dropout': adapter_dropout, 'hooks': hooks}
        params = variables['params']
        if hooks.gather_params:
            stacks = tree.segments(params)
            outside = {name: leaves for name, leaves in params.items() if name not in stacks}
            params = params | hooks.gather_params('', outside)
        if virtual_tokens.NETWORKS & params.keys():
            params = virtual_tokens.materialise(params)
        variables = variables | {'params': params}
        return Network(self).apply(variables, batch, rngs=rngs, **options)

    def init_cache(self, batch_size: int, length: int, layers: bool = False) -> dict[str, Any]:
        """An empty cache of `length` tokens a row: {'key', 'value': [N, B, G, S, K], 'length': int32 []}.

        Args:
          layers: 'key' and 'value' are tuples of N arrays [B, G, S, K], for unrolled layers; of one row [G, S, K],
            since XLA would copy an array with a dimension of 1 in every step. Those of a layer with a window have at
            most so many tokens (a ring).
        """
        self.check_cache(length)
        rows = () if layers and batch_size == 1 else (batch_size,)
        sizes = [min(length, self.window) if self.local(i) else length for i in range(self.num_layers)]
        shapes = [(*rows, self.num_kv_heads, size, self.head_dim) for size in sizes]
        cache = {}
        for name in ('key', 'value'):
            if layers:
                cache[name] = tuple(jnp.zeros(shape, self.dtype) for shape in shapes)
            else:  # one size: all tokens, unless every layer has the window
                cache[name] = jnp.zeros((self.num_layers, *max(shapes)), self.dtype)
        return cache | {'length': jnp.int32(0)}

    def angles(self, positions_BT, length_BT=None):
        """((cos, sin) of the positions, or None; those of layers with a sliding window, if they differ, or None).

        `length_BT` is that of each document, if the angles depend on it (`rotary.by_length`).
        """
        if self.positions != 'rotary':
            return None, None
        options = {'rotary_dim': self.rotary_dim or self.head_dim, 'length': length_BT}
        angles = rotary_angles(positions_BT, theta=self.rope_theta, scaling=self.rope_scaling, **options)
        local = rotary_angles(positions_BT, theta=self.local_rope_theta, **options) if self.local_rope_theta else None
        return angles, local

    def angles_after(self, past: Sequence[dict[str, Any]], params, rows: int, length: int):
        """`angles` of the first `length` tokens of each row after `past`, for `apply` as `angles` of its cache.

        A loop makes them once. In each step XLA:CPU would compute cosines again for every layer and head.
        """
        _, before_B = chain(past, rows)
        positions_BS = before_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None] + virtual_tokens.prefix(params)
        return self.angles(positions_BS, positions_BS + 1)


class Network(nn.Module):
    """The linen module behind Transformer; its scopes are the parameters' paths."""

    model: Transformer

    @nn.compact
    def __call__(self, batch, train=False, cache=None, past=(), store=False, adapter_dropout=0.0, hooks=NO_SHARDING):
        m = self.model
        text, prompt_PD, shift = batch, None, 0
        if not self.is_initializing():
            batch, prompt_PD, shift = virtual_tokens.prepend(self.variables['params'], batch, past)
        inputs, positions_BT = self.attention_inputs(batch, cache, past, shift, hooks)
        if store:
            cache = self._empty_store(batch)
        key = self.make_rng('dropout') if train and (m.dropout or adapter_dropout) else None

        embed = Embed(m.vocab_size + m.vocab_fill, m.width, name='embed')
        x_BTD = embed(text['tokens'], hooks.vocab_parallel_lookup)
        x_BTD = x_BTD.astype(jnp.promote_types(x_BTD.dtype, m.dtype))  # frozen tables may be bfloat16
        if m.embed_scale != 1:
            x_BTD *= jnp.asarray(m.embed_scale, x_BTD.dtype)
        if prompt_PD is not None:
            prompt_BPD = jnp.broadcast_to(prompt_PD[None].astype(x_BTD.dtype), (len(x_BTD), *prompt_PD.shape))
            x_BTD = jnp.concatenate([prompt_BPD, x_BTD], axis=1)
        if m.positions == 'learned':
            x_BTD += Embed(m.max_len, m.width, name='positions')(positions_BT + m.position_offset)
        elif m.positions == 'sinusoidal':
            x_BTD += sinusoids(positions_BT, m.width)
        if m.token_types:
            types_BT = text.get('token_types', jnp.zeros_like(text['tokens']))
            P = x_BTD.shape[1] - types_BT.shape[1]  # a soft prompt has type 0
            x_BTD += Embed(m.token_types, m.width, name='token_types')(jnp.pad(types_BT, ((0, 0), (P, 0))))
        x_BTD = x_BTD.astype(m.dtype)
        if m.embed_norm:
            x_BTD = Norm(m.norm, m.norm_eps, 'norm' in m.biases, name='embed_norm')(x_BTD)
        if key is not None:
            x_BTD = dropout(x_BTD, m.dropout, jax.random.fold_in(key, m.num_layers), inputs.row_ids)

        x_BTD, cache = self.layers(x_BTD, inputs, key, cache, adapter_dropout)
        if m.norm_place != 'post':
            x_BTD = Norm(m.norm, m.norm_eps, 'norm' in m.biases, name='final_norm')(x_BTD)
        scored = batch.get('segment_ids'), batch.get('scored')
        own = {} if m.head == 'lm' else TaskHead(m, name='task_head')(x_BTD, *scored)
        if prompt_PD is not None:
            P = prompt_PD.shape[0]
            x_BTD = x_BTD[:, P:]
            own = {name: x[:, P:] if x.ndim == 3 else x for name, x in own.items()}
        outputs = {'hidden': x_BTD} | self.heads(x_BTD, text, embed, hooks) | own
        return outputs if cache is None else outputs | {'cache': cache}

    def _empty_store(self, batch):
        """The cache that `store` fills: {'key', 'value': [N, B, G, T, K], 'length': int32 [B]}, zeros."""
        m, (B, T) = self.model, batch['tokens'].shape
        m.check_cache(T)
        shape = m.num_layers, B, m.num_kv_heads, T, m.head_dim
        return {name: jnp.zeros(shape, m.dtype) for name in ('key', 'value')} | {'length': jnp.zeros(B, jnp.int32)}

    def attention_inputs(self, batch, cache, past, shift, hooks):
        """(AttentionInputs, positions int32 [B, T]); `shift` is added to every position."""
        m = self.model
        B, T = batch['tokens'].shape
        branches = batch.get('branches')
        if not past and branches is None:
            m.check_length(T + shift, 'a row of')
        if not jnp.issubdtype(batch['tokens'].dtype, jnp.integer):
            raise InputError(f'column tokens has dtype {batch["tokens"].dtype}, not an integer')
        segments = key_segments = batch.get('segment_ids')
        index = cached = None
        pasts, before_B = chain(past, B) if past else ((), None)
        start_B1 = jnp.zeros((1, 1), jnp.int32)
        if hooks.position_offset:
            start_B1 = start_B1 + hooks.position_offset(T)
            index = jnp.broadcast_to(start_B1 + jnp.arange(T, dtype=jnp.int32)[None], (B, T))
            key_segments = None if segments is None else hooks.all_gather_sequence(segments)
        if cache is not None:
            if T != 1 or not past:
                raise InputError(f'a cache continues a past by one token a row, not by {T} after {len(past)} pasts')
            cached = cache['length']
            start_B1 = start_B1 + cached
        positions = batch.get('positions')
        if positions is None:
            positions = jnp.broadcast_to(start_B1 + jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        if pasts:
            positions = positions + before_B[:, None]
        if cache is not None and 'angles' in cache:
            rotary, local_rotary = jax.tree.map(
                lambda x_BSR: jax.lax.dynamic_slice_in_dim(x_BSR, cached, 1, axis=1), cache['angles']
            )
        else:
            length = None
            if by_length(m.rope_scaling) and cache is not None:
                length = positions + 1 + shift
            elif by_length(m.rope_scaling):
                gather = hooks.all_gather_sequence or (lambda x: x)
                length = shift + lengths(segments, gather(positions), key_segments)
            rotary, local_rotary = m.angles(positions + shift, length)
        row_ids = batch.get('row', jnp.arange(B, dtype=jnp.int32))
        inputs = AttentionInputs(
            rotary, local_rotary, positions, m.window, segments, key_segments, index, cached, row_ids, hooks, pasts
        )
        return inputs._replace(branches=branches), positions + shift

    def for_layer(self, inputs, layer):
        """The AttentionInputs of one layer: its pasts, window and angles. In a scan, `layer` is traced."""
        m = self.model
        pasts = (past._replace(key=past.key[layer], value=past.value[layer]) for past in inputs.pasts)
        inputs = inputs._replace(pasts=tuple(pasts))
        if not m.global_layers:
            return inputs if inputs.local_rotary is None else inputs._replace(rotary=inputs.local_rotary)
        if isinstance(layer, int):
            if not m.local(layer):
                return inputs._replace(window=0)
            return inputs if inputs.local_rotary is None else inputs._replace(rotary=inputs.local_rotary)
        local = jnp.array([m.local(i) for i in range(m.num_layers)])[layer]
        rotary = inputs.rotary
        if inputs.local_rotary is not None:
            rotary = tuple(jnp.where(local, *pair) for pair in zip(inputs.local_rotary, rotary, strict=True))
        return inputs._replace(rotary=rotary, window=jnp.where(local, m.window, jnp.iinfo(jnp.int32).max))

    def layers(self, x_BTD, inputs, key, cache, adapter_dropout=0.0):
        """(output of the last block [B, T, D], cache): unrolled if `unroll` is the number of layers, else scanned.

        The layers are one stack `layers` or consecutive segments `layers_0`, `layers_1`, ..., of which some are frozen:
        each is a scan of its own, so that the backward pass ends at the first layer with trainable leaves.
        """
        m = self.model
        block = Block(m, parent=None)
        if self.is_initializing():
            self._init_stacks(block, x_BTD, inputs)
            return x_BTD, cache  # what follows needs its shape alone, which no layer changes
        params, unrolled = self.variables['params'], m.unroll == m.num_layers
        sizes = tree.segment_sizes(params)
        if (total := sum(sizes.values())) != m.num_layers:
            raise InputError(f'the parameters hold {total} layers, but model.num_layers={m.num_layers}')

        def apply_block(carry, params, i):
            x, cached = carry
            layer_key = None if key is None else jax.random.fold_in(key, i)
            cached = cached and (*cached, i)
            own = self.for_layer(inputs, i)
            x, cached = block.apply({'params': params}, x, own, layer_key, cached, adapter_dropout)
            return x, cached and cached[:2]

        carry = x_BTD, cache and (cache['key'], cache['value'])
        first = 0
        for name, size in sizes.items():
            layer = self._rematerialised(apply_block, name, inputs.hooks, unrolled)
            if unrolled:
                # Split and not indexed: the gradient of a split is one concatenation, that of N indexings a sum of N
                # arrays of the whole stack, each zero but for one layer.
                leaves, treedef = jax.tree.flatten(params[name])
                slices = zip(*(jax.lax.split(leaf, [1] * size) for leaf in leaves), strict=True)
                for i, leaves in enumerate(slices, first):
                    carry = layer(carry, treedef.unflatten([leaf.squeeze(0) for leaf in leaves]), i)
            else:
                indices = jnp.arange(first, first + size)
                step = lambda carry, xs: (layer(carry, *xs), None)  # noqa: B023, E731
                carry, _ = jax.lax.scan(step, carry, (params[name], indices), unroll=min(m.unroll, size))
            first += size
        x_BTD, cached = carry
        if cache is not None:
            segments = inputs.query_segments
            added = x_BTD.shape[1]
            if segments is not None and inputs.cached is None:
                added = jnp.sum((segments > 0).astype(jnp.int32), axis=1)
            cache = cache | {'key': cached[0], 'value': cached[1], 'length': cache['length'] + added}
        return x_BTD, cache

    def _init_stacks(self, block, x_BTD, inputs) -> None:
        """Creates the parameters `layers`, stacked [N, ...], or two segments if the first layer lacks a norm."""
        m = self.model

        def init(key):
            one = lambda key: block.init(key, x_BTD, self.for_layer(inputs, 0))['params']  # noqa: E731
            return jax.vmap(one)(jax.random.split(key, m.num_layers))

        if m.first_norm:
            self.param('layers', init)
            return
        segments = tree.cut({'layers': init(self.make_rng('params'))}, (1, m.num_layers - 1))
        del segments['layers_0']['attention_norm']
        for name, leaves in segments.items():
            self.param(name, lambda key, leaves=leaves: leaves)

    def _rematerialised(self, apply_block, stack: str, hooks, unrolled: bool):
        """`apply_block` on gathered parameters, under jax.checkpoint with the policy that `model.remat` names.

        The all-gather is inside of the checkpoint: otherwise the gathered parameters of every layer would be residuals
        of the backward pass, and FSDP would save no memory. They are gathered again instead (ZeRO-3).
        """
        m, gather = self.model, hooks.gather_params
        if m.remat == 'none' and not gather:
            return apply_block

        def layer(carry, params, i):
            return apply_block(carry, gather(stack, params) if gather else params, i)

        policies = {
            'none': hooks.remat_policy,
            'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            'full': jax.checkpoint_policies.nothing_saveable,
        }
        # Unrolled, the index is a Python int, since it may decide the window of the layer. A scan prevents common
        # subexpression elimination by itself; unrolled, XLA would merge the two all-gathers without prevent_cse.
        static = (2,) if unrolled else ()
        return jax.checkpoint(layer, policy=policies[m.remat], prevent_cse=unrolled, static_argnums=static)

    def heads(self, x_BTD, batch, embed, hooks=NO_SHARDING):
        """Added heads, and of a language model 'logits', with targets also 'logprob' and 'log_z'; see `apply`."""
        m = self.model
        if 'select' in batch:
            x_BTD = jnp.take_along_axis(x_BTD, batch['select'][..., None], axis=1)
        added = {} if self.is_initializing() else self.variables['params'].get('heads', {})
        outputs = {name: lm_head.logits(x_BTD, leaves['kernel'], leaves.get('bias')) for name, leaves in added.items()}
        if m.head != 'lm':
            return outputs
        bias_V = None
        if m.mlm_head:
            x_BTD, bias_V = lm_head.MaskedHead(m, name='mlm_head')(x_BTD)
        if 'temperature' in batch:
            x_BTD = x_BTD / batch['temperature'][:, None, None].astype(x_BTD.dtype)
        transposed = None if self.is_initializing() else self.variables['params'].get('head', {}).get('transposed')
        if transposed is not None:  # of either kind of head (inference.decode)
            kernel_DV = None
        else:
            kernel_DV = embed().T if m.tied else lm_head.Kernel(m, name='head')()
        bias_V = bias_V if bias_V is None else jnp.pad(bias_V, (0, m.vocab_fill))
        options = {'bias_V': bias_V, 'softcap': m.logit_softcap}
        all_logits = lm_head.logits(
            x_BTD, kernel_DV, **options, column_parallel=hooks.column_parallel, transposed_VD=transposed
        )
        outputs |= {'logits': all_logits[..., : m.vocab_size]}
        if 'targets' in batch:
            if batch['targets'].shape != x_BTD.shape[:2]:
                shapes = f'{batch["targets"].shape}, but the predictions are {x_BTD.shape[:2]}'
                raise InputError(f'column targets is {shapes}')
            outputs['logprob'], outputs['log_z'] = lm_head.log_likelihood(
                x_BTD, batch['targets'], kernel_DV, **options, size=m.vocab_size, hooks=hooks
            )
        return outputs
