"""Agreement between the processes of one run: gathered values, checked equality, an all-reduced maximum.

With one process the functions return at once and use no device.
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmtrain.errors import InputError


def all_gather_object(value: Any) -> list[Any]:
    """`value`, which JSON can hold, of every process in order. A collective: all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)  # a collective needs one shape in all processes
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist(), strict=True)]


def assert_same(facts: dict[str, Any]) -> None:
    """Raises InputError if a process has another value of a fact than process 0: which process, fact and values."""
    first, *others = all_gather_object({name: json.dumps(value, sort_keys=True) for name, value in facts.items()})
    differences = [
        f'  {name}: process 0 has {first.get(name)}, process {number} {other.get(name)}'
        for number, other in enumerate(others, 1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        raise InputError(
            'processes disagree about the run:\n'
            + '\n'.join(differences)
            + '\nStart them all with the same command, on the same code and data'
        )


def source_hash() -> str:
    """A hash of the source files of lmtrain."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parents[1]
    for path in sorted(root.rglob('*.py')):
        digest.update(f'{path.relative_to(root)} {path.stat().st_size};'.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class AsyncMax:
    """Asynchronous all-reduce (max) over processes. Every process receives the result at the same call.

    A call returns the maximum over the values of the call before: devices reduce while they compute, and no host
    waits for another. Only the first call, and a call with `now`, waits for its own result.
    """

    def __init__(self) -> None:
        first = {device.process_index: device for device in reversed(jax.devices())}  # the first of each process
        mesh = jax.sharding.Mesh(np.array([first[i] for i in sorted(first)]), ('process',))
        self._by_process = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('process'))
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._max = jax.jit(lambda rows: rows.max(axis=0), out_shardings=replicated)
        self._pending = None

    def __call__(self, *values: float, now: bool = False) -> tuple[float, ...]:
        """The maximum of each value over all processes, float32."""
        row = np.array([values], np.float32)
        reduced = self._max(jax.make_array_from_process_local_data(self._by_process, row))
        before, self._pending = self._pending, reduced
        result = reduced if now or before is None else before
        return tuple(np.asarray(result).tolist())
