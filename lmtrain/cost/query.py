"""FLOPs of one query by arithmetic, and the bytes of its cached prompt."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmtrain import tree
from lmtrain.adapt import leaves as adapter_leaves
from lmtrain.cost.flops import forward_flops
from lmtrain.models import virtual_tokens


class Query(NamedTuple):
    """Tokens of a query, means over rows. They are not padded.

    Attributes:
      row: read for this query alone: its text up to the answer, and demonstrations that were retrieved for it.
      shared: before them, the same in every query: instruction and fixed demonstrations.
      choices: of every answer whose likelihood is compared; () without choices.
      generated: of a generated answer.
      classes: outputs of an added head that answers in place of the model's own; None if there is none.
    """

    row: float
    shared: float = 0.0
    choices: Sequence[float] = ()
    generated: float = 0.0
    classes: int | None = None

    @property
    def tokens(self) -> float:
        """All tokens that are read or generated."""
        return self.shared + self.row + sum(self.choices) + self.generated


class QueryFlops(NamedTuple):
    """FLOPs of matrix products in one query.

    Attributes:
      shared: to encode what is the same in every query: virtual tokens, instruction and fixed demonstrations.
      row: to read the rest of the prompt after it, and the choices.
      decode: to generate the answer.
      whole: of a query for which nothing was encoded before: the prompt is one text, and a masked language model
        cannot encode a part of it alone.
    """

    shared: float
    row: float
    decode: float
    whole: float

    @property
    def cached(self) -> float:
        """Of a query if keys and values of the shared tokens are kept."""
        return self.row + self.decode


def query_flops(model, params: Mapping, query: Query) -> QueryFlops:
    """FLOPs of one query of a model as it is exported: merged LoRA matrices and networks cost nothing.

    Every position is multiplied by all keys that the cache holds in the end, the convention of `flops_per_step`. The
    first token of an answer is predicted by the last one of the prompt, and the last one is not read.

    Args:
      params: arrays or shapes, with the leaves of adapters.
    """
    params = exported(params)
    virtual = adapter_leaves.virtual_tokens(tree.flatten(params))
    before, classes = virtual + query.shared, query.classes

    def read(tokens: float, keys: float, outputs: float) -> float:
        return forward_flops(model, tokens, keys, outputs, params=params, classes=classes) if tokens > 0 else 0.0

    context, every = before + query.row, classes and query.row  # an added head reads all positions of the row
    choices = sum(read(n - 1, context + n - 1, n - 1) for n in query.choices)
    if not model.causal:
        whole = read(context, context, every or 1)
        return QueryFlops(0.0, whole, 0.0, whole)
    row = read(query.row, context, every or 1)
    steps = query.generated - 1
    decode = read(steps, context + steps, steps)
    shared = read(before, before, 0)
    return QueryFlops(shared, row + choices, decode, read(context, context, every or 1) + choices + decode)


def exported(params: Mapping) -> tree.Params:
    """The shapes of parameters in which networks of virtual tokens are replaced by their output, and LoRA is merged."""
    shapes = jax.eval_shape(virtual_tokens.materialise, params)
    leaves = tree.flatten(shapes)
    matrices = {path for paths in adapter_leaves.matmuls(leaves).values() for path in paths}
    return tree.unflatten({path: leaf for path, leaf in leaves.items() if path not in matrices})


def cache_bytes(model, tokens: float) -> int:
    """Bytes of the keys and values of `tokens` tokens in all layers, in the dtype of the computation."""
    elements = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    return round(tokens * elements * jnp.dtype(model.dtype).itemsize)
