"""FLOPs of a train step, from shapes: which matrix products run forward and backward, given what is trainable.

A product y = x W of activations x and a leaf W costs the same three times: forward, for the gradient of W (only if W is
trainable), and for the gradient of x (only if a leaf upstream of x is trainable). So a trained matrix costs 6 FLOPs per
parameter and token, a frozen one above a trainable embedding 4, and a frozen one below every trainable leaf 2.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain import tree
from lmtrain.adapt import leaves as adapter_leaves
from lmtrain.models import lm_head
from lmtrain.models.settings import HEAD_KINDS

PREFIX_NETWORK = ('prefix', 'prefix/up', 'prefix/down')  # parents of its leaves, in the order of its stages


class Flops(NamedTuple):
    """FLOPs of matrix products, over all devices. A multiplication and an addition are two.

    Attributes:
      forward, backward: of the model. MFU counts their sum (PaLM, arXiv 2204.02311, appendix B).
      again: what the backward pass recomputes to save memory.
      update: of the optimizer (Muon).
    """

    forward: float
    backward: float
    again: float
    update: float = 0.0

    @property
    def total(self) -> float:
        """Of the model, without recomputation and optimizer: for MFU, and for budgets in FLOPs."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """Of everything that the hardware executes."""
        return self.total + self.again + self.update


class Product(NamedTuple):
    """A product of activations [rows, inner] and a kernel [inner, outer]."""

    rows: float
    inner: int
    outer: int


# What reads the same input, by path: a product with the kernel there, FLOPs of a product of activations (float), or
# None: leaves without a matrix product. A model is a list of stages in the order of the forward pass.
ModelStage = dict[str, Product | float | None]


class _Leaves(NamedTuple):
    """What is trainable, and the matrices of adapters.

    Attributes:
      paths: of the trainable leaves. parents: the same without the last name.
      adapters: {path without /kernel: [(elements, whether trainable)] of the matrices next to it, in the order of use}.
    """

    paths: set[str]
    parents: set[str]
    adapters: Mapping[str, list[tuple[int, bool]]]

    def is_trainable(self, stage: ModelStage) -> bool:
        """Whether a trainable leaf reads the input of a stage."""
        return not self.parents.isdisjoint(stage)


def keys_per_query(model, seq_len: int, block: int | None) -> float:
    """The mean number of keys that a query is multiplied by.

    `block` queries in a row read the same range of keys: those that at least one of them attends to. None: all T keys.
    """
    if not model.causal:
        return seq_len
    block, window = block or seq_len, model.window or seq_len
    full = len(model.global_layers) / model.num_layers  # share of the layers without a window
    cells = 0
    for start in range(0, seq_len, block):
        stop = min(start + block, seq_len)
        first = max(0, start - window + 1)
        cells += (stop - start) * (stop - (1 - full) * first)
    return cells / seq_len


def flops_per_step(
    model,
    batch_size: int,
    seq_len: int,
    trainable: str = '.*',
    *,
    params: Mapping | None = None,
    classes: int | None = None,
    predicted: int | None = None,
    block: int | None = None,
    shares: int = 1,
    keep_logits: bool = False,
) -> Flops:
    """FLOPs of one train step, from the shapes of the model and of the leaves that adapters add.

    Args:
      model: has the attributes of the config's model section.
      batch_size: rows B. seq_len: tokens per row T.
      trainable: regex of the trainable paths.
      params: arrays or shapes; needed if layers are in segments or an adapter has leaves. None: the plain model.
      classes: outputs of an added head, which is used instead of the model's own.
      predicted: positions per row that the head reads (masked language modelling); None: all T.
      block: see `keys_per_query`. None counts all T keys, the convention of PaLM and nanoGPT, which our MFU uses; 1
        counts the keys that are attended to ("causal"); 128 counts what the XLA attention computes.
      shares: micro-batches times devices among which the logits are divided. The head computes a share of more than
        `lm_head.MAX_SAVED_LOGITS` logits again in the backward pass.
      keep_logits: logits are kept for the backward pass, however many there are.
    """
    m, flat = model, tree.flatten(params or {})
    sizes = tree.segment_sizes(params) if params else {'layers': m.num_layers}
    length, extra_keys = seq_len + adapter_leaves.virtual_tokens(flat), adapter_leaves.extra_keys(flat)
    matmuls = adapter_leaves.matmuls(flat)
    tokens, keys = batch_size * length, keys_per_query(m, length, block) + extra_keys
    virtual = {'prompt/embedding', 'prefix/embedding'} & flat.keys()
    prompt, prefix = _networks(flat) if virtual else ([], [])
    before: list[ModelStage] = [*prompt, {'embed': None, 'positions': None}, {'embed_norm': None}]
    layers = {name: _layer(m, name, tokens, keys) for name in sizes}
    after, logits = _head(m, flat, batch_size, seq_len if predicted is None else predicted, classes)
    leaves = _leaves(trainable, flat, matmuls, [*before, *layers.get('layers', ()), *after])

    of_prefix, _ = _backward(leaves, prefix, False)
    backward, flows = _backward(leaves, before, False)
    forward, backward, again = _forward(leaves, [*prefix, *before]), backward + of_prefix, 0.0
    for name, size in sizes.items():
        stages = layers[name]
        # A scan carries gradients down to its first layer, even if only leaves of its last layer need them.
        flows = flows or m.unroll < m.num_layers and any(leaves.is_trainable(stage) for stage in stages)
        through, flows = _backward(leaves, stages * size, flows)
        forward += size * _forward(leaves, stages)
        backward += through
        if through and m.remat != 'none':
            again += size * _recomputed(leaves, stages, m.remat)
    of_head, _ = _backward(leaves, after, flows)
    if of_head and not keep_logits and logits.rows * logits.outer > lm_head.MAX_SAVED_LOGITS * shares:
        again += _forward(leaves, after[-1:])
    return Flops(forward + _forward(leaves, after), backward + of_head, again)


def forward_flops(
    model, tokens: float, keys: float, outputs: float, *, params: Mapping | None = None, classes: int | None = None
) -> float:
    """FLOPs of a forward pass over positions of one row, in a plain model or with the leaves that adapters add.

    Networks that compute virtual tokens are not counted: an exported model has their output instead.

    Args:
      tokens: positions, virtual tokens included.
      keys: keys that each of them is multiplied by, without prefixes.
      outputs: positions that the head reads. A head that pools the row runs unless this is 0.
      params, classes: as in `flops_per_step`.
    """
    flat = tree.flatten(params or {})
    leaves = _leaves('', flat, adapter_leaves.matmuls(flat), [])
    segments = tree.segment_sizes(params) if params else {'layers': model.num_layers}
    keys += adapter_leaves.extra_keys(flat)
    layers = sum(size * _forward(leaves, _layer(model, name, tokens, keys)) for name, size in segments.items())
    after, _ = _head(model, flat, min(outputs, 1), max(outputs, 1), classes)
    return layers + _forward(leaves, after)


def _layer(model, name: str, tokens: float, keys: float) -> list[ModelStage]:
    m, at = model, f'{name}/attention'
    heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    up = ('gate', 'up') if 'glu' in m.activation else ('up',)
    return [
        {f'{at}_norm': None},
        {
            f'{at}/query': Product(tokens, m.width, heads),
            f'{at}/key': Product(tokens, m.width, kv_heads),
            f'{at}/value': Product(tokens, m.width, kv_heads),
        },
        # Prefixes are leaves of `at`, or the output of a network.
        {f'{at}/query_norm': None, f'{at}/key_norm': None, at: None} | dict.fromkeys(PREFIX_NETWORK),
        {'scores': 4.0 * tokens * heads * keys},
        {f'{at}/output': Product(tokens, heads, m.width)},
        {f'{name}/mlp_norm': None},
        {f'{name}/mlp/{kind}': Product(tokens, m.width, m.mlp_dim) for kind in up},
        {f'{name}/mlp/down': Product(tokens, m.mlp_dim, m.width)},
    ]


def _networks(leaves: Mapping[str, Any]) -> tuple[list[ModelStage], list[ModelStage]]:
    """The networks that compute a soft prompt and prefixes (`virtual_tokens.materialise`), as stages."""

    def stage(parent: str) -> ModelStage:
        kernel = leaves.get(f'{parent}/kernel')
        if kernel is None:
            return {parent: None}
        rows = leaves[f'{parent.partition("/")[0]}/embedding'].shape[0]
        return {parent: Product(rows, kernel.shape[0], math.prod(kernel.shape[1:]))}

    layers = sorted(path.rpartition('/')[0] for path in leaves if re.fullmatch(r'prompt/mlp_\d+/kernel', path))
    return [stage(parent) for parent in ('prompt', *layers)], [stage(parent) for parent in PREFIX_NETWORK]


def _head(
    model, leaves: Mapping, batch_size: float, positions: float, classes: int | None
) -> tuple[list[ModelStage], Product]:
    """(the stages after the layers, the product of the last one, which computes the logits)."""
    m, rows = model, batch_size * positions
    kernel = 'embed' if m.tied else 'head'
    outputs = m.vocab_size if m.head == 'lm' else m.num_labels
    if m.head != 'lm':
        kernel, rows = 'task_head/out', rows if HEAD_KINDS[m.head].per_token else batch_size
    if classes:
        kernel = next((path.rpartition('/')[0] for path in leaves if path.startswith('heads/')), 'heads/added')
    logits = Product(rows, m.width, classes or outputs)
    stages: list[ModelStage] = [
        {'final_norm': None},
        {'mlm_head/dense': Product(rows, m.width, m.width)} if m.mlm_head and not classes else {},
        {'mlm_head/norm': None},
        {kernel: logits},
    ]
    return stages, logits


def _leaves(trainable: str, leaves: Mapping[str, Any], matmuls: Mapping, stages: Sequence[ModelStage]) -> _Leaves:
    """Of {path: array or shape} and its `adapter_leaves.matmuls`; of {}, all leaves that a plain model may have."""
    known = leaves or {f'{path}/{leaf}' for stage in stages for path in stage for leaf in _own_leaves(path)}
    paths = {path for path in known if re.fullmatch(trainable, path)}
    adapters = {
        parent: [(leaves[path].shape[-2] * leaves[path].shape[-1], path in paths) for path in matrices]
        for parent, matrices in matmuls.items()
    }
    return _Leaves(paths, {path.rpartition('/')[0] for path in paths}, adapters)


def _own_leaves(path: str) -> tuple[str, ...]:
    """The names of the leaves that a plain model may have at a path."""
    if path.endswith('norm'):
        return 'scale', 'bias'
    return ('embedding',) if path in ('embed', 'positions') else ('kernel', 'bias')


def _forward(leaves: _Leaves, stages: Sequence[ModelStage]) -> float:
    total = 0.0
    for path, product in (item for stage in stages for item in stage.items()):
        if isinstance(product, Product):
            elements = product.inner * product.outer + sum(size for size, _ in leaves.adapters.get(path, ()))
            total += 2.0 * product.rows * elements
        else:
            total += product or 0.0
    return total


def _backward(leaves: _Leaves, stages: Sequence[ModelStage], flows: bool) -> tuple[float, bool]:
    """(FLOPs of the backward pass, whether gradients flow out at the end).

    `flows`: whether a leaf before the first stage is trainable, so that the gradient of its input is computed.
    """
    total = 0.0
    for stage in stages:
        for path, product in stage.items():
            if isinstance(product, Product):
                total += 2.0 * product.rows * _gradient_elements(leaves, path, product, flows)
            elif product and flows:
                total += 2 * product  # both operands are activations and have gradients
        flows = flows or leaves.is_trainable(stage)
    return total, flows


def _gradient_elements(leaves: _Leaves, path: str, product: Product, flows: bool) -> int:
    """Elements of the matrices at a path, each as often as a gradient is multiplied: of itself, and of its input."""
    trained = not leaves.paths.isdisjoint((f'{path}/kernel', f'{path}/embedding'))
    elements = product.inner * product.outer * (int(trained) + int(flows))
    for size, own in leaves.adapters.get(path, ()):  # the second matrix of a LoRA reads what the first gives
        elements += size * (int(own) + int(flows))
        flows = flows or own
    return elements


def _recomputed(leaves: _Leaves, stages: Sequence[ModelStage], remat: str) -> float:
    """FLOPs that a layer's backward pass recomputes."""
    if remat == 'full':  # no stage of the layer reads the last product, so it is not needed again
        return _forward(leaves, stages) - _forward(leaves, stages[-1:])
    return _forward(leaves, stages[3:4])  # 'dots' keeps all products but those of attention
