"""The compiled programs of sampling: a prefill that draws the first token, and a loop that draws the others.

    past, read only          cache, one slot a step
    [P, T]                   [P * samples, M]
    prompts              │   generated tokens            row p * samples + g is sample g of prompt p

All rows draw a token in every step, so they fill the same slot of the cache, whatever the lengths of their prompts. The
samples of a prompt share its keys.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import tree
from lmtrain.models import Transformer, virtual_tokens
from lmtrain.models.linear import few_rows

MAX_END_IDS = 16  # end tokens are padded to this number, so that every set of them uses the same program


class SamplingSettings(NamedTuple):
    """Sampling settings of a batch. All are traced, so that other values use the same program."""

    seed: jax.Array  # uint32
    tag: jax.Array  # uint32 [B]; a row draws with a key of seed and tag
    limit: jax.Array  # int32 [B], tokens to generate; 0 in padding rows
    temperature: jax.Array  # float32, 0 is greedy
    top_k: jax.Array  # int32, 0 is all
    top_p: jax.Array  # float32
    allowed: jax.Array | None  # bool [V], which rows of the embedding may be drawn; None is all
    end_ids: jax.Array  # int32 [MAX_END_IDS], a text ends at any of them; -1 if there are fewer


class DecodingMethod(NamedTuple):
    """What a compiled program computes of the settings: a step has no conditionals.

    Attributes:
      greedy: takes the most likely token; the temperature is 0.
      truncated: draws from `top_k` or `top_p`.
      logprob: computes `DecodeState.logprob`.
    """

    greedy: bool
    truncated: bool
    logprob: bool = False


class DecodeState(NamedTuple):
    """State of a batch while it is decoded."""

    text: jax.Array  # int32 [B, M], the generated tokens with their end tokens; arbitrary from num_tokens on
    logprob: jax.Array | None  # float32 [B, M], of each token under softmax(logits / temperature)
    token: jax.Array  # int32 [B], the last one drawn
    step: jax.Array  # int32 [], tokens drawn in each row
    num_tokens: jax.Array  # int32 [B], those of the text: `step` until it is done
    done: jax.Array  # bool [B]
    stopped: jax.Array  # bool [B], done because an end token was drawn
    finite: jax.Array  # bool, of every logit that was read


def start(settings: SamplingSettings, length: int, method: DecodingMethod) -> DecodeState:
    """The state before the first token, with room for `length` tokens."""
    B = len(settings.limit)
    return DecodeState(
        text=np.zeros((B, length), np.int32),
        logprob=np.zeros((B, length), np.float32) if method.logprob else None,
        token=np.zeros(B, np.int32),
        step=np.int32(0),
        num_tokens=np.zeros(B, np.int32),
        done=np.asarray(settings.limit) == 0,
        stopped=np.zeros(B, bool),
        finite=np.bool_(True),
    )


def for_decoding(model: Transformer) -> tuple[Transformer, Transformer]:
    """(model of `prefill`, model of `decode`) without kernels, which take no cache, and without gradients.

    The prefill scans its layers, which compiles faster. A step of the decoding is unrolled: in a scan every product
    would first copy the parameters of its layer.
    """
    prefills = dataclasses.replace(model, attention='xla', remat='none', unroll=1)
    return prefills, dataclasses.replace(prefills, unroll=model.num_layers)


def decoding_params(model: Transformer, params: tree.Params, rows: int) -> tree.Params:
    """Parameters as `decode` reads them, made once and outside of the loop: one layer per stack, kernels cast.

    On one device the kernels are transposed, and those that read the same input are joined: fewer products, each with
    few rows, for which a CPU takes half the time. On several devices they keep their shardings.

    So the layers are copied: in their live stacks, every product would copy its layer first. An embedding that needs no
    cast is not.

    Args:
      rows: B of the batches.
    """
    dtype = jnp.dtype(model.dtype)
    settings = model, None if _sharded(params) else jnp.dtype('float32') if widens(dtype, min(rows, 2)) else dtype
    if virtual_tokens.NETWORKS & params.keys():
        params = jax.jit(virtual_tokens.materialise)(params)
    sizes = tree.segment_sizes(params)
    rest = {name: leaves for name, leaves in params.items() if name not in sizes}
    # One program for each stack, not one with all layers, which takes seconds to compile.
    layers = [_layer(*settings, params[stack], np.int32(i)) for stack, size in sizes.items() for i in range(size)]
    return _rest(*settings, rest) | {f'{tree.STACK}_{i}': leaves for i, leaves in enumerate(layers)}


def copied(model: Transformer, params: tree.Params, widened: bool) -> list[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of the leaves that `decoding_params` copies.

    Args:
      params: arrays, or shapes with shardings.
      widened: whether kernels become float32 (`widens`, on the devices of the parameters).
    """
    leaves, stacks = tree.flatten(params), tree.segment_sizes(params)
    own = {path: leaf for path, leaf in leaves.items() if path.partition('/')[0] in {*stacks, 'head'}}
    dtype = jnp.dtype('float32') if widened else jnp.dtype(model.dtype)
    table = leaves['embed/embedding']
    if model.tied and not _sharded(params) and not table.dtype == jnp.dtype(model.dtype) == dtype:
        own['head/kernel'] = table
    dtypes = {'kernel': dtype, 'lora_a': jnp.dtype(model.dtype), 'lora_b': jnp.dtype(model.dtype)}
    return [
        jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path.rpartition('/')[2], leaf.dtype), sharding=_on(leaf))
        for path, leaf in own.items()
    ]


