"""The language-model head: logits, and log-probabilities whose custom gradient needs no float32 [B, T, V]."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lmtrain.models.hooks import NO_SHARDING, ShardingHooks
from lmtrain.models.layers import GATED, UNGATED, Norm
from lmtrain.models.linear import Linear, few_rows, stddev

MAX_SAVED_LOGITS = 2**22  # elements up to which float32 logits are saved for the backward pass
MAX_CHUNKS = 8  # parts, at most, in which more logits are computed, unless they are saved in bfloat16
SHARDED_DIMENSION = {'kernel': 1, 'bias': 0, 'saved': 2}  # over the vocabulary


@jax.custom_vjp
def product(x, kernel_DF):
    """float32 [..., F], x . kernel, of two operands of one dtype.

    Its cotangent is cast to the dtype of x. Otherwise both products of the backward pass would have a float32 operand,
    and XLA would widen the other one, which is several times slower on a GPU for a bfloat16 model. XLA removes the
    gradient of a frozen kernel, which nothing reads.
    """
    return jnp.dot(x, kernel_DF, preferred_element_type=jnp.float32)


def _product_backward(operands, g):
    x, kernel_DF = operands
    g = g.astype(x.dtype)
    flat, g_flat = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return (g_flat @ kernel_DF.T).reshape(x.shape), (flat.T @ g_flat).astype(kernel_DF.dtype)


product.defvjp(lambda x, kernel_DF: (product(x, kernel_DF), (x, kernel_DF)), _product_backward)


def logits(hidden, kernel_DV, bias_V=None, softcap: float = 0.0, column_parallel=None, transposed_VD=None):
    """float32 [..., V] from hidden [..., D]: hidden . kernel + bias, then the softcap (0 is off).

    Args:
      column_parallel: ShardingHooks.column_parallel or None.
      transposed_VD: instead of the kernel, in the dtype of the product (linear.few_rows).
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    if transposed_VD is not None:
        out = few_rows(flat, transposed_VD).reshape(*hidden.shape[:-1], -1)
    elif column_parallel:
        (out,) = column_parallel(hidden, [kernel_DV.astype(hidden.dtype)], jnp.float32)
    else:
        out = product(flat, kernel_DV.astype(hidden.dtype)).reshape(*hidden.shape[:-1], -1)
    if bias_V is not None:
        out += jnp.expand_dims(bias_V, range(out.ndim - 1))
    return softcap * jnp.tanh(out / softcap) if softcap else out


