"""FLOPs of a compiled program, from the matrix products in its HLO; a loop's body counts once per iteration."""

import json
import math
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

COMPUTATION = re.compile(r'^(?:ENTRY )?%?(\S+) \(.*\) -> .* \{$')
INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$')
SHAPE = re.compile(r'\w+\[[\d,]*\]')
AFTER = r'after_[a-z-]*spmd-partitioning\.'  # in the name of the dump after the SPMD partitioner
CALLS = ('body', 'calls', 'branch_computations', 'true_computation', 'false_computation', 'called_computations')
# Custom calls of libraries that multiply matrices, whose FLOPs the HLO does not tell.
OPAQUE = re.compile(r'matmul|gemm|conv|fmha|attention', re.IGNORECASE)


class Instruction(NamedTuple):
    """One line: `%name = shape opcode(operands), attributes`; `rest` is what follows the opening parenthesis."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands; 'name#3' is element 3 of a tuple, printed so by jax 0.12."""
        return re.findall(r'%?([\w.-]+(?:#\d+)?)(?=[,)])', self.rest.split('), ')[0] + ')')


def compiled_flops(compiled) -> float:
    """FLOPs of the matrix products of a `jax.stages.Compiled`, on one device. A multiplication and an addition are two.

    XLA's own `cost_analysis` counts the body of a loop once. Here it is multiplied by the loop's trip count, and a
    conditional counts as its most expensive branch. cuDNN's attention counts all keys, though it skips masked blocks.

    Raises ValueError for a loop with products inside whose trip count is unknown, and for a custom call of a library
    whose products cannot be read.
    """
    return text_flops(compiled.as_text())


def compiled_bytes(compiled) -> int:
    """Bytes of the arguments and temporaries of a `jax.stages.Compiled` on one device; 0 if the backend has no figure.

    Results that are no donated arguments are not counted.
    """
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0


