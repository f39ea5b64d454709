"""Explicit collectives of the train step: FSDP all-gathers a layer's parameters and reduce-scatters their gradients,
once per layer and direction.

Led by the parameters' shardings alone, XLA's partitioner moves about 120 times the necessary bytes. Therefore loss and
gradient are a `jax.shard_map` over the axes that divide the batch (`data`, `fsdp`, `sequence`), in which every
collective is explicit. FSDP gathers the parameters of one layer, once in the forward and once in the backward pass, and
reduce-scatters their gradients (ZeRO-3, Rajbhandari et al., arXiv 1910.02054). Gradients of parameters without an
`fsdp` dimension are summed once, at the end of the step.

The axis `tensor` stays with the partitioner, which divides heads and columns well, with two exceptions: the collectives
of this module, which run on the shards of `tensor`, and products that read the same input, whose gradients it would sum
one by one (Shoeybi et al., arXiv 1909.08053). `sharding.py` shows the mesh.
"""

import functools
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

# Primitives whose results are not saved for the backward pass: the all-gather of `_gather`, which is a custom_vjp_call,
# and casts, whose results would otherwise keep a copy of the gathered parameters alive.
NOT_SAVED = {'custom_vjp_call', 'all_gather', 'convert_element_type'}

# A shard_map over `tensor` alone, inside of that over BATCH_AXES. check_vma=False: the results without a sharded
# dimension are equal on all shards by construction (psum, all_gather), which the checker cannot always infer.
_TENSOR = {'axis_names': {'tensor'}, 'check_vma': False}


def shard_step(mesh: Mesh, specs: dict[str, P], dtype: str, function):
    """`function` of each device's part of a batch, with its results summed over all devices.

    Args:
      specs: {path: PartitionSpec} of all parameters.
      dtype: of the computation. Parameters are gathered in it; their gradients are summed in the dtype of the leaf.
      function: (params, batch, key, hooks) -> (gradients, sums): `params` a tuple of trees, `gradients` a tree with
        some of their paths or None, `sums` any tree of scalars. `hooks` are for the model's `apply`.

    Returns:
      (params, batch, key) -> (gradients with the shardings of the parameters, sums) on global arrays.
    """
    if mesh.size == 1:
        kernel = sharding.kernel(mesh)
        hooks = ShardingHooks(attention_kernel=kernel, capability=sharding.capability(mesh) if kernel else ())
        return lambda params, batch, key: function(params, batch, key, hooks)
    nested = mesh.shape['tensor'] > 1

    def specs_over(axes, leaves):
        """The tree of PartitionSpecs of `leaves`, reduced to `axes`."""
        reduced = {path: P(*(a if a in axes else None for a in specs[path])) for path in tree.flatten(leaves)}
        return tree.unflatten(reduced)

    def sum_gradients(gradients):
        """Sums over the axes that do not shard a leaf: over the others, `_gather` has summed in its reduce-scatter."""

        def one(path, gradient):
            axes = tuple(axis for axis in BATCH_AXES if axis not in specs[path] and mesh.shape[axis] > 1)
            return jax.lax.psum(gradient, axes) if axes else gradient

        return tree.unflatten({path: one(path, leaf) for path, leaf in tree.flatten(gradients).items()})

    def sharded(params, batch, key):
        def on_device(params, batch, key):
            gradients, sums = function(params, batch, key, model_hooks(mesh, specs, dtype))
            if gradients is not None:
                gradients = _per_tensor_shard(sum_gradients, specs_over(('tensor',), gradients), nested)(gradients)
            return gradients, jax.lax.psum(sums, BATCH_AXES)

        param_specs = tuple(specs_over(BATCH_AXES, leaves) for leaves in params)
        gradients, _ = jax.eval_shape(function, params, batch, key, None)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(param_specs, jax.tree.map(lambda on: on.spec, sharding.columns(mesh, batch)), P()),
            out_specs=(None if gradients is None else specs_over(BATCH_AXES, gradients), P()),
            axis_names=set(BATCH_AXES) if nested else set(mesh.axis_names),
            check_vma=False,
        )(params, batch, key)

    return sharded


def shard_forward(mesh: Mesh, specs: dict[str, P], dtype: str, function):
    """`function` of each device's part of a batch: the forward pass of `shard_step`, with a result for each row.

    Args:
      function: (params, batch, hooks) -> tree of arrays [B, T].

    Returns:
      (params, batch) -> the same tree of global arrays, with the sharding of the columns of a batch.
    """
    if mesh.size == 1:
        kernel = sharding.kernel(mesh)
        hooks = ShardingHooks(attention_kernel=kernel, capability=sharding.capability(mesh) if kernel else ())
        return lambda params, batch: function(params, batch, hooks)
    nested = mesh.shape['tensor'] > 1

    def sharded(params, batch):
        axes = {path: P(*(a if a in BATCH_AXES else None for a in specs[path])) for path in tree.flatten(params)}
        return jax.shard_map(
            lambda params, batch: function(params, batch, model_hooks(mesh, specs, dtype)),
            mesh=mesh,
            in_specs=(tree.unflatten(axes), jax.tree.map(lambda on: on.spec, sharding.columns(mesh, batch))),
            out_specs=sharding.column(mesh, 2).spec,
            axis_names=set(BATCH_AXES) if nested else set(mesh.axis_names),
            check_vma=False,
        )(params, batch)

    return sharded