def log_likelihood(
    hidden_BTD,
    targets_BT,
    kernel_DV,
    bias_V=None,
    softcap: float = 0.0,
    size: int = 0,
    hooks: ShardingHooks = NO_SHARDING,
):
    """(logprob, log_z), float32 [B, T]: log p(target) and the log of the softmax's normaliser.

    The gradient is custom: the cotangent of the logits is cast to the dtype of `hidden`, so that no product of a
    bfloat16 model has a float32 operand, and the gradient of the kernel is summed in float32. The backward pass reads

      * up to `MAX_SAVED_LOGITS` logits on a device: all of them, saved in float32.
      * beyond, with `hooks.keep_logits` and a bfloat16 `hidden`: all of them, rounded to bfloat16 once. Values and
        gradient are those of the rounded logits, the same as under PyTorch's autocast.
      * otherwise: none. They are computed again, for one chunk of positions at a time.

    A value without a gradient (evaluation) is always that of float32 logits.

    Args:
      hidden_BTD: compute dtype. targets_BT: int32 ids.
      kernel_DV: float32, or bfloat16 if frozen. bias_V: float32 or None. softcap: as in `logits`.
      size: number of ids; columns from there on are padding of the vocabulary with probability 0. 0: no padding.
      hooks: `vocabulary`, if the columns of kernel and bias are sharded, and `keep_logits`.
    """
    operands = {'hidden': hidden_BTD, 'targets': targets_BT, 'kernel': kernel_DV}
    operands |= {} if bias_V is None else {'bias': bias_V}
    settings = {'softcap': softcap, 'size': size if size < kernel_DV.shape[1] else 0, 'vocabulary': hooks.vocabulary}
    save = {'round_logits': hooks.keep_logits and hidden_BTD.dtype != jnp.float32, 'max_saved': MAX_SAVED_LOGITS}

    def run(function, operands, outs, **more):
        """`function` of the operands, on every shard of the vocabulary."""
        ins, outs = {name: SHARDED_DIMENSION.get(name) for name in operands}, tuple(map(SHARDED_DIMENSION.get, outs))
        return hooks.vocabulary.per_shard(functools.partial(function, **settings, **more), ins, outs)(operands)

    @jax.custom_vjp
    def values(operands):
        return run(_forward, operands, ('logprob', 'log_z', 'saved'), round_logits=False, max_saved=0)[:2]

    # symbolic_zeros: without it, the backward pass would also build the gradient of a frozen kernel and leave it to XLA
    # to remove. `perturbed` is True for the operands that are differentiated. A cotangent that is zero is not used.
    def forward(primals):
        operands = {name: primal.value for name, primal in primals.items()}
        differentiated = tuple(name for name, primal in primals.items() if primal.perturbed)
        logprob, log_z, saved = run(_forward, operands, ('logprob', 'log_z', 'saved'), **save)
        saved = {} if saved is None else {'saved': saved}
        return (logprob, log_z), (operands | saved | {'log_z': log_z}, dict.fromkeys(differentiated, ()))

    def backward(residuals, cotangents):
        operands, differentiated = residuals
        named = dict(zip(('g_logprob', 'g_log_z'), cotangents, strict=True))
        operands = operands | {name: g for name, g in named.items() if not isinstance(g, SymbolicZero)}
        names = tuple(name for name in ('hidden', 'kernel', 'bias') if name in differentiated)
        grads = dict(zip(names, run(_backward, operands, names, names=names), strict=True))
        return ({name: grads.get(name) for name in ('hidden', 'targets', 'kernel', 'bias') if name in operands},)

    values.defvjp(forward, backward, symbolic_zeros=True)
    return values(operands)


