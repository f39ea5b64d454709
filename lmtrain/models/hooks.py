"""What a model is told where it computes a share of a batch, with leaves and rows that lie in pieces."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lmtrain import tree


class VocabSharding(NamedTuple):
    """How a function computes on a piece of the vocabulary's columns; the defaults are those of one whole piece.

    Attributes:
      on: (function, {name: divided dimension of that argument or None}, tuple of the same for results) -> the function,
        of a dict {name: array}, run on the pieces. A result that is not divided must be equal on all of them.
      first: V -> id of the first of the V columns here.
      total, most: x -> the sum, and the largest, over the pieces.
    """

    on: Callable[..., Callable] = lambda function, ins, outs: function
    first: Callable[[int], Any] = lambda V: 0
    total: Callable[[Any], Any] = lambda x: x
    most: Callable[[Any], Any] = lambda x: x


class ShardingHooks(NamedTuple):
    """How what lies in pieces becomes whole; who cut it (lmtrain.parallel.collectives) knows where the pieces are.

    Attributes:
      fetch: (stack, leaves) -> leaves, whole: of one layer of the stack `layers`, `layers_0`, ..., or, where `stack` is
        '', of all that is outside the layers. Called where they are used, so that few are whole at once; None: all are.
      kept: policy of jax.checkpoint under which all is kept for the backward pass but what `fetch` has brought.
      first: T -> int32 [], the index in its row of the first of the T positions here; None: the rows are whole.
      everywhere: [B, T, ...] -> [B, S, ...], the positions that are here and all others of their rows.
      columns: (x [..., D], kernels [D, F], dtype or None, which is that of x) -> products [..., F] in it, of kernels
        whose columns lie in pieces: the gradient of x is summed once over the pieces, not for each kernel, and in the
        dtype of x. None: they are whole.
      vocabulary: how the loss head computes on the columns of the vocabulary that are here.
      keep_logits: the loss head of a bfloat16 model keeps all logits for the backward pass, rounded to bfloat16, and
        computes none twice.
      rows: (table [V, D], index [...]) -> table[index], of a table whose rows lie in pieces. None: it is whole.
      pinned: x -> x, held to lie as the rows of the batch do and in no smaller pieces; None: it does anyway. Else a
        compiler may divide what runs between two layers, and exchange it at every product.
      kernel: the fused attention that can be compiled here, of attend.KERNELS; '': none.
      capability: CUDA compute capability of the devices here, such as (9, 0); (): they have none.
      on_heads: a function (queries, keys, values [B, T, H, K], whole operands ...) -> [B, T, H, K] as the same function
        on the heads that are here, for what no compiler can divide. None: all are here.
    """

    fetch: Callable[[str, tree.Params], tree.Params] | None = None
    kept: Callable[..., bool] | None = None
    first: Callable[[int], Any] | None = None
    everywhere: Callable[[Any], Any] | None = None
    columns: Callable[..., list] | None = None
    vocabulary: VocabSharding = VocabSharding()
    keep_logits: bool = False
    rows: Callable[[Any, Any], Any] | None = None
    pinned: Callable[[Any], Any] | None = None
    kernel: str = ''
    capability: tuple[int, ...] = ()
    on_heads: Callable[[Callable], Callable] | None = None


NO_SHARDING = ShardingHooks()
