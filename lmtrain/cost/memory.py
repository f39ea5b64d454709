"""Bytes of one device: exact for parameters, gradients and moments, estimated for activations."""

import math
import re

import jax
import jax.numpy as jnp

from lmtrain import tree
from lmtrain.adapt import leaves as adapter_leaves
from lmtrain.cost.flops import keys_per_query
from lmtrain.cost.query import Query, cache_bytes
from lmtrain.models import lm_head
from lmtrain.models.attention_kernels import BLOCK

AFTER_LAYERS = ('final_norm/', 'head/', 'heads/', 'mlm_head/', 'task_head/')  # paths after the layers


def shard_bytes(leaves) -> int:
    """Bytes of a tree on one device; of the whole tree if it has no sharding."""
    total = 0
    for leaf in jax.tree.leaves(leaves):
        sharding = getattr(leaf, 'sharding', None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def logits_bytes(elements: int, itemsize: int, keep: bool) -> int:
    """Bytes of `elements` logits and their gradient on one device: of all if they are kept, else of one chunk."""
    chunks = min(-(-elements // lm_head.MAX_SAVED_LOGITS), lm_head.MAX_CHUNKS)
    return 2 * itemsize * elements if keep and chunks > 1 else (4 + itemsize) * elements // max(chunks, 1)


def bytes_per_device(
    state,
    model,
    rows: int,
    seq_len: int,
    *,
    fused: bool = False,
    tensor: int = 1,
    sequence: int = 1,
    predicted: int | None = None,
    keep_logits: bool = False,
) -> dict[str, int]:
    """Bytes on one device: {'parameters', 'gradients', 'moments', 'activations', 'total'}.

    All are exact, from shapes and shardings, except the activations: an estimate of what the layers keep for the
    backward pass, and of the logits: one float32 chunk and its gradient in the dtype of the computation, or with
    `keep_logits` both for all logits in that dtype. Layers below every trainable leaf keep nothing. The CPU's compiler
    needs within 15 % of the total in float32, for unrolled and for scanned layers (experiments/ledger), and up to 3
    times as much with remat and unrolled layers.

    Args:
      state: arrays or shapes in the attributes trainable, frozen and opt_state (`training.state.TrainState`).
      model: has the attributes of the config's model section.
      rows: of one micro-batch on one device.
      fused: whether an attention kernel keeps no attention weights.
      tensor: devices among which heads and columns are divided. sequence: the same for positions.
      predicted: positions per row that the head reads; None: all.
    """
    m, trainable = model, tree.flatten(state.trainable)
    leaves = trainable | tree.flatten(state.frozen)
    tokens = rows * (seq_len + adapter_leaves.virtual_tokens(leaves)) // sequence
    itemsize = jnp.dtype(m.dtype).itemsize
    per_token = _activations_per_token(m, leaves, trainable, seq_len, fused, tensor, sequence)
    vocab = (m.vocab_size + m.vocab_fill) // tensor
    logits = logits_bytes(rows * (predicted or seq_len) // sequence * vocab, itemsize, keep_logits)
    sizes = {
        'parameters': shard_bytes(state.trainable) + shard_bytes(state.frozen),
        'gradients': shard_bytes(state.trainable),
        'moments': shard_bytes(state.opt_state),
        'activations': int(tokens * per_token * itemsize + logits),
    }
    return sizes | {'total': sum(sizes.values())}


def bytes_of_query(params, model, query) -> int:
    """Bytes on one device for a `cost.query.Query`: parameters, cache, activations of one layer, outputs.

    An estimate for what is cached and computed, without copies that a compiler makes.
    """
    tokens = query.shared + query.row
    itemsize = jnp.dtype(model.dtype).itemsize
    layer = tokens * itemsize * _elements(model, round(tokens), False, 1, 1)['none']
    cached = cache_bytes(model, query.tokens) if model.causal else 0
    answers = max(len(query.choices) * max(query.choices, default=0), 1)
    return round(tree.size(params) + cached + layer + 4 * answers * (query.classes or model.vocab_size))


def bytes_of_scoring(params, model, query: Query, *, tokens: int, length: int) -> int:
    """Bytes on one device while a batch of queries is scored by the likelihoods of their choices.

    Parameters, the cache of the shared tokens, and the larger of attention and feed-forward of one layer, or of one
    chunk of logits. An estimate: 70 to 105 % of what the CPU's compiler needs in float32.

    Args:
      params: arrays or shapes.
      query: with choices; its tokens after the shared ones are one row, or share a row with other queries.
      tokens: of a batch, unless it is one row.
      length: tokens of a row at least.
    """
    m, itemsize = model, jnp.dtype(model.dtype).itemsize
    own = query.tokens - query.shared
    T = round(max(own, length))
    read = T * max(1, tokens // T)
    # The blocks of queries are computed side by side; beside the scores of a past there are its weights.
    scores = 4 * m.num_heads * (keys_per_query(m, T, BLOCK) + 2 * query.shared)
    attention = read * (scores + itemsize * 2 * (m.width + (m.num_heads + m.num_kv_heads) * m.head_dim))
    mlp = read * itemsize * (2 * m.width + m.mlp_dim * (3 if 'glu' in m.activation else 2))
    logits = logits_bytes(round(read * sum(query.choices) / own) * m.vocab_size, itemsize, keep=False)
    return round(tree.size(params) + cache_bytes(m, query.shared) + max(attention, mlp, logits))


def _activations_per_token(model, leaves, trainable, seq_len: int, fused: bool, tensor: int, sequence: int) -> float:
    """Elements per token that the layers keep for the backward pass.

    A layer keeps nothing if no trainable leaf is in it or before it. One with frozen matrices keeps no input of its
    last product, and the weights of attention once.
    """
    elements = _elements(model, seq_len, fused, tensor, sequence)
    flows = any(not path.startswith((*AFTER_LAYERS, 'layers')) for path in trainable)
    # {name of a stack: number of layers}. In a sweep, trainable leaves have one more dimension in front.
    up = {path.partition('/')[0]: leaf.shape[-3] for path, leaf in leaves.items() if path.endswith('/mlp/up/kernel')}
    total = 0.0
    for name in tree.segments(up) if up else ['layers']:
        own = [path for path in trainable if path.startswith(f'{name}/')]
        flows = flows or bool(own)
        frozen = not any(re.fullmatch(rf'{name}/mlp/down/(kernel|lora_a|ia3_in)', path) for path in own)
        policy = 'frozen' if frozen and model.remat == 'none' else model.remat
        total += up.get(name, model.num_layers) * elements[policy] if flows else 0.0
    again = 0 if model.remat == 'none' else elements['none']  # remat recomputes one layer at a time
    return total + again if flows else 0.0


def _elements(model, seq_len: int, fused: bool, tensor: int, sequence: int) -> dict[str, float]:
    """{remat policy: elements per token that one layer keeps for its backward pass}; 'frozen': without remat."""
    m = model
    heads, kv_heads = m.num_heads * m.head_dim // tensor, m.num_kv_heads * m.head_dim // tensor
    mlp = m.mlp_dim // tensor
    products = 2 * heads + 2 * kv_heads * sequence + mlp * (2 if 'glu' in m.activation else 1) + m.width
    weights = 0 if fused else m.num_heads // tensor * keys_per_query(m, seq_len, 128)
    # The residual stream; with 'dots' also the products; without remat also outputs of norms, inputs of activations
    # and attention weights.
    whole = 4 * m.width + products + 2 * mlp + 2 * weights
    # Measured on CPU: a gated activation keeps its factors if the product after it is frozen, gelu and relu nothing.
    frozen = whole - 0.75 * weights - (0 if 'glu' in m.activation else mlp)
    return {'full': m.width, 'dots': m.width + products, 'none': whole, 'frozen': frozen}
