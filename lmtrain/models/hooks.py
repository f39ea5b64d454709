"""Hooks through which sharding enters a model; the defaults compute on one device.

A model knows no mesh. Where it uses a parameter or the keys of other positions, it calls a hook; the explicit
collectives behind the hooks are in `lmtrain.parallel.collectives`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from lmtrain import tree


class VocabSharding(NamedTuple):
    """How the loss is computed if the vocabulary is sharded; the defaults are those of an unsharded vocabulary.

    Attributes:
      per_shard: (function, {argument: its sharded dimension or None}, tuple of the same for the results) -> the
        function, of a dict {argument: array}, executed once per shard. A result without a sharded dimension must be
        equal on all shards.
      first_id: V, the columns of this shard -> the id of the first one.
      all_sum, all_max: x -> the sum and the maximum over the shards.
    """

    per_shard: Callable[..., Callable] = lambda function, ins, outs: function
    first_id: Callable[[int], Any] = lambda V: 0
    all_sum: Callable[[Any], Any] = lambda x: x
    all_max: Callable[[Any], Any] = lambda x: x


class ShardingHooks(NamedTuple):
    """The hooks of one forward pass. None: nothing is sharded in that way.

    Attributes:
      gather_params: (stack, leaves) -> the same leaves, all-gathered: those of one layer of the stack `layers`,
        `layers_0`, ..., or, if `stack` is '', all that belong to no layer. It is called right before the leaves are
        used, so that only one layer is unsharded at a time.
      remat_policy: policy of jax.checkpoint that saves everything for the backward pass except gathered parameters.
      position_offset: T -> int32 [], the index in the whole row of the first of the T positions on this device.
      all_gather_sequence: [B, T, ...] -> [B, S, ...], the positions of this device -> all positions of the same rows.
      column_parallel: (x [..., D], kernels [D, F], dtype or None for that of x) -> the products [..., F] in that dtype,
        of kernels whose columns are sharded. The gradient of x is summed over the shards once, not once per kernel,
        and in the dtype of x.
      vocabulary: how the loss is computed on the columns of this shard.
      keep_logits: the loss of a bfloat16 model saves all logits for the backward pass, rounded to bfloat16, instead of
        computing them twice.
      vocab_parallel_lookup: (table [V, D], index [...]) -> table[index], of a table whose rows are sharded.
      constrain_activations: x -> x, constrained to the sharding of the batch. Without the constraint a compiler may
        shard what is between two layers further, and exchange it at every product.
      attention_kernel: the fused attention of these devices, a key of attention_kernels.KERNELS; '' if there is none.
      capability: CUDA compute capability of these devices, such as (9, 0); () if they have none.
      shard_heads: a function of (query, key, value [B, T, H, K], unsharded operands ...) -> [B, T, H, K] -> the same
        function, executed on the heads of each device; for kernels that no compiler can partition.
    """

    gather_params: Callable[[str, tree.Params], tree.Params] | None = None
    remat_policy: Callable[..., bool] | None = None
    position_offset: Callable[[int], Any] | None = None
    all_gather_sequence: Callable[[Any], Any] | None = None
    column_parallel: Callable[..., list] | None = None
    vocabulary: VocabSharding = VocabSharding()
    keep_logits: bool = False
    vocab_parallel_lookup: Callable[[Any, Any], Any] | None = None
    constrain_activations: Callable[[Any], Any] | None = None
    attention_kernel: str = ''
    capability: tuple[int, ...] = ()
    shard_heads: Callable[[Callable], Callable] | None = None


NO_SHARDING = ShardingHooks()
