"""The table of leaf kinds: which leaves adapters may add to a model, where, and how other modules treat them.

A layer uses the leaves that it finds next to its own, so a new kind of leaf is one row of `KINDS` and the layer that
reads it. These modules read the table:

    adapt/adapter.py             which leaves may be added, and where
    adapt/multi.py, adapt/peft/  neutral values and ranks of stacked adapters, and which leaves belong to an adapter
    parallel/sharding.py         partition rules
    parallel/vocab_padding.py    the dimension over the vocabulary
    cost/                        virtual tokens, extra keys, matrix products, and which leaves a task stores
    parallel/collectives.py      attention kernels that cannot read a leaf
    training/checks.py           mesh axes and packed rows that exclude a leaf

Two modules have names of leaves of their own: cost/memory.py, which of them keep the input of `mlp/down` for their
gradient, and inference/decode.py, with which of them kernels are joined or stored transposed.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from lmtrain import tree

FUSED_KERNELS = ('cudnn', 'splash')  # of models/attention_kernels.py: they require as many keys as queries
QKV_UP = r'layers[^/]*/(attention/(query|key|value)|mlp/(gate|up))'  # kernels with the axes ('fsdp', 'tensor')
OUT_DOWN = r'layers[^/]*/(attention/output|mlp/down)'  # kernels with the axes ('tensor', 'fsdp')


class LeafKind(NamedTuple):
    """One kind of leaf.

    Attributes:
      pattern: regex of the whole path.
      beside: the parent. Paths relative to the node that holds the leaf: one of them must be a leaf of the model, as
        'kernel' for a leaf next to the kernel of a Linear. () if `pattern` is a place at the root of the tree.
      neutral: the value with which the leaf changes nothing; None if there is none.
      rank_axis: the dimension that is padded with zeros to stack adapters of different ranks; None pads none.
      rules: partition rules (regex, mesh axis of every dimension). Several rules for one path are tried in order,
        and the first one counts whose axes divide the leaf. A leaf without a rule is replicated.
      kernels: the attention kernels that cannot read the leaf.
      mesh_axes: the axes of the mesh that must have one device if the leaf is present.
      is_matmul: whether every token is multiplied by the leaf [..., in, out]: 2 * in * out FLOPs each.
      token_axis: the dimension that counts virtual tokens, which precede the first document of every row.
      key_axis: the dimension that counts keys that every query attends to in addition.
      vocab_axis: the dimension over the vocabulary, if the leaf is next to the token embedding.
    """

    pattern: str
    beside: tuple[str, ...] = ()
    neutral: float | None = None
    rank_axis: int | None = None
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    kernels: tuple[str, ...] = ()
    mesh_axes: tuple[str, ...] = ()
    is_matmul: bool = False
    token_axis: int | None = None
    key_axis: int | None = None
    vocab_axis: int | None = None

    def fits(self, path: str, paths: Collection[str]) -> bool:
        """Whether a layer reads this leaf at `path`, in a model that has the leaves `paths`."""
        if not self.beside:
            return True
        parent = path.rpartition('/')[0]
        return _is_adaptable(path) and any(f'{parent}/{sibling}' in paths for sibling in self.beside)


# Low-rank leaves have the axes of the kernel dimension that they share. `fsdp` divides the rank only if it divides no
# other dimension, and the next rule applies if the rank is not a multiple of the axis.
KINDS = (
    LeafKind(
        r'.*/lora_a',  # [in, R]
        beside=('kernel', 'embedding'),
        neutral=0.0,
        rank_axis=-1,
        rules=(
            (f'{QKV_UP}/lora_a', (None, 'fsdp', None)),
            (f'{OUT_DOWN}/lora_a', (None, 'tensor', 'fsdp')),
            (f'{OUT_DOWN}/lora_a', (None, 'tensor', None)),
            ('embed/lora_a', (None, 'fsdp')),
            ('embed/lora_a', (None, None)),
        ),
        is_matmul=True,
        vocab_axis=0,
    ),
    LeafKind(
        r'.*/lora_b',  # [R, out]
        beside=('kernel', 'embedding'),
        neutral=0.0,
        rank_axis=-2,
        rules=(
            (f'{QKV_UP}/lora_b', (None, 'fsdp', 'tensor')),
            (f'{QKV_UP}/lora_b', (None, None, 'tensor')),
            (f'{OUT_DOWN}/lora_b', (None, None, 'fsdp')),
            ('embed/lora_b', (None, 'fsdp')),
        ),
        is_matmul=True,
    ),
    LeafKind(r'.*/lora_scale', beside=('kernel', 'embedding'), neutral=0.0),  # []
    LeafKind(r'.*/lora_magnitude', beside=('kernel',)),  # [out]; neutral is the norm of each column of the kernel
    LeafKind(r'.*/ia3_(in|out)', beside=('kernel',), neutral=1.0),  # [in], [out]
    LeafKind(  # [P, G, K]
        r'.*/prefix_(key|value)',
        beside=('key/kernel',),
        kernels=FUSED_KERNELS,
        mesh_axes=('sequence',),
        key_axis=-3,
    ),
    LeafKind(  # [P, D]; the network prefix/up, prefix/down computes the keys and values of every layer from it
        r'prefix/embedding',
        rules=(('prefix/embedding', (None, 'fsdp')),),
        kernels=FUSED_KERNELS,
        mesh_axes=('sequence',),
        key_axis=-2,
    ),
    LeafKind(
        r'prefix/(up|down)/(kernel|bias)',
        rules=(
            ('prefix/up/kernel', ('fsdp', None)),
            ('prefix/down/kernel', ('fsdp', None, None, None, None)),
            ('prefix/down/kernel', (None, None, None, None, None)),
        ),
    ),
    LeafKind(  # [P, D]
        r'prompt/embedding',
        rules=(('prompt/embedding', (None, 'fsdp')),),
        mesh_axes=('sequence',),
        token_axis=-2,
    ),
    LeafKind(  # the network of P-tuning
        r'prompt/mlp_\d+/(kernel|bias)',
        rules=(
            (r'prompt/mlp_\d+/kernel', ('fsdp', None)),
            (r'prompt/mlp_\d+/kernel', (None, None)),
        ),
    ),
    LeafKind(r'heads/\w+/(kernel|bias)'),  # [D, C], [C]
)

# The partition rules of all kinds, in the order of the table.
PARTITION_RULES = [rule for kind in KINDS for rule in kind.rules]


def kind_of(path: str) -> LeafKind | None:
    """The kind of the leaf at a path; None if it belongs to the model.

    >>> kind_of('layers/attention/query/lora_b').rank_axis
    -2
    >>> kind_of('layers/attention/query/kernel') is None
    True
    """
    return next((kind for kind in KINDS if re.fullmatch(kind.pattern, path)), None)


def adaptable(paths: Iterable[str]) -> list[str]:
    """The kernels and embeddings among `paths` that a leaf may stand beside: those that a Linear or Embed reads."""
    return [path for path in paths if path.endswith(('/kernel', '/embedding')) and _is_adaptable(path)]


def _is_adaptable(path: str) -> bool:
    # The head of a language model is no Linear, and neither is what adapters add at the root of the tree.
    roots = {kind.pattern.partition('/')[0] for kind in KINDS if not kind.beside}
    return path.partition('/')[0] not in {'head', *roots}


def vocab_axis(path: str) -> int | None:
    """The dimension over the vocabulary of an adapter's leaf; None for other leaves."""
    kind = kind_of(path) if path.startswith('embed/') else None
    return kind.vocab_axis if kind else None