def partitioned(lowered) -> tuple[Any, str]:
    """(compiled program, its HLO for one device right after the SPMD partitioner) of a `jax.stages.Lowered`.

    There every collective has its own line and dtype: later the TPU's compiler fuses them, and the CPU's widens
    bfloat16. A program of one device is not partitioned: the compiled text is returned.

    Raises ValueError if the program came from the compilation cache, which keeps no text.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({'xla_dump_to': folder, 'xla_dump_hlo_pass_re': 'spmd-partitioning'})
        dumps = [path for path in pathlib.Path(folder).iterdir() if re.search(AFTER, path.name)]
        if dumps:  # the compiler dumps small auxiliary programs as well: the step is the largest
            return compiled, max((path.read_text(encoding='utf-8') for path in dumps), key=len)
    text = compiled.as_text()
    if 'num_partitions=' in text.partition('\n')[0]:
        raise ValueError('the program came from the compilation cache: set JAX_ENABLE_COMPILATION_CACHE=false')
    return compiled, text


def text_flops(text: str) -> float:
    """`compiled_flops` of the text of an HLO module."""
    computations, entry = _parse(text)
    memo: dict[str, float] = {}

    def flops(computation: str) -> float:
        if computation not in memo:
            shapes = {i.name: i.shape for i in computations[computation]}
            memo[computation] = sum(one(i, shapes) for i in computations[computation])
        return memo[computation]

    def one(i: Instruction, shapes: dict[str, str]) -> float:
        if i.opcode == 'dot':
            return _dot(i.shape, _operand(i, 0, shapes), _dimensions(i.rest, 'lhs_contracting_dims'))
        if i.opcode == 'convolution':
            # Every output is a sum over the kernel, but for the kernel's own output dimension 'o'.
            kernel = _sizes(_operand(i, 1, shapes))
            features = re.findall(r'dim_labels=\w+_(\w+)->', i.rest)[0].index('o')
            return 2.0 * math.prod(_sizes(i.shape)) * math.prod(kernel) / kernel[features]
        if i.opcode == 'custom-call':
            return _custom_call(i, shapes)
        if i.opcode == 'while':
            body = flops(_called(i.rest, 'body')[0])
            return body * _trips(i, computations) if body else 0.0
        if i.opcode == 'conditional':
            branches = _called(i.rest, 'branch_computations') or [
                *_called(i.rest, 'true_computation'),
                *_called(i.rest, 'false_computation'),
            ]
            return max(map(flops, branches))
        return sum(flops(name) for key in ('calls', 'to_apply') for name in _called(i.rest, key))

    return flops(entry)


def executed(text: str) -> Iterator[tuple[Instruction, int]]:
    """(instruction, times executed) of an HLO module's text; every branch of a conditional counts as executed once.

    Raises ValueError for a loop whose trip count is unknown.
    """
    computations, entry = _parse(text)

    def walk(computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for i in computations[computation]:
            yield i, times
            trips = 1
            if i.opcode == 'while':
                trips = _trips(i, computations)
            for key in (*CALLS, 'to_apply') if i.opcode == 'call' else CALLS:  # a sum's to_apply is one addition
                for name in _called(i.rest, key):
                    yield from walk(name, times * trips)

    return walk(entry, 1)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """({computation: instructions}, the entry's name)."""
    computations: dict[str, list[Instruction]] = {}
    entry = ''
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            name = head[1]
            computations[name] = []
            if line.startswith('ENTRY'):
                entry = name
        elif computations and (match := INSTRUCTION.match(line)):
            computations[name].append(Instruction(*match.groups()))
    if not entry:
        raise ValueError('the text holds no HLO module with an ENTRY computation')
    return computations, entry


def _operand(i: Instruction, which: int, shapes: Mapping[str, str]) -> str:
    """The shape of an operand."""
    name, _, element = i.operands[which].partition('#')
    return SHAPE.findall(shapes[name])[int(element)] if element else shapes[name]


def _sizes(shape: str) -> list[int]:
    """'f32[4,8]{1,0}' -> [4, 8]; of a tuple, the first."""
    sizes = SHAPE.findall(shape)[0].partition('[')[2].removesuffix(']')
    return [int(size) for size in sizes.split(',') if size]


def _dot(out: str, left: str, contracted: list[int]) -> float:
    sizes = _sizes(left)
    return 2.0 * math.prod(_sizes(out)) * math.prod(sizes[d] for d in contracted)


def _dimensions(rest: str, name: str) -> list[int]:
    match = re.search(name + r'=\{([\d,]*)\}', rest)
    return [int(d) for d in match[1].split(',') if d] if match else []


def _called(rest: str, name: str) -> list[str]:
    """Computations behind an attribute: `body=%b` or `branch_computations={%a, %b}`."""
    match = re.search(name + r'=(?:\{([^}]*)\}|%?([\w.-]+))', rest)
    return re.findall(r'[\w.-]+', match[1] or match[2]) if match else []


def _config(rest: str) -> dict:
    """The JSON of `backend_config={...}`."""
    start = rest.find('backend_config={')
    return json.JSONDecoder().raw_decode(rest, start + len('backend_config='))[0] if start >= 0 else {}


def _trips(i: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """Iterations of a loop: the known trip count, or right after the partitioner, the bound of `scan`'s counter."""
    trips = _config(i.rest).get('known_trip_count', {}).get('n')
    if trips is not None:
        return int(trips)
    condition = {inside.name: inside for inside in computations[_called(i.rest, 'condition')[0]]}
    compared = [inside for inside in condition.values() if inside.opcode == 'compare' and 'direction=LT' in inside.rest]
    ends = []
    for name in (name for one in compared for name in one.operands):
        while name in condition and condition[name].opcode == 'copy':
            name = condition[name].operands[0]
        if name in condition and condition[name].opcode == 'constant':
            ends.append(int(condition[name].rest.split(')')[0]))
    if len(ends) != 1:
        raise ValueError(f'the trip count of the loop {i.name} is unknown, so its body cannot be counted')
    return ends[0]


def _custom_call(i: Instruction, shapes: dict[str, str]) -> float:
    target = re.findall(r'custom_call_target="([^"]*)"', i.rest)[0]
    dimensions = _config(i.rest).get('gemm_backend_config', {}).get('dot_dimension_numbers')
    if dimensions:  # cuBLAS
        contracted = [int(d) for d in dimensions['lhs_contracting_dimensions']]
        return _dot(i.shape, _operand(i, 0, shapes), contracted)
    attention = _config(i.rest).get('cudnn_fmha_backend_config', {}).get('intermediate_tensor_shape')
    if attention:  # cuDNN: scores and output; backward, the scores again and four gradients
        products = 5 if 'Backward' in target else 2
        return products * 2.0 * math.prod(map(int, attention['dimensions'])) * _sizes(_operand(i, 0, shapes))[-1]
    if OPAQUE.search(target):
        raise ValueError(f'the FLOPs of the custom call {target!r} cannot be read from the program')
    return 0.0
