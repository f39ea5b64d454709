"""What devices say to each other in a step: weights are gathered where a layer needs them, gradients summed once.

The compiler, led by the parameters' shardings alone, moves about 120 times the bytes that it must. So the loss and its
gradient are a `jax.shard_map` over the axes that divide the batch (`data`, `fsdp`, `sequence`), in which every exchange
is written down: FSDP gathers the leaves of a layer, once forward and once backward, and scatters their gradients
(ZeRO-3, Rajbhandari et al., arXiv 1910.02054); what is left to sum is summed at the end of the step. `tensor` is left
to the compiler, which divides heads and columns well, but for the exchanges here, which are made on its pieces, and
for products that read the same input, whose gradients it would sum one by one (Shoeybi et al., arXiv 1909.08053).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lmtrain import tree
from lmtrain.adapt.leaves import excluding_kernel, virtual_tokens
from lmtrain.models.hooks import ShardingHooks, VocabSharding
from lmtrain.parallel import sharding

BATCH_AXES = ('data', 'fsdp', 'sequence')  # the axes over which a batch is divided

# Recomputed in the backward pass: what was gathered, and its casts, which would keep it alive.
REFETCHED = {'custom_vjp_call', 'all_gather', 'convert_element_type'}


def shard_step(mesh: Mesh, specs: dict[str, P], dtype: str, function):
    """`function` on every device's share of a batch, its results summed over all of them.

    Args:
      specs: {path: how the leaf lies on the mesh} of all parameters.
      dtype: of the computation, in which weights travel; their gradients are summed in the leaf's own.
      function: (params, batch, key, share) -> (gradients, sums): `params` a tuple of trees, `gradients` a tree of some
        of their paths or None, `sums` any tree of scalars. `share` goes to the model's `apply`.

    Returns:
      (params, batch, key) -> (gradients lying as the parameters do, sums) on global arrays.
    """
    if mesh.size == 1:
        alone = ShardingHooks(kernel=sharding.kernel(mesh), capability=sharding.capability(mesh))
        return lambda params, batch, key: function(params, batch, key, alone)
    nested = mesh.shape['tensor'] > 1

    def laid(leaves, axes):
        """The tree of PartitionSpecs of `leaves`, of which only `axes` are named."""
        named = {path: P(*(a if a in axes else None for a in specs[path])) for path in tree.flatten(leaves)}
        return tree.unflatten(named)

    def summed(gradients):
        """Over the axes that do not divide a leaf: those that do have been, where it was scattered."""

        def one(path, gradient):
            axes = tuple(axis for axis in BATCH_AXES if axis not in specs[path] and mesh.shape[axis] > 1)
            return jax.lax.psum(gradient, axes) if axes else gradient

        return tree.unflatten({path: one(path, leaf) for path, leaf in tree.flatten(gradients).items()})

    def spread(params, batch, key):
        def on_device(params, batch, key):
            gradients, sums = function(params, batch, key, model_hooks(mesh, specs, dtype))
            if gradients is not None:
                gradients = _on_pieces(summed, laid(gradients, ('tensor',)), nested)(gradients)
            return gradients, jax.lax.psum(sums, BATCH_AXES)

        at = tuple(laid(leaves, BATCH_AXES) for leaves in params)
        gradients, _ = jax.eval_shape(function, params, batch, key, None)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(at, jax.tree.map(lambda x: sharding.column(mesh, x.ndim).spec, batch), P()),
            out_specs=(None if gradients is None else laid(gradients, BATCH_AXES), P()),
            axis_names=set(BATCH_AXES) if nested else set(mesh.axis_names),
            check_vma=False,
        )(params, batch, key)

    return spread


def model_hooks(mesh: Mesh, specs: dict[str, P], dtype: str) -> ShardingHooks:
    """What a model is told inside `over`."""
    nested = mesh.shape['tensor'] > 1

    def fetch(stack, leaves):
        prefix = f'{stack}/' if stack else ''
        whole = {}
        for path, leaf in tree.flatten(leaves).items():
            # A prefix that a network makes is no parameter: it lies nowhere in pieces.
            spec = specs.get(prefix + path, P())[1 if stack else 0 :]
            if 'fsdp' in spec:
                leaf = _gather(leaf, spec, dtype, nested)
            elif 'tensor' in spec:
                # Held, and its gradient with it, to the pieces that it lies in: a TPU's compiler may choose others.
                leaf = jax.lax.with_sharding_constraint(leaf, P(*spec))
            whole[path] = leaf
        return tree.unflatten(whole)

    def first(length):
        return length * jax.lax.axis_index('sequence').astype(jnp.int32)

    def everywhere(x):
        heads = P(None, None, 'tensor') if x.ndim == 4 else P()
        return _on_pieces(lambda x: jax.lax.all_gather(x, 'sequence', axis=1, tiled=True), heads, nested)(x)

    def columns(x, kernels, dtype=None):
        pieces = [P(None, 'tensor')] * len(kernels)
        rows = x.shape[:-1]

        def products(x, kernels):
            # Reshaped here and not outside, where a TPU's compiler may make the whole rows of it first.
            flat = x.reshape(-1, x.shape[-1])
            made = [jnp.dot(flat, kernel, preferred_element_type=dtype) for kernel in kernels]
            return [product.reshape(*rows, -1) for product in made]

        return jax.shard_map(
            products,
            in_specs=(P(), pieces),
            out_specs=[P(*[None] * len(rows), 'tensor')] * len(kernels),
            axis_names={'tensor'},
            check_vma=False,
        )(x, kernels)

    def on_heads(function):
        def attend(*operands):
            heads = P(None, None, 'tensor')
            at = {'in_specs': (heads,) * 3 + (P(),) * (len(operands) - 3), 'out_specs': heads}
            return jax.shard_map(function, **at, axis_names={'tensor'}, check_vma=False)(*operands)

        return attend

    def rows(table, index):
        return _rows(table, index, dtype)

    cut = mesh.shape['sequence'] > 1
    return ShardingHooks(
        fetch=fetch if mesh.shape['fsdp'] > 1 or nested else None,
        kept=kept,
        first=first if cut else None,
        everywhere=everywhere if cut else None,
        columns=columns if nested else None,
        vocabulary=vocabulary() if nested else VocabSharding(),
        rows=rows if nested else None,
        pinned=(lambda x: jax.lax.with_sharding_constraint(x, P())) if nested else None,
        kernel='' if cut else sharding.kernel(mesh),
        capability=sharding.capability(mesh),
        on_heads=on_heads if nested else None,
    )


def vocabulary() -> VocabSharding:
    """The pieces of `tensor`, inside `over`."""

    def spec(dimension):
        return P() if dimension is None else P(*[None] * dimension, 'tensor')

    def on(function, ins, outs):
        at = {'in_specs': (jax.tree.map(spec, ins, is_leaf=lambda x: x is None),), 'out_specs': tuple(map(spec, outs))}
        return jax.shard_map(function, **at, axis_names={'tensor'}, check_vma=False)

    return VocabSharding(
        on=on,
        first=lambda V: V * jax.lax.axis_index('tensor').astype(jnp.int32),
        total=lambda x: jax.lax.psum(x, 'tensor'),
        most=lambda x: jax.lax.pmax(x, 'tensor'),
    )


def unsupported_reason(kernel: str, seq_len: int, model, params, mesh) -> str:
    """The reason that a step cannot use an attention kernel, or ''. `params` are arrays or shapes."""
    if sharding.kernel(mesh) != kernel:
        platform = next(platform for platform, name in sharding.KERNELS.items() if name == kernel)
        return f'needs a {platform.upper()}, and the mesh has {mesh.devices.flat[0].device_kind}'
    return unsupported_on(kernel, seq_len, model, params, mesh, sharding.capability(mesh))


def unsupported_on(kernel: str, seq_len: int, model, params, mesh, capability: tuple[int, ...]) -> str:
    """`unsupported_reason` on devices of a CUDA compute capability that have the kernel; does not query the devices."""
    if mesh.shape['sequence'] > 1:
        return f'reads no keys of other devices, and mesh.sequence = {mesh.shape["sequence"]}'
    if path := excluding_kernel(params, kernel):
        return f'cannot read {path}, a leaf of the adapter'
    return model.obstacle(kernel, virtual_tokens(params) + seq_len, capability)


def kept(primitive, *_: Any, axis_name: Any = (), jaxpr: Any = None, **__: Any) -> bool:
    """The policy `Share.kept`: products and gathered keys stay."""
    if primitive.name == 'shard_map':
        return not any(inside.primitive.name == 'all_gather' for inside in jaxpr.eqns)
    return primitive.name not in REFETCHED or 'sequence' in axis_name


def _gather(leaf, spec, dtype, nested: bool):
    """The leaf, whole but for `tensor`. It travels in `dtype` if that is the smaller; its gradient in its own."""
    axis, wire = spec.index('fsdp'), _comm_dtype(dtype, leaf)
    pieces = P(*(name if name == 'tensor' else None for name in spec))

    def gather(x):
        return jax.lax.all_gather(x, 'fsdp', axis=axis, tiled=True)

    def scatter(g):
        return jax.lax.psum_scatter(g, 'fsdp', scatter_dimension=axis, tiled=True)

    @jax.custom_vjp
    def whole(x):
        return _on_pieces(gather, pieces, nested)(x.astype(wire)).astype(x.dtype)

    def backward(_, g):
        return (_on_pieces(scatter, pieces, nested)(g),)

    whole.defvjp(lambda x: (whole(x), None), backward)
    return whole(leaf)


def _rows(table, index, dtype):
    """table[index], of a table whose rows lie in pieces of `tensor`: a device gives the rows it has and zeros.

    Their sum is exact in any dtype, so they travel as `_gather` has it. The gradient of a row stays where the row is.
    """
    wire = _comm_dtype(dtype, table)
    pieces, on = P('tensor', None), {'axis_names': {'tensor'}, 'check_vma': False}

    def places(index, count):
        """Of the rows in the piece that is here; `count`, which is none, where a row is in another."""
        here = index - count * jax.lax.axis_index('tensor').astype(index.dtype)
        return jnp.where((here >= 0) & (here < count), here, count)

    def read(piece, index):
        found = piece.at[places(index, len(piece))].get(mode='fill', fill_value=0)
        return jax.lax.psum(found.astype(wire), 'tensor')

    def write(g, index):
        piece = jnp.zeros((table.shape[0] // jax.lax.axis_size('tensor'), table.shape[1]), g.dtype)
        return piece.at[places(index, len(piece))].add(g, mode='drop')

    @jax.custom_vjp
    def taken(table, index):
        return jax.shard_map(read, in_specs=(pieces, P()), out_specs=P(), **on)(table, index).astype(table.dtype)

    def backward(index, g):
        return jax.shard_map(write, in_specs=(P(), P()), out_specs=pieces, **on)(g, index), None

    taken.defvjp(lambda table, index: (taken(table, index), index), backward)
    return taken(table, index)


def _comm_dtype(dtype, leaf):
    """What a leaf travels in: the dtype of the computation, where that is the smaller."""
    return jnp.dtype(dtype) if jnp.dtype(dtype).itemsize < leaf.dtype.itemsize else leaf.dtype


def _on_pieces(function, at, nested: bool):
    """`function` of arrays that lie `at` on `tensor`, and its result too, on the pieces: the compiler moves none."""
    if not nested:
        return function
    return jax.shard_map(function, in_specs=(at,), out_specs=at, axis_names={'tensor'}, check_vma=False)
