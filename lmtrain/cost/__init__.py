"""What training costs by arithmetic: FLOPs that know what is frozen, memory, and the steps of a budget."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax

from lmtrain import tree
from lmtrain.errors import InputError

# Dense peak of one JAX device in bfloat16 and in float32 as JAX multiplies it by default (TPU: bfloat16 passes; NVIDIA
# from Ampere on: TF32), FLOP/s. First match of device_kind wins. Sources: jax._src.tpu_info and the data sheets of
# Google and NVIDIA, without sparsity. A device of TPU v2, v3 and 7x is one core, half a chip.
PEAKS = (
    (r'TPU v2', 23e12, 23e12),
    (r'TPU v3', 61.5e12, 61.5e12),
    (r'TPU v4 lite', 137e12, 137e12),
    (r'TPU v4', 275e12, 275e12),
    (r'TPU (v5e|v5 lite)', 197e12, 197e12),
    (r'TPU (v5p|v5)', 459e12, 459e12),
    (r'TPU (v6e|v6 lite)', 918e12, 918e12),
    (r'TPU ?(7x|v7x|v7)', 1153.5e12, 1153.5e12),
    (r'.*\bGB200\b.*', 2500e12, 1250e12),
    (r'.*\bGB300\b.*', 2500e12, 1250e12),
    (r'.*\bB200\b.*', 2250e12, 1125e12),
    (r'.*\bB300\b.*', 2250e12, 1125e12),
    (r'.*\bGH200\b.*', 989.5e12, 494.7e12),
    (r'.*\bH200 NVL\b.*', 835e12, 417e12),
    (r'.*\bH200\b.*', 989.5e12, 494.7e12),
    (r'.*\bH100 PCIe\b.*', 756e12, 378e12),
    (r'.*\bH100 NVL\b.*', 835e12, 417e12),
    (r'.*\bH100\b.*', 989.5e12, 494.7e12),
    (r'.*\bA100\b.*', 312e12, 156e12),
    (r'.*\bA10G\b.*', 70e12, 35e12),
    (r'.*\bA40\b.*', 149.7e12, 74.8e12),
    (r'.*\bA10\b.*', 125e12, 62.5e12),
    (r'.*\bL40S\b.*', 362e12, 183e12),
    (r'.*\bL4\b.*', 121e12, 60e12),
    (r'.*RTX 5090\b.*', 209.5e12, 104.8e12),
    (r'.*RTX 4090\b.*', 165.2e12, 82.6e12),
    (r'.*RTX 4080\b.*', 97.5e12, 48.7e12),
    (r'.*RTX 3090\b.*', 71e12, 35.6e12),
    (r'.*RTX A6000\b.*', 154.8e12, 77.4e12),
)
HEAD_WHOLE, HEAD_CHUNKS = 2**22, 8  # WHOLE and CHUNKS of lmtrain.models.head, which computes logits
BUDGETS = ('steps', 'tokens', 'flops', 'hours')


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that one device of `jax.Device.device_kind` could reach in 'bfloat16' or 'float32'; None where unknown."""
    for pattern, bfloat16, float32 in PEAKS:
        if re.fullmatch(pattern, device_kind):
            return {'bfloat16': bfloat16, 'float32': float32}.get(str(dtype))
    return None