def model_hooks(mesh: Mesh, specs: dict[str, P], dtype: str) -> ShardingHooks:
    """The hooks of a model inside of `shard_step`; an axis of one device needs none."""
    tensor, sequence = mesh.shape['tensor'] > 1, mesh.shape['sequence'] > 1
    return ShardingHooks(
        gather_params=_gather_params(specs, dtype, tensor) if mesh.shape['fsdp'] > 1 or tensor else None,
        remat_policy=remat_policy,
        position_offset=_position_offset if sequence else None,
        all_gather_sequence=functools.partial(_all_gather_sequence, nested=tensor) if sequence else None,
        column_parallel=_column_parallel if tensor else None,
        vocabulary=vocab_sharding() if tensor else VocabSharding(),
        vocab_parallel_lookup=functools.partial(_vocab_parallel_lookup, dtype=dtype) if tensor else None,
        constrain_activations=_replicate_over_tensor if tensor else None,
        attention_kernel='' if sequence else sharding.kernel(mesh),
        capability=sharding.capability(mesh),
        shard_heads=_shard_heads if tensor else None,
    )


def _gather_params(specs: dict[str, P], dtype: str, nested: bool):
    """ShardingHooks.gather_params."""

    def gather_params(stack, leaves):
        prefix = f'{stack}/' if stack else ''
        gathered = {}
        for path, leaf in tree.flatten(leaves).items():
            # The prefixes that a network computes are not parameters: they have no spec and are not sharded. Inside of
            # a scan a leaf lacks the first dimension of its spec, that of the stacked layers.
            spec = specs.get(prefix + path, P())[1 if stack else 0 :]
            if 'fsdp' in spec:
                leaf = _gather(leaf, spec, dtype, nested)
            elif 'tensor' in spec:
                # Constrains the leaf and its gradient to the spec, since the TPU compiler may choose another sharding.
                leaf = jax.lax.with_sharding_constraint(leaf, P(*spec))
            gathered[path] = leaf
        return tree.unflatten(gathered)

    return gather_params


def _position_offset(length):
    """ShardingHooks.position_offset."""
    return length * jax.lax.axis_index('sequence').astype(jnp.int32)


def _all_gather_sequence(x, nested: bool):
    """ShardingHooks.all_gather_sequence: of keys and values [B, T, G, K], on the heads of each shard of `tensor`."""
    spec = P(None, None, 'tensor') if x.ndim == 4 else P()
    return _per_tensor_shard(lambda x: jax.lax.all_gather(x, 'sequence', axis=1, tiled=True), spec, nested)(x)


def _column_parallel(x, kernels, dtype=None):
    """ShardingHooks.column_parallel. The gradient of the replicated x is one psum, that of this shard_map."""
    rows = x.shape[:-1]

    def products(x, kernels):
        # Reshaped inside: outside, the TPU compiler may unshard the products of whole rows first.
        flat = x.reshape(-1, x.shape[-1])
        return [jnp.dot(flat, kernel, preferred_element_type=dtype).reshape(*rows, -1) for kernel in kernels]

    column_specs = [P(None, 'tensor')] * len(kernels)
    out_specs = [P(*[None] * len(rows), 'tensor')] * len(kernels)
    return jax.shard_map(products, in_specs=(P(), column_specs), out_specs=out_specs, **_TENSOR)(x, kernels)


def _replicate_over_tensor(x):
    """ShardingHooks.constrain_activations: the batch is sharded by the outer shard_map already."""
    return jax.lax.with_sharding_constraint(x, P())


def _shard_heads(function):
    """ShardingHooks.shard_heads."""

    def on_shards(*operands):
        heads = P(None, None, 'tensor')
        in_specs = (heads,) * 3 + (P(),) * (len(operands) - 3)
        return jax.shard_map(function, in_specs=in_specs, out_specs=heads, **_TENSOR)(*operands)

    return on_shards


def vocab_sharding() -> VocabSharding:
    """The shards of `tensor`, inside of `shard_step`."""

    def spec(dimension):
        return P() if dimension is None else P(*[None] * dimension, 'tensor')

    def per_shard(function, ins, outs):
        in_specs = (jax.tree.map(spec, ins, is_leaf=lambda x: x is None),)
        return jax.shard_map(function, in_specs=in_specs, out_specs=tuple(map(spec, outs)), **_TENSOR)

    return VocabSharding(
        per_shard=per_shard,
        first_id=lambda V: V * jax.lax.axis_index('tensor').astype(jnp.int32),
        all_sum=lambda x: jax.lax.psum(x, 'tensor'),
        all_max=lambda x: jax.lax.pmax(x, 'tensor'),
    )