def _on(leaf):
    """The sharding of an array or a shape; None if it has none."""
    return getattr(leaf, 'sharding', None)


def _sharded(params: tree.Params) -> bool:
    """Whether a leaf is on several devices."""
    return any(len(on.device_set) > 1 for leaf in jax.tree.leaves(params) if (on := _on(leaf)))


@functools.cache
def widens(dtype, rows: int) -> bool:
    """Whether the compiler casts both operands of a product of few rows to float32, as it does on CPUs for one row.

    A decoding would then cast all kernels for every token. The products of float32 copies are the same.

    Args:
      rows: 1, or 2 for every larger number.
    """
    if dtype == jnp.float32 or jax.default_backend() != 'cpu':
        return False
    shapes = jax.ShapeDtypeStruct((rows, 256), dtype), jax.ShapeDtypeStruct((384, 256), dtype)
    return 'f32[384,256]' in jax.jit(few_rows).lower(*shapes).compile().as_text()


JOINED = {'attention': ('query', 'key', 'value'), 'mlp': ('up', 'gate')}  # as in `linear.shared_input_matmul`


@functools.partial(jax.jit, static_argnames=('model', 'dtype'))
def _layer(model: Transformer, dtype, stack: tree.Params, index) -> tree.Params:
    """The leaves [1, ...] of one layer, kernels transposed and in `dtype`; None: as they are."""
    leaves = {path: jax.lax.dynamic_slice_in_dim(leaf, index, 1) for path, leaf in tree.flatten(stack).items()}
    leaves = _transposed(model, dtype, leaves)
    for module, names in JOINED.items():
        own = [f'{module}/{name}' for name in names if any(path.startswith(f'{module}/{name}/') for path in leaves)]
        if all(f'{linear}/transposed' in leaves and f'{linear}/ia3_in' not in leaves for linear in own):
            parts = [leaves.pop(f'{linear}/transposed') for linear in own]
            leaves[f'{module}/joint'] = jnp.concatenate(parts, axis=1)
    return tree.unflatten(leaves)


def _rest(model: Transformer, dtype, params: tree.Params) -> tree.Params:
    """The leaves outside of the layers, not copied, with the head in the form of `_layer`."""
    if dtype and model.tied:
        table = params['embed']['embedding']
        as_it_is = table.dtype == jnp.dtype(model.dtype) == dtype
        return params | {'head': {'transposed': table if as_it_is else _rounded(model, dtype, table)}}
    return params | ({'head': _head(model, dtype, params['head'])} if params.get('head') else {})


@functools.partial(jax.jit, static_argnames=('model', 'dtype'))
def _rounded(model: Transformer, dtype, table):
    """The table of the embedding, rounded as in the product."""
    return table.astype(model.dtype).astype(dtype)


