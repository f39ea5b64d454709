"""One transformer: GPT-2, LLaMA, BERT and what lies between them are its settings."""

import dataclasses
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
from lmtrain.models.layers import Norm, dropout
from lmtrain.models.linear import Embed
from lmtrain.models.rotary import by_length, lengths, rotary_angles, sinusoids
from lmtrain.models.settings import Settings
from lmtrain.models.task_head import TaskHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(Settings):
    """Settings of a model and its two functions, `init` and `apply`.

    A batch is a dict of columns: `tokens` int32 [B, T], and, each optional, `segment_ids` and `positions` int32 [B, T]
    (absent: every row is one unpadded document), `row` int32 [B] (absent: 0 .. B-1), `select` int32 [B, M] (the
    positions whose predictions are wanted), `targets` int32 [B, T] ([B, M] under `select`).
    """

    def init(self, key: jax.Array, batch) -> dict:
        """{'params': float32 tree}, every leaf under `layers` stacked [N, ...]. Under jit the forward costs nothing."""
        return Network(self).init(key, batch)

    def apply(
        self,
        variables,
        batch,
        *,
        train: bool = False,
        cache=None,
        rngs=None,
        adapter_dropout: float = 0.0,
        share: ShardingHooks = NO_SHARDING,
    ) -> dict[str, Any]:
        """Heads of a batch; what nobody reads the compiler does not compute.

        Args:
          variables: {'params': params}. train: drops out, by the key rngs['dropout'].
          adapter_dropout: share of its input that a low-rank path loses in training.
          share: what makes whole the leaves and rows that lie in pieces.
          cache: from `init_cache` or an earlier call. The tokens of a row whose `segment_ids` are not 0 (all, where the
            column is absent) stand first in it and follow what the cache holds of that row.

        Returns:
          'hidden' [B, T, D] compute dtype, 'logits' float32 [B, T, V]; with `targets` in the batch 'logprob' and
          'log_z', float32 [B, T], in nats; with a cache 'cache'. An added head `heads/NAME` gives NAME, float32
          [B, T, C]. Under `select` all but 'hidden' have M for T.
        """
        options = {'train': train, 'cache': cache, 'adapter_dropout': adapter_dropout, 'share': share}
        params = variables['params']
        if share.fetch:
            stacks = tree.segments(params)
            outside = {name: leaves for name, leaves in params.items() if name not in stacks}
            params = params | share.fetch('', outside)
        variables = variables | {'params': virtual_tokens.materialise(params)}
        return Network(self).apply(variables, batch, rngs=rngs, **options)

    def init_cache(self, batch_size: int, length: int, dtype=None) -> dict[str, jax.Array]:
        """An empty cache of `length` tokens a row: {'key', 'value': [N, B, S, G, K], 'length': int32 [B]}."""
        if not self.causal:
            raise InputError('model.causal is False: an encoder has no use for a cache')
        self.check_length(length, 'a cache of')
        shape = self.num_layers, batch_size, length, self.num_kv_heads, self.head_dim
        dtype = dtype or self.dtype
        zeros = {name: jnp.zeros(shape, dtype) for name in ('key', 'value')}
        return zeros | {'length': jnp.zeros(batch_size, jnp.int32)}