def unsupported_reason(kernel: str, seq_len: int, model, params, mesh, *, members: int = 1) -> str:
    """The reason that a step cannot use an attention kernel, or ''.

    Args:
      params: arrays or shapes.
      members: of a sweep, over which the step is vmapped.
    """
    # jax 0.10 to 0.12: the batching rule of cuDNN's attention reshapes a mask of one head to all heads, a TypeError.
    if kernel == 'cudnn' and members > 1:
        return f'does not support the {members} members of a sweep'
    if sharding.kernel(mesh) != kernel:
        platform = next(platform for platform, name in sharding.PLATFORM_KERNELS.items() if name == kernel)
        return f'needs a {platform.upper()}, and the mesh has {mesh.devices.flat[0].device_kind}'
    return unsupported_on(kernel, seq_len, model, params, mesh, sharding.capability(mesh))


def unsupported_on(kernel: str, seq_len: int, model, params, mesh, capability: tuple[int, ...]) -> str:
    """`unsupported_reason` on devices of a CUDA compute capability that have the kernel; does not query the devices."""
    if mesh.shape['sequence'] > 1:
        return f'does not read keys of other devices, and mesh.sequence = {mesh.shape["sequence"]}'
    if path := excluding_kernel(params, kernel):
        return f'cannot read {path}, a leaf of the adapter'
    return model.unsupported_reason(kernel, virtual_tokens(tree.flatten(params)) + seq_len, capability)


def remat_policy(primitive, *_: Any, axis_name: Any = (), jaxpr: Any = None, **__: Any) -> bool:
    """ShardingHooks.remat_policy: whether to save a result: products and gathered keys, but not gathered parameters."""
    if primitive.name == 'shard_map':
        return not any(inside.primitive.name == 'all_gather' for inside in jaxpr.eqns)
    return primitive.name not in NOT_SAVED or 'sequence' in axis_name


def _gather(leaf, spec, dtype, nested: bool):
    """The leaf all-gathered over `fsdp`, still sharded over `tensor`.

    A custom_vjp for two reasons. The derivative of an all-gather of casts would reduce-scatter the gradient in the
    dtype of the communication; here it is summed in that of the leaf. And `remat_policy` can recognise the call as a
    whole: the gathered leaf is never a residual.
    """
    axis, comm_dtype = spec.index('fsdp'), _comm_dtype(dtype, leaf)
    tensor_spec = P(*(name if name == 'tensor' else None for name in spec))

    def all_gather(x):
        return jax.lax.all_gather(x, 'fsdp', axis=axis, tiled=True)

    def reduce_scatter(g):
        return jax.lax.psum_scatter(g, 'fsdp', scatter_dimension=axis, tiled=True)

    @jax.custom_vjp
    def gather(x):
        return _per_tensor_shard(all_gather, tensor_spec, nested)(x.astype(comm_dtype)).astype(x.dtype)

    def backward(_, g):
        return (_per_tensor_shard(reduce_scatter, tensor_spec, nested)(g),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(leaf)


def _vocab_parallel_lookup(table, index, dtype):
    """ShardingHooks.vocab_parallel_lookup: each shard of `tensor` reads the rows that it has and zeros for the others.

    The sum over the shards is exact in any dtype, because all but one of its terms are zero; so rows are communicated
    in the dtype of `_gather`. The custom_vjp leaves the gradient of a row on the shard of that row, in the dtype of the
    gradient: the backward pass communicates nothing.
    """
    comm_dtype, table_spec = _comm_dtype(dtype, table), P('tensor', None)

    def local(index, count):
        """Index in the `count` rows of this shard; `count`, which is out of range, if another shard has the row."""
        own = index - count * jax.lax.axis_index('tensor').astype(index.dtype)
        return jnp.where((own >= 0) & (own < count), own, count)

    def read(shard, index):
        rows = shard.at[local(index, len(shard))].get(mode='fill', fill_value=0)
        return jax.lax.psum(rows.astype(comm_dtype), 'tensor')

    def scatter_add(g, index):
        shard = jnp.zeros((table.shape[0] // jax.lax.axis_size('tensor'), table.shape[1]), g.dtype)
        return shard.at[local(index, len(shard))].add(g, mode='drop')

    @jax.custom_vjp
    def lookup(table, index):
        rows = jax.shard_map(read, in_specs=(table_spec, P()), out_specs=P(), **_TENSOR)(table, index)
        return rows.astype(table.dtype)

    def backward(index, g):
        return jax.shard_map(scatter_add, in_specs=(P(), P()), out_specs=table_spec, **_TENSOR)(g, index), None

    lookup.defvjp(lambda table, index: (lookup(table, index), index), backward)
    return lookup(table, index)


def _comm_dtype(dtype, leaf):
    """The dtype in which a leaf is communicated: the smaller of that of the computation and its own."""
    return jnp.dtype(dtype) if jnp.dtype(dtype).itemsize < leaf.dtype.itemsize else leaf.dtype


def _per_tensor_shard(function, spec, nested: bool):
    """`function` of arrays with the `spec` over `tensor`, which its result has too, executed once per shard.

    Otherwise the partitioner could unshard the operands of the collectives in `function`.
    """
    if not nested:
        return function
    return jax.shard_map(function, in_specs=(spec,), out_specs=spec, **_TENSOR)