def scan_chunks(elements: int, function, carry, columns):
    """function(carry, columns) -> (carry, outputs), over chunks of the positions of columns {name: [B, T, ...]}.

    Each computes up to MAX_SAVED_LOGITS of `elements` logits, unless that makes more than MAX_CHUNKS. Chunks divide T
    and not B, whose rows are on different devices. The last chunk is padded with zeros.
    """
    B, T = next(iter(columns.values())).shape[:2]
    chunks = min(-(-elements // MAX_SAVED_LOGITS), MAX_CHUNKS, T)
    if chunks <= 1:
        return function(carry, columns)
    C = -(-T // chunks)

    def split(x):
        """[B, T, ...] -> [chunks, B, C, ...]"""
        x = jnp.pad(x, [(0, 0), (0, chunks * C - T)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(B, chunks, C, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(B, chunks * C, *x.shape[3:])[:, :T]

    carry, outputs = jax.lax.scan(function, carry, jax.tree.map(split, columns))
    return carry, jax.tree.map(join, outputs)


def _forward(operands, *, softcap, size, vocabulary, round_logits, max_saved):
    """(logprob, log_z, logits saved for the backward pass or None) on the columns of this shard."""
    hidden_BTD = operands['hidden']
    kernel_DV = operands['kernel'].astype(hidden_BTD.dtype)  # once, not in every chunk
    (B, T, _), V = hidden_BTD.shape, kernel_DV.shape[1]
    saved_dtype = jnp.float32 if B * T * V <= max_saved else hidden_BTD.dtype if round_logits else None

    def chunk(_, rows):
        out = logits(rows['hidden'], kernel_DV, operands.get('bias'), softcap)
        out = out if saved_dtype is None else out.astype(saved_dtype)
        first = vocabulary.first_id(V)
        logits_BCV = out.astype(jnp.float32)
        if size:
            logits_BCV = jnp.where((first + jnp.arange(V) < size)[None, None], logits_BCV, -jnp.inf)
        top = vocabulary.all_max(jnp.max(logits_BCV, axis=-1))
        total = jnp.sum(jnp.exp(logits_BCV - top[..., None]), axis=-1)
        column = rows['targets'][..., None] - first
        picked = jnp.take_along_axis(logits_BCV, jnp.clip(column, 0, V - 1), axis=-1)
        picked = jnp.where((column >= 0) & (column < V), picked, 0.0)[..., 0]  # 0 on all shards but the target's
        total, picked = vocabulary.all_sum((total, picked))
        log_z = jnp.log(total) + top
        return None, (picked - log_z, log_z, None if saved_dtype is None else out)

    elements = B * T * V if saved_dtype is None else 0
    return scan_chunks(elements, chunk, None, {name: operands[name] for name in ('hidden', 'targets')})[1]


def _backward(operands, *, softcap, size, vocabulary, names):
    """The gradients of the operands `names`, on the columns of this shard."""
    hidden_BTD, saved = operands['hidden'], operands.get('saved')
    dtype = hidden_BTD.dtype
    kernel_DV = operands['kernel'].astype(dtype)
    (B, T, D), V = hidden_BTD.shape, kernel_DV.shape[1]

    def chunk(sums, rows):
        out = rows['saved'].astype(jnp.float32) if 'saved' in rows else None
        out = logits(rows['hidden'], kernel_DV, operands.get('bias'), softcap) if out is None else out
        ids_V = vocabulary.first_id(V) + jnp.arange(V, dtype=jnp.int32)
        g_picked, g_log_z = (rows.get(name, jnp.zeros(1)[None]) for name in ('g_logprob', 'g_log_z'))
        # log p = logit of the target - log_z, and the gradient of log_z is the softmax.
        g = (g_log_z - g_picked)[..., None] * jnp.exp(out - rows['log_z'][..., None])
        g += jnp.where(ids_V[None, None] == rows['targets'][..., None], g_picked[..., None], 0.0)
        if softcap:
            g *= 1.0 - jnp.square(out / softcap)
        if size:
            g = jnp.where((ids_V < size)[None, None], g, 0.0)
        flat = g.astype(dtype).reshape(-1, V)
        new = {}
        if 'kernel' in sums:
            new['kernel'] = jnp.dot(rows['hidden'].reshape(-1, D).T, flat, preferred_element_type=jnp.float32)
        if 'bias' in sums:
            new['bias'] = jnp.sum(g, axis=(0, 1))
        sums = {name: total + new[name] for name, total in sums.items()}
        return sums, jnp.dot(flat, kernel_DV.T).reshape(rows['hidden'].shape) if 'hidden' in names else None

    per_position = ('hidden', 'targets', 'log_z', 'saved', 'g_logprob', 'g_log_z')
    rows = {name: operands[name] for name in per_position if name in operands}
    shapes = {'kernel': (D, V), 'bias': (V,)}
    zeros = {name: jnp.zeros(shapes[name], jnp.float32) for name in names if name != 'hidden'}
    sums, hidden = scan_chunks(B * T * V if saved is None else 0, chunk, zeros, rows)
    grads = {} if hidden is None else {'hidden': vocabulary.all_sum(hidden)}
    grads |= {name: total.astype(operands[name].dtype) for name, total in sums.items()}
    return tuple(grads[name] for name in names)


class Kernel(nn.Module):
    """The kernel of an untied head, float32 [D, V]."""

    model: Any

    @nn.compact
    def __call__(self):
        shape = self.model.width, self.model.vocab_size + self.model.vocab_fill
        return self.param('kernel', nn.initializers.normal(stddev(self.model.width)), shape, jnp.float32)


class MaskedHead(nn.Module):
    """BERT's transform before the decoder (arXiv 1810.04805): (norm(activation(dense(x))), float32 bias [V])."""

    model: Any

    @nn.compact
    def __call__(self, x):
        m = self.model
        x = Linear(m.width, 'head' in m.biases, stddev(m.width), name='dense')(x)
        x = (GATED | UNGATED)[m.activation](x)
        x = Norm(m.norm, m.norm_eps, 'norm' in m.biases, name='norm')(x)
        return x, self.param('bias', nn.initializers.zeros, (m.vocab_size,), jnp.float32)