@functools.partial(jax.jit, static_argnames=('model', 'dtype'))
def _head(model: Transformer, dtype, head: tree.Params) -> tree.Params:
    """The leaves of the head in the form of `_layer`."""
    return tree.unflatten(_transposed(model, dtype, tree.flatten(head)))


def _transposed(model: Transformer, dtype, leaves: dict) -> dict:
    """{path: leaf} with `transposed` instead of every kernel that a product reads, rounded as in the product."""
    changed = {}
    for path, leaf in leaves.items():
        parent, _, name = path.rpartition('/')
        if name not in ('kernel', 'lora_a', 'lora_b') or f'{parent}/lora_magnitude' in leaves:
            changed[path] = leaf
        elif name == 'kernel' and dtype:
            own = f'{parent}/transposed' if parent else 'transposed'
            changed[own] = leaf.astype(model.dtype).swapaxes(-1, -2).astype(dtype)
        else:
            changed[path] = leaf.astype(model.dtype)
    return changed


@functools.partial(jax.jit, static_argnames=('model', 'method'))
def prefill(
    model, params, tokens_PT, lengths_P, state: DecodeState, settings: SamplingSettings, method: DecodingMethod
):
    """(past, cache, DecodeState with one more token) after reading prompts int32 [P, T], padded on the right.

    `model` has scanned layers; the layers of past and cache are separate, as `decode` reads them.
    """
    P, T = tokens_PT.shape
    batch = {
        'tokens': tokens_PT,
        'segment_ids': (jnp.arange(T)[None] < lengths_P[:, None]).astype(jnp.int32),
        'select': jnp.maximum(lengths_P - 1, 0)[:, None],
    }
    outputs = model.apply({'params': params}, batch, store=True)
    B, M = state.text.shape
    state = advance(state, jnp.repeat(outputs['logits'][:, 0], B // P, axis=0), settings, method)
    return _layers(model, outputs['cache']), model.init_cache(B, M, layers=True), state


def _layers(model: Transformer, past: dict[str, Any]) -> dict[str, Any]:
    """A past with separate layers; if all have the same window, with its last tokens alone."""
    length_P, T = past['length'], past['key'].shape[3]
    W = model.window if model.window and not model.global_layers else T
    if W < T:
        dropped_P = jnp.maximum(length_P - W, 0)
        index_P1S1 = (dropped_P[:, None] + jnp.arange(W)[None])[:, None, :, None]
        past = {name: jnp.take_along_axis(past[name], index_P1S1[None], axis=3) for name in ('key', 'value')}
        past |= {'length': length_P - dropped_P, 'dropped': dropped_P}
    return past | {name: tuple(past[name][i] for i in range(model.num_layers)) for name in ('key', 'value')}


@functools.partial(jax.jit, static_argnames=('model', 'method'), donate_argnames='cache')
def decode(model, params, past, cache, state: DecodeState, settings: SamplingSettings, steps, method: DecodingMethod):
    """(cache, DecodeState) after `steps` more tokens per row, fewer if all rows are done; `steps` is traced.

    `model` has unrolled layers, `params` are those of `decoding_params`.
    """
    end = state.step + steps
    angles = model.angles_after((past,), params, *state.text.shape)

    def going(carry):
        _, state = carry
        return (state.step < end) & ~jnp.all(state.done)

    def body(carry):
        cache, state = carry
        batch = {'tokens': state.token[:, None]}
        outputs = model.apply({'params': params}, batch, past=(past,), cache=cache | {'angles': angles})
        cache = {name: outputs['cache'][name] for name in cache}
        return cache, advance(state, outputs['logits'][:, 0], settings, method)

    return jax.lax.while_loop(going, body, (cache, state))


def advance(state: DecodeState, logits_BV, settings: SamplingSettings, method: DecodingMethod) -> DecodeState:
    """The state after a token is drawn in every row. Texts that are not done gain it."""
    # A sum, since XLA:CPU compiles one to vector instructions, but not `all`; its maximum ignores nan.
    finite_B = jnp.isfinite(jnp.sum(logits_BV, axis=1))
    if not method.greedy:
        # Relative to the maximum, so that no temperature overflows.
        top_B1 = jnp.max(_restricted(logits_BV, settings), axis=-1, keepdims=True)
        logits_BV = (logits_BV - top_B1) / settings.temperature
    token_B = draw(_keys(settings, state.step), _restricted(logits_BV, settings), settings, method)
    logprob = state.logprob
    if logprob is not None:
        picked_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
        logprob_B = picked_B - jax.nn.logsumexp(logits_BV, axis=1)
        logprob = jax.lax.dynamic_update_slice(logprob, logprob_B[:, None], (0, state.step))

    stopped_B = state.stopped | ~state.done & jnp.any(token_B[:, None] == settings.end_ids[None], axis=1)
    count_B = state.num_tokens + ~state.done
    return DecodeState(
        text=jax.lax.dynamic_update_slice(state.text, token_B[:, None], (0, state.step)),
        logprob=logprob,
        token=token_B,
        step=state.step + 1,
        num_tokens=count_B,
        done=state.done | stopped_B | (count_B >= settings.limit),
        stopped=stopped_B,
        finite=state.finite & jnp.all(finite_B | state.done),
    )


def _restricted(logits_BV, settings: SamplingSettings):
    """The logits, -inf for ids that may not be drawn."""
    return logits_BV if settings.allowed is None else jnp.where(settings.allowed[None], logits_BV, -jnp.inf)


def _keys(settings: SamplingSettings, step):
    """Keys [B]: a function of the seed, the row's tag and the number of tokens before."""
    key = jax.random.key(settings.seed)
    return jax.vmap(lambda tag: jax.random.fold_in(jax.random.fold_in(key, tag), step))(settings.tag)


def draw(keys_B, logits_BV, settings: SamplingSettings, method: DecodingMethod) -> jax.Array:
    """int32 [B], one token a row, of logits that are divided by the temperature."""
    if not method.greedy:
        if method.truncated:
            logits_BV = truncate(logits_BV, settings.top_k, settings.top_p)
        logits_BV += jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
    return argmax(logits_BV)


def argmax(x_BV) -> jax.Array:
    """int32 [B], the index of the first maximum of each row.

    First that of a block and then that in the block: XLA:CPU compiles a maximum to vector instructions, and an argmax
    to a comparison at a time, which took a quarter of a step of a small model.
    """
    V = x_BV.shape[1]
    blocks = max(n for n in range(1, math.isqrt(V) + 1) if V % n == 0)
    x_BNS = x_BV.reshape(-1, blocks, V // blocks)
    block_B1 = jnp.argmax(jnp.max(x_BNS, axis=2), axis=1, keepdims=True).astype(jnp.int32)
    own_BS = jnp.take_along_axis(x_BNS, block_B1[:, :, None], axis=1)[:, 0]
    return block_B1[:, 0] * (V // blocks) + jnp.argmax(own_BS, axis=1).astype(jnp.int32)


def truncate(logits_BV, top_k, top_p) -> jax.Array:
    """Logits with -inf for all but the `top_k` most likely (0: all) and, of these, the fewest whose mass is >= `top_p`.

    Exact, by sorting; of equal logits at the threshold the lower ids remain.
    """
    V = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    remaining_BV = (jnp.arange(V)[None] < jnp.where(top_k > 0, top_k, V)) & (sorted_BV > -jnp.inf)
    probability_BV = jax.nn.softmax(jnp.where(remaining_BV, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # the mass of more likely tokens
    remaining_BV &= (before_BV < top_p) | (top_p >= 1)
    threshold_B1 = jnp.min(jnp.where(remaining_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    above_BV, at_BV = logits_BV > threshold_B1, logits_BV == threshold_B1
    places_B1 = jnp.sum(remaining_BV, axis=-1, keepdims=True) - jnp.sum(above_BV, axis=-1, keepdims=True)
    return jnp.where(above_BV | at_BV & (jnp.cumsum(at_BV, axis=-1) <= places_B1), logits_BV, -jnp.inf)