class Flops(NamedTuple):
    """FLOPs of matrix products, over all devices. A multiplication and an addition are two.

    Attributes:
      forward, backward: what the mathematics asks for; their sum is what MFU counts (PaLM, arXiv 2204.02311, B).
      again: what the backward pass computes a second time to save memory. update: what the optimizer multiplies.
    """

    forward: float
    backward: float
    again: float
    update: float = 0.0

    @property
    def total(self) -> float:
        """Of the model, without what is computed twice: MFU, and budgets in FLOPs."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """With both: what the hardware does."""
        return self.total + self.again + self.update


def keys_per_query(model, seq_len: int, block: int | None) -> float:
    """Keys that a query is multiplied with, on average, where blocks of `block` queries read one range of keys."""
    if not model.causal:
        return seq_len
    block, window = block or seq_len, model.window or seq_len
    full = len(getattr(model, 'global_layers', ())) / model.num_layers  # of the layers, where the others have a window
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
    """FLOPs of one train step from the shapes of the model and of the leaves that adapters add.

    A weight gradient is counted where the kernel learns, an input gradient where something before it does: all
    matrices learning cost 6 FLOPs a parameter and token, frozen ones under a learning embedding 4.

    Args:
      model: has the attributes of the config's model section.
      batch_size: rows B. seq_len: tokens of a row T.
      trainable: regex of the paths that learn.
      params: arrays or shapes, where layers are in segments or an adapter has leaves; None is the plain model.
      classes: outputs of an added head that is read in the place of the model's own.
      predicted: positions of a row that the head reads (masked language modelling); None is all T.
      block: queries that read one range of keys in causal attention. None counts all T keys, PaLM's and nanoGPT's
        convention and the one of our MFU; 1 counts the keys seen ("causal"); 128 what the XLA attention computes.
      shares: parts of the logits, micro-batches times devices that divide them; from a size on each is computed twice.
      keep_logits: unless the head keeps them.
    """
    m, leaves = model, tree.flatten(params or {})
    prompt = leaves['prompt/embedding'].shape[0] if 'prompt/embedding' in leaves else 0
    prefix = next((leaf.shape[1] for path, leaf in leaves.items() if path.endswith('/prefix_key')), 0)
    rows = batch_size * (seq_len if predicted is None else predicted)
    tokens, keys = batch_size * (seq_len + prompt), keys_per_query(m, seq_len + prompt, block) + prefix
    heads, kv_heads = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    up = ('gate', 'up') if 'glu' in m.activation else ('up',)
    segments = {'layers': m.num_layers}
    if params:
        segments = {name: next(iter(tree.flatten(params[name]).values())).shape[0] for name in tree.segments(params)}
    outputs = classes or (m.vocab_size if getattr(m, 'head', 'lm') == 'lm' else m.num_labels)

    # Stages in the order of the forward pass; what stands in one stage reads the same input: {path: (n, in, out)} of
    # the product of [n, in] by [in, out], or FLOPs of products of activations, or None.
    def layer(name: str) -> list[dict]:
        at = f'{name}/attention'
        return [
            {f'{at}_norm': None},
            {
                f'{at}/query': (tokens, m.width, heads),
                f'{at}/key': (tokens, m.width, kv_heads),
                f'{at}/value': (tokens, m.width, kv_heads),
            },
            {f'{at}/query_norm': None, f'{at}/key_norm': None, at: None},  # and prefixes, leaves of `at`
            {'scores': 4.0 * tokens * heads * keys},
            {f'{at}/output': (tokens, heads, m.width)},
            {f'{name}/mlp_norm': None},
            {f'{name}/mlp/{kind}': (tokens, m.width, m.mlp_dim) for kind in up},
            {f'{name}/mlp/down': (tokens, m.mlp_dim, m.width)},
        ]

    head = 'embed' if m.tied else 'head'
    if m.head != 'lm':
        head, rows = 'task_head/out', batch_size if m.head == 'classify' else rows
    if classes:
        head = next((path.rpartition('/')[0] for path in leaves if path.startswith('heads/')), 'heads/added')
    before = [{'embed': None, 'positions': None, 'prompt': None}, {'embed_norm': None}]
    after = [
        {'final_norm': None},
        {'mlm_head/dense': (rows, m.width, m.width)} if m.mlm_head and not classes else {},
        {'mlm_head/norm': None},
        {head: (rows, m.width, outputs)},
    ]

    known = leaves
    if not params:  # whatever a regex may name
        stages = [*before, *layer('layers'), *after]
        known = {f'{path}/{leaf}' for stage in stages for path in stage for leaf in _own_leaves(path)}
    learning = {path for path in known if re.fullmatch(trainable, path)}
    places = {path.rpartition('/')[0] for path in learning}

    def forward(path: str, product) -> float:
        """A product, and the low-rank path beside it."""
        if not isinstance(product, tuple):
            return product or 0.0
        n, inner, outer = product
        return 2.0 * n * (inner * outer + _rank(leaves, path) * (inner + outer))

    def backward(path: str, product, flows: bool) -> float:
        if not isinstance(product, tuple):
            return 2 * (product or 0.0) * flows  # of two activations: both have gradients, or none
        n, inner, outer = product
        learned = f'{path}/kernel' in learning or f'{path}/embedding' in learning
        low, rank = f'{path}/lora_a' in learning, _rank(leaves, path)
        low_rank = outer * (low or flows) + (inner + outer) * low + inner * flows
        return 2.0 * n * (inner * outer * (learned + flows) + rank * low_rank)

    def total(stages) -> float:
        return sum(forward(path, product) for stage in stages for path, product in stage.items())

    flows = False  # whether something upstream learns, so that gradients must come this far

    def walk(stages) -> float:
        """FLOPs of the backward pass through stages."""
        nonlocal flows
        found = 0.0
        for stage in stages:
            found += sum(backward(path, product, flows) for path, product in stage.items())
            flows = flows or any(path in places for path in stage)
        return found

    walk(before)
    of_layers, again, ahead = 0.0, 0.0, 0.0
    for name, size in segments.items():
        stages = layer(name)
        # A scan carries gradients to its first layer even where nothing before that layer's last leaf learns.
        flows = flows or m.unroll < m.num_layers and any(path in places for stage in stages for path in stage)
        found, of_layer = walk(stages * size), total(stages)
        # The last product of a layer is no one's input within it; 'dots' keeps products of weights alone.
        twice = {'none': 0.0, 'dots': total(stages[3:4]), 'full': of_layer - total(stages[-1:])}[m.remat]
        again += size * twice if found else 0.0
        of_layers, ahead = of_layers + found, ahead + size * of_layer
    of_head, whole = walk(after), total(after[-1:])
    return Flops(
        forward=ahead + total(after),
        backward=of_layers + of_head,
        again=again + (whole if of_head and not keep_logits and rows * outputs > HEAD_WHOLE * shares else 0.0),
    )


def _own_leaves(path: str) -> tuple[str, ...]:
    """The leaves that a plain model may have at a path."""
    if path.endswith('norm'):
        return 'scale', 'bias'
    return ('embedding',) if path in ('embed', 'positions') else ('kernel', 'bias')


def _rank(leaves: Mapping, path: str) -> int:
    """R of the low-rank path beside a kernel; 0 where there is none."""
    return leaves[f'{path}/lora_a'].shape[-1] if f'{path}/lora_a' in leaves else 0


def total_steps(budget: Mapping, tokens_per_step: int, flops_per_step: float) -> int | None:
    """Steps of a budget in steps, tokens or FLOPs, rounded up; None for one in hours.

    Raises ValueError unless exactly one of the four is set, to a positive, finite number that int32 can count in steps.
    """
    unknown = set(budget) - set(BUDGETS)
    if unknown:
        raise InputError(f'budget.{sorted(unknown)[0]}: a budget is one of {", ".join(BUDGETS)}')
    chosen = {name: budget[name] for name in BUDGETS if name in budget and budget[name] is not None}
    if len(chosen) != 1:
        said = ' and '.join(f'budget.{name} = {value}' for name, value in chosen.items()) or 'nothing'
        raise InputError(f'the budget is exactly one of {", ".join(BUDGETS)}; {said} is set')
    ((name, value),) = chosen.items()
    if not (value > 0 and math.isfinite(value)) or (name == 'steps' and value != int(value)):
        raise InputError(
            f'budget.{name} = {value}: it must be a positive {"whole" if name == "steps" else "finite"} number'
        )
    steps = {
        'steps': lambda: int(value),
        'tokens': lambda: math.ceil(value / tokens_per_step),
        'flops': lambda: math.ceil(value / flops_per_step),
        'hours': lambda: None,
    }[name]()
    if steps and steps >= 2**31:
        raise InputError(
            f'budget.{name} = {value} makes {steps:,} steps: they are counted in 31 bits, up to {2**31 - 1:,}'
        )
    return steps


def bytes_here(leaves) -> int:
    """Bytes of a tree on one device; of all of it where it has no sharding."""
    total = 0
    for leaf in jax.tree.leaves(leaves):
        sharding = getattr(leaf, 'sharding', None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def logits_bytes(elements: int, itemsize: int, keep: bool) -> int:
    """Bytes that a device holds of so many logits and of their cotangent: all if they are kept, else one chunk."""
    chunks = min(-(-elements // HEAD_WHOLE), HEAD_CHUNKS)
    return 2 * itemsize * elements if keep and chunks > 1 else (4 + itemsize) * elements // max(chunks, 1)


def memory(
    trainable: tree.Params,
    frozen: tree.Params,
    opt_state,
    model,
    rows,
    seq_len,
    fused=False,
    tensor=1,
    sequence=1,
    predicted=None,
    keep_logits=False,
) -> dict[str, int]:
    """Bytes on one device: {'parameters', 'gradients', 'moments', 'activations', 'total'}.

    Exact, from shapes and shardings, but for the activations, which are an estimate: what the layers keep for the
    backward pass of `rows` rows (of one micro-batch, on one device), and logits. A kernel of attention (`fused`) keeps
    no weights of it; `tensor` and `sequence` devices share heads and columns, and positions. Of the logits of the
    `predicted` positions of a row (None: all) there are one float32 chunk and its cotangent in the dtype of the
    computation; with `keep_logits` both of all logits in that dtype. A compiler may keep more: on CPU 0.8 to 1.6 times
    as much was seen, and up to 3 times with remat in a straight line of layers.
    """
    m, tokens = model, rows * seq_len // sequence
    deep = any(not path.startswith(('final_norm/', 'head/', 'heads/', 'mlm_head/')) for path in tree.flatten(trainable))
    itemsize = 2 if m.dtype in ('bfloat16', 'float16') else 4
    heads, kv_heads = m.num_heads * m.head_dim // tensor, m.num_kv_heads * m.head_dim // tensor
    mlp, vocab = m.mlp_dim // tensor, (m.vocab_size + m.vocab_fill) // tensor
    products = 2 * heads + 2 * kv_heads * sequence + mlp * (2 if 'glu' in m.activation else 1) + m.width
    weights = 0 if fused else m.num_heads // tensor * keys_per_query(m, seq_len, 128)
    # The stream between layers; with dots the products; else norms' outputs and the activation's input too.
    whole = 4 * m.width + products + 2 * mlp + 2 * weights
    kept = {'full': m.width, 'dots': m.width + products, 'none': whole}[m.remat]
    layers = m.num_layers * kept + (0 if m.remat == 'none' else whole)
    logits = logits_bytes(rows * (predicted or seq_len) // sequence * vocab, itemsize, keep_logits)
    sizes = {
        'parameters': bytes_here(trainable) + bytes_here(frozen),
        'gradients': bytes_here(trainable),
        'moments': bytes_here(opt_state),
        'activations': int(deep * tokens * layers * itemsize + logits),
    }
    return sizes | {'total': sum(sizes.values())}
