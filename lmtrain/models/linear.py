"""The one Linear and the one Embed: each uses the leaves of an adapter that it finds beside its own."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def stddev(width: int) -> float:
    """Standard deviation of initial weights: GPT-2's 0.02, less in models wider than 1,000.

    There sqrt(2 / 5D) is smaller (SmallInit, Nguyen and Salazar, arXiv 1910.05895): the first loss stays near ln V.
    """
    return min(0.02, math.sqrt(0.4 / width))


class Linear(nn.Module):
    """[..., D] -> [..., features]; the kernel is float32 [D, features], the product in the input's dtype.

    Found beside the kernel, each a leaf that `init` never makes:
      lora_a [D, R], lora_b [R, features], lora_scale []: adds scale (x a) b (LoRA, arXiv 2106.09685).
      lora_magnitude [features]: with them, the length of every column of kernel + scale a b (DoRA, arXiv 2402.09353);
        the norm it is divided by is held constant in the gradient (section 4.3 there).
      ia3_in [D], ia3_out [features]: factors of the input, and of the output with its bias (IA3, arXiv 2205.05638).
    """

    features: int
    bias: bool
    stddev: float

    @nn.compact
    def __call__(self, x, drop=None, product=None):
        """`drop` (x, name of this layer) -> x drops out what enters the low-rank path; None in evaluation.

        `product`: x . kernel [..., features], where `together` has made it; else it is made here.
        """
        kernel = self.param('kernel', nn.initializers.normal(self.stddev), (x.shape[-1], self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None
        a, ia3_in, ia3_out = (self.get_variable('params', name) for name in ('lora_a', 'ia3_in', 'ia3_out'))

        def flat(x):
            # One product of two matrices: XLA:CPU is twice as slow, forward and backward, on more dimensions.
            return x.reshape(-1, x.shape[-1])

        if ia3_in is not None:
            x = x * jnp.expand_dims(ia3_in.astype(x.dtype), range(x.ndim - 1))
        y = flat(x) @ kernel.astype(x.dtype) if product is None else flat(product)
        if a is not None:
            b, scale, magnitude = (self.get_variable('params', f'lora_{name}') for name in ('b', 'scale', 'magnitude'))
            low = flat(x if drop is None else drop(x, self.name)) @ a.astype(x.dtype)
            y += (low * scale.astype(x.dtype)) @ b.astype(x.dtype)
            if magnitude is not None:
                norm = column_norm(*map(jax.lax.stop_gradient, (kernel, a, b, scale)))
                y *= (magnitude / norm).astype(x.dtype)[None]
        if bias is not None:
            y += bias.astype(x.dtype)[None]
        if ia3_out is not None:
            y *= ia3_out.astype(x.dtype)[None]
        return y.reshape(*x.shape[:-1], self.features)


def shared_input_matmul(module: nn.Module, names: tuple[str, ...], x, columns) -> dict:
    """{name: x . kernel, [..., F]} of the Linears `names` inside `module`, which all read x; {} where each is alone.

    `columns` is Share.columns or None. A factor of the input (IA3) is one of each, so their inputs differ.
    """
    leaves = {} if columns is None else {name: module.get_variable('params', name) for name in names}
    if not leaves or any('ia3_in' in found for found in leaves.values()):
        return {}
    kernels = [found['kernel'].astype(x.dtype) for found in leaves.values()]
    return dict(zip(names, columns(x, kernels), strict=True))


def column_norm(kernel, a, b, scale):
    """float32 [..., features]: the norms of the columns of kernel + scale a b."""
    merged = kernel.astype(jnp.float32) + scale[..., None, None] * (a.astype(jnp.float32) @ b.astype(jnp.float32))
    # Under vmap, XLA:CPU of jax 0.10.2 to 0.12 fuses the product with the sum and reads what was never written
    # (github.com/jax-ml/jax/issues/39103 is of that kind); the barrier keeps them apart.
    return jnp.sqrt(jnp.sum(jnp.square(jax.lax.optimization_barrier(merged)), axis=-2))


class Embed(nn.Module):
    """Integers [...] -> rows [..., D] of a float32 table [rows, D]; called without integers, the table itself.

    Found beside the table: lora_a [rows, R], lora_b [R, D], lora_scale [], which add scale a[index] b. They are no part
    of the table itself, so a head that is tied to it stays as it was (as PEFT has it).
    """

    rows: int
    width: int

    @nn.compact
    def __call__(self, index=None, rows=None):
        """`rows` is Share.rows or None."""
        init = nn.initializers.normal(stddev(self.width))
        table = self.param('embedding', init, (self.rows, self.width), jnp.float32)
        if index is None:
            return table
        x, a = (rows(table, index) if rows else table[index]), self.get_variable('params', 'lora_a')
        if a is None:
            return x
        b, scale = (self.get_variable('params', name) for name in ('lora_b', 'lora_scale'))
        return x + scale.astype(x.dtype) * (a[index].astype(x.dtype) @ b.astype(x.dtype))
