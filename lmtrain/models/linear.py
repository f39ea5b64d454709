"""Linear and Embed. Each also applies the adapter leaves that are next to its own, such as those of LoRA.

adapt/lora.py draws LoRA next to a kernel.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def stddev(width: int) -> float:
    """Standard deviation of initial weights: GPT-2's 0.02, less in models wider than 1,000.

    In those sqrt(2 / 5D) is smaller (SmallInit, Nguyen and Salazar, arXiv 1910.05895): the first loss stays near ln V.

    >>> stddev(768), round(stddev(4096), 4)
    (0.02, 0.0099)
    """
    return min(0.02, math.sqrt(0.4 / width))


class Linear(nn.Module):
    """[..., D] -> [..., features]; the kernel is float32 [D, features], the product in the input's dtype.

    Optional leaves next to the kernel, which `init` never creates:
      lora_a [D, R], lora_b [R, features], lora_scale []: adds scale (x a) b (LoRA, arXiv 2106.09685).
      lora_magnitude [features]: together with them, the norm of every column of kernel + scale a b (DoRA, arXiv
        2402.09353); the norm that it is divided by is constant in the gradient (section 4.3 of the paper).
      ia3_in [D], ia3_out [features]: factors of the input, and of the output with its bias (IA3, arXiv 2205.05638).
      transposed [features, D]: instead of the kernel, in the dtype of the product (inference.decode).
    """

    features: int
    bias: bool
    stddev: float

    @nn.compact
    def __call__(self, x, drop=None, product=None):
        """[..., features].

        Args:
          drop: (x, name of this layer) -> x, dropout of the input of the low-rank path; None in evaluation.
          product: x . kernel [..., features] from `shared_input_matmul`; None computes it here.
        """
        transposed, kernel = self.get_variable('params', 'transposed'), None
        if self.is_initializing() or product is None and transposed is None or self.has_variable('params', 'kernel'):
            init, size = nn.initializers.normal(self.stddev), (x.shape[-1], self.features)
            kernel = self.param('kernel', init, size, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None
        a, ia3_in, ia3_out = (self.get_variable('params', name) for name in ('lora_a', 'ia3_in', 'ia3_out'))

        shape = *x.shape[:-1], self.features
        if ia3_in is not None:
            x = x * jnp.expand_dims(ia3_in.astype(x.dtype), range(x.ndim - 1))
        # A product of two matrices: XLA:CPU takes twice as long, forward and backward, if x has more dimensions.
        flat = -1, x.shape[-1]
        if product is not None:
            y = product.reshape(-1, self.features)
        elif transposed is not None:
            y = few_rows(x.reshape(flat), transposed).astype(x.dtype)
        else:
            y = x.reshape(flat) @ kernel.astype(x.dtype)
        if a is not None:
            b, scale, magnitude = (self.get_variable('params', f'lora_{name}') for name in ('b', 'scale', 'magnitude'))
            low = (x if drop is None else drop(x, self.name)).reshape(flat) @ a.astype(x.dtype)
            y += (low * scale.astype(x.dtype)) @ b.astype(x.dtype)
            if magnitude is not None:
                norm = column_norm(*map(jax.lax.stop_gradient, (kernel, a, b, scale)))
                y *= (magnitude / norm).astype(x.dtype)[None]
        if bias is not None:
            y += bias.astype(x.dtype)[None]
        if ia3_out is not None:
            y *= ia3_out.astype(x.dtype)[None]
        return y.reshape(shape)


def few_rows(x, transposed):
    """float32 [B, F], x [B, D] . transposed [F, D] for a small B: on a CPU faster than x . kernel [D, F]."""
    x = x.astype(transposed.dtype)
    return jax.lax.dot_general(x, transposed, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def shared_input_matmul(module: nn.Module, sizes: dict[str, int], x, column_parallel) -> dict:
    """{name: x . kernel, [..., F]} of the Linears in `module`, which all read x; {} if each computes its own.

    Args:
      sizes: {name of a Linear: its features}.
      column_parallel: ShardingHooks.column_parallel or None. With IA3 every Linear scales its input by itself, so the
        inputs differ.

    An optional leaf of `module` replaces the kernels: joint [sum of features, D], all of them transposed.
    """
    joint = module.get_variable('params', 'joint')
    if joint is not None:
        y = few_rows(x.reshape(-1, x.shape[-1]), joint).astype(x.dtype)
        parts = jax.lax.split(y, tuple(sizes.values()), axis=1)
        return {name: part.reshape(*x.shape[:-1], -1) for name, part in zip(sizes, parts, strict=True)}
    if column_parallel is None:
        return {}
    names = tuple(sizes)
    leaves = {name: module.get_variable('params', name) for name in names}
    if any('ia3_in' in own for own in leaves.values()):
        return {}
    kernels = [own['kernel'].astype(x.dtype) for own in leaves.values()]
    return dict(zip(names, column_parallel(x, kernels), strict=True))


def column_norm(kernel, a, b, scale):
    """float32 [..., features]: the norms of the columns of kernel + scale a b."""
    merged = kernel.astype(jnp.float32) + scale[..., None, None] * (a.astype(jnp.float32) @ b.astype(jnp.float32))
    # Under vmap, XLA:CPU of jax 0.10.2 to 0.12 fuses the product with the sum and reads uninitialised memory
    # (a bug like github.com/jax-ml/jax/issues/39103); the barrier prevents the fusion.
    return jnp.sqrt(jnp.sum(jnp.square(jax.lax.optimization_barrier(merged)), axis=-2))


class Embed(nn.Module):
    """Integers [...] -> rows [..., D] of a float32 table [rows, D]; called without integers, the table itself.

    Optional leaves next to the table: lora_a [rows, R], lora_b [R, D], lora_scale [], which add scale a[index] b. They
    do not change the table itself, so a tied head does not see them (same as PEFT).
    """

    rows: int
    width: int

    @nn.compact
    def __call__(self, index=None, lookup=None):
        """`lookup` is ShardingHooks.vocab_parallel_lookup or None."""
        init = nn.initializers.normal(stddev(self.width))
        table = self.param('embedding', init, (self.rows, self.width), jnp.float32)
        if index is None:
            return table
        x, a = (lookup(table, index) if lookup else table[index]), self.get_variable('params', 'lora_a')
        if a is None:
            return x
        b, scale = (self.get_variable('params', name) for name in ('lora_b', 'lora_scale'))
        return x + scale.astype(x.dtype) * (a[index].astype(x.dtype) @ b.astype(x.dtype))