def matmuls(paths: Collection[str]) -> dict[str, list[str]]:
    """{parent: paths of its leaves that every token is multiplied by, in the order of the table}."""
    parents: dict[str, list[str]] = {}
    for kind in KINDS:
        for path in paths:
            if kind.is_matmul and re.fullmatch(kind.pattern, path):
                parents.setdefault(path.rpartition('/')[0], []).append(path)
    return parents


def virtual_tokens(leaves: Mapping[str, Any]) -> int:
    """The number of virtual tokens in front of a row's first document; `leaves`: {path: array or shape}."""
    added = ((kind_of(path), leaf) for path, leaf in leaves.items())
    return sum(leaf.shape[kind.token_axis] for kind, leaf in added if kind and kind.token_axis is not None)


def extra_keys(leaves: Mapping[str, Any]) -> int:
    """The number of keys that every query attends to in addition to those of the row; `leaves` as before."""
    added = ((kind_of(path), leaf) for path, leaf in leaves.items())
    sizes = (leaf.shape[kind.key_axis] for kind, leaf in added if kind and kind.key_axis is not None)
    return max(sizes, default=0)


def excluding_kernel(params: Mapping, kernel: str) -> str:
    """The path of the first leaf that an attention kernel cannot read; '' if it can read all of them."""
    return next((path for path in tree.flatten(params) if (kind := kind_of(path)) and kernel in kind.kernels), '')


def excluding_axis(params: Mapping, axis: str) -> str:
    """The path of the first leaf with which a mesh axis must have one device; '' if there is none."""
    return next((path for path in tree.flatten(params) if (kind := kind_of(path)) and axis in kind.mesh_axes), '')