class Network(nn.Module):
    """The linen module behind Transformer; its scopes are the parameters' paths."""

    model: Transformer

    @nn.compact
    def __call__(self, batch, train=False, cache=None, adapter_dropout=0.0, share=NO_SHARDING):
        m = self.model
        text, prompt_PD, shift = batch, None, 0
        if not self.is_initializing():
            batch, cache, prompt_PD, shift = virtual_tokens.prepend(self.variables['params'], batch, cache)
        places, positions_BT = self.places(batch, cache, shift, share)
        key = self.make_rng('dropout') if train and (m.dropout or adapter_dropout) else None

        embed = Embed(m.vocab_size + m.vocab_fill, m.width, name='embed')
        x_BTD = embed(text['tokens'], share.rows)
        x_BTD = x_BTD.astype(jnp.promote_types(x_BTD.dtype, m.dtype))  # frozen tables may be bfloat16
        if m.embed_scale != 1:
            x_BTD *= jnp.asarray(m.embed_scale, x_BTD.dtype)
        if prompt_PD is not None:
            rows_BPD = jnp.broadcast_to(prompt_PD[None].astype(x_BTD.dtype), (len(x_BTD), *prompt_PD.shape))
            x_BTD = jnp.concatenate([rows_BPD, x_BTD], axis=1)
        if m.positions == 'learned':
            x_BTD += Embed(m.max_len, m.width, name='positions')(positions_BT + m.position_offset)
        elif m.positions == 'sinusoidal':
            x_BTD += sinusoids(positions_BT, m.width)
        if m.token_types:
            types_BT = text.get('token_types', jnp.zeros_like(text['tokens']))
            ahead = x_BTD.shape[1] - types_BT.shape[1]  # a prompt is of type 0
            x_BTD += Embed(m.token_types, m.width, name='token_types')(jnp.pad(types_BT, ((0, 0), (ahead, 0))))
        x_BTD = x_BTD.astype(m.dtype)
        if m.embed_norm:
            x_BTD = Norm(m.norm, m.norm_eps, m.has_bias('norm'), name='embed_norm')(x_BTD)
        x_BTD = dropout(x_BTD, m.dropout, None if key is None else jax.random.fold_in(key, m.num_layers), places.row)

        x_BTD, cache = self.layers(x_BTD, places, key, cache, adapter_dropout)
        if m.norm_place != 'post':
            x_BTD = Norm(m.norm, m.norm_eps, m.has_bias('norm'), name='final_norm')(x_BTD)
        own = {} if m.head == 'lm' else TaskHead(m, name='task_head')(x_BTD, batch.get('segment_ids'))
        if prompt_PD is not None:
            P = prompt_PD.shape[0]
            x_BTD = x_BTD[:, P:]
            own = {name: x[:, P:] if x.ndim == 3 else x for name, x in own.items()}
        outputs = {'hidden': x_BTD} | self.heads(x_BTD, text, embed, share) | own
        return outputs if cache is None else outputs | {'cache': cache}

    def places(self, batch, cache, shift, share):
        """(Places, positions [B, T]); `shift` is added to every position."""
        m = self.model
        B, T = batch['tokens'].shape
        m.check_length(T + shift, 'a row of')
        if not jnp.issubdtype(batch['tokens'].dtype, jnp.integer):
            raise InputError(f'column tokens has dtype {batch["tokens"].dtype}, not an integer')
        segments = key_segments = batch.get('segment_ids')
        index = slots = None
        start_B1 = jnp.zeros((1, 1), jnp.int32)
        if share.first:
            start_B1 = start_B1 + share.first(T)
            index = jnp.broadcast_to(start_B1 + jnp.arange(T, dtype=jnp.int32)[None], (B, T))
            key_segments = None if segments is None else share.everywhere(segments)
        if cache is not None:
            S = cache['key'].shape[2]
            real = jnp.ones((B, T), bool) if segments is None else segments > 0
            start_B1 = cache['length'][:, None]
            index = start_B1 + jnp.arange(T, dtype=jnp.int32)[None]
            slots = jnp.where(real, index, S)
            segments = real.astype(jnp.int32)
            length_B1 = start_B1 + jnp.sum(segments, axis=1, keepdims=True)
            key_segments = (jnp.arange(S)[None] < length_B1).astype(jnp.int32)
        positions = batch.get('positions')
        if positions is None:
            positions = jnp.broadcast_to(start_B1 + jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        rotary = local_rotary = None
        if m.positions == 'rotary':
            turned = {'rotary_dim': m.rotary_dim or m.head_dim}
            if by_length(m.rope_scaling) and cache is not None:
                turned['length'] = length_B1 + shift
            elif by_length(m.rope_scaling):
                everywhere = share.everywhere or (lambda x: x)
                turned['length'] = shift + lengths(segments, everywhere(positions), key_segments)
            rotary = rotary_angles(positions + shift, theta=m.rope_theta, scaling=m.rope_scaling, **turned)
            if m.local_rope_theta:
                local_rotary = rotary_angles(positions + shift, theta=m.local_rope_theta, **turned)
        row = batch.get('row', jnp.arange(B, dtype=jnp.int32))
        places = AttentionInputs(
            rotary, local_rotary, positions, m.window, segments, key_segments, index, slots, row, share
        )
        return places, positions + shift

    def places_of(self, places, layer):
        """What one layer sees of `places`; `layer` is a number, or traced where a scan runs layers that differ."""
        m = self.model
        if not m.global_layers:
            return places if places.local_rotary is None else places._replace(rotary=places.local_rotary)
        if isinstance(layer, int):
            if not m.local(layer):
                return places._replace(window=0)
            return places if places.local_rotary is None else places._replace(rotary=places.local_rotary)
        local = jnp.array([m.local(i) for i in range(m.num_layers)])[layer]
        rotary = places.rotary
        if places.local_rotary is not None:
            rotary = tuple(jnp.where(local, *pair) for pair in zip(places.local_rotary, rotary, strict=True))
        return places._replace(rotary=rotary, window=jnp.where(local, m.window, jnp.iinfo(jnp.int32).max))

    def layers(self, x_BTD, places, key, cache, adapter_dropout=0.0):
        """All blocks: a straight line where `unroll` holds them all, else a scan over each segment of the stack."""
        m = self.model
        block = Block(m, parent=None)
        if self.is_initializing():

            def init(key):
                one = lambda key: block.init(key, x_BTD, self.places_of(places, 0))['params']  # noqa: E731
                return jax.vmap(one)(jax.random.split(key, m.num_layers))

            if m.first_norm:
                names, stacks = ['layers'], [self.param('layers', init)]
            else:
                parts = tree.cut({'layers': init(self.make_rng('params'))}, (1, m.num_layers - 1))
                del parts['layers_0']['attention_norm']
                names = list(parts)
                stacks = [self.param(name, lambda key, part=part: part) for name, part in parts.items()]
        else:
            params = self.variables['params']
            names = tree.segments(params)
            stacks = [params[name] for name in names]
        fetch = places.share.fetch
        sizes = [jax.tree.leaves(stack)[0].shape[0] for stack in stacks]
        if sum(sizes) != m.num_layers:
            raise InputError(f'the parameters hold {sum(sizes)} layers, but model.num_layers={m.num_layers}')

        straight = m.unroll == m.num_layers and not self.is_initializing()

        def layer_of(stack):
            """(carry, params, i) -> carry, of one layer of a stack."""

            def layer(carry, params, i):
                x, cached = carry
                params = fetch(stack, params) if fetch else params
                layer_key = None if key is None else jax.random.fold_in(key, i)
                own, cached = self.places_of(places, i), cached and (*cached, i)
                x, cached = block.apply({'params': params}, x, own, layer_key, cached, adapter_dropout)
                return x, cached and cached[:2]

            if m.remat == 'none' and not fetch:
                return layer
            policies = jax.checkpoint_policies
            kept = {'dots': policies.dots_with_no_batch_dims_saveable, 'full': policies.nothing_saveable}
            policy = kept[m.remat] if m.remat != 'none' else places.share.kept
            known = (2,) if straight else ()  # the layer's number, which may decide what it sees
            return jax.checkpoint(layer, policy=policy, prevent_cse=straight, static_argnums=known)

        carry = x_BTD, cache and (cache['key'], cache['value'])
        first = 0
        for name, stack, size in zip(names, stacks, sizes, strict=True):
            layer = layer_of(name)
            if straight:
                # Split and not indexed: the gradient of a split is one concatenation.
                leaves, treedef = jax.tree.flatten(stack)
                slices = zip(*(jax.lax.split(leaf, [1] * size) for leaf in leaves), strict=True)
                for i, leaves in enumerate(slices, first):
                    params = treedef.unflatten([leaf.squeeze(0) for leaf in leaves])
                    carry = layer(carry, params, i)
            else:
                indices = jnp.arange(first, first + size)
                step = lambda carry, xs: (layer(carry, *xs), None)  # noqa: B023, E731
                carry, _ = jax.lax.scan(step, carry, (stack, indices), unroll=min(m.unroll, size))
            first += size
        x_BTD, cached = carry
        if cache is not None:
            grown = jnp.sum(places.query_segments, axis=1)
            cache = cache | {'key': cached[0], 'value': cached[1], 'length': cache['length'] + grown}
        return x_BTD, cache

    def heads(self, x_BTD, batch, embed, share=NO_SHARDING):
        """Added heads, and of a language model 'logits', with targets also 'logprob' and 'log_z'; see `apply`."""
        m = self.model
        if 'select' in batch:
            x_BTD = jnp.take_along_axis(x_BTD, batch['select'][..., None], axis=1)
        found = {} if self.is_initializing() else self.variables['params'].get('heads', {})
        added = {name: lm_head.logits(x_BTD, leaves['kernel'], leaves.get('bias')) for name, leaves in found.items()}
        if m.head != 'lm':
            return added
        bias_V = None
        if m.mlm_head:
            x_BTD, bias_V = lm_head.MaskedHead(m, name='mlm_head')(x_BTD)
        kernel_DV = embed().T if m.tied else lm_head.Kernel(m, name='head')()
        bias_V = bias_V if bias_V is None else jnp.pad(bias_V, (0, m.vocab_fill))
        options = {'bias_V': bias_V, 'softcap': m.logit_softcap}
        all_logits = lm_head.logits(x_BTD, kernel_DV, **options, columns=share.columns)
        outputs = added | {'logits': all_logits[..., : m.vocab_size]}
        if 'targets' in batch:
            if batch['targets'].shape != x_BTD.shape[:2]:
                shapes = f'{batch["targets"].shape}, but the predictions are {x_BTD.shape[:2]}'
                raise InputError(f'column targets is {shapes}')
            outputs['logprob'], outputs['log_z'] = lm_head.log_likelihood(
                x_BTD, batch['targets'], kernel_DV, **options, size=m.vocab_size, share=share
            )
        return outputs
