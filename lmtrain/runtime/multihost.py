"""What the processes of one run must know of each other: that they are of one mind, and when one of them wants to stop.

With one process all of it is answered at once, without a device.
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
    """`value` (of JSON) of every process, in order. All have to call it at the same place."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.tolist(), strict=True)]


def assert_same(facts: dict[str, Any]) -> None:
    """Raises ValueError where a process has another value of a fact than process 0: who, which, and both values."""
    first, *others = all_gather_object({name: json.dumps(value, sort_keys=True) for name, value in facts.items()})
    differences = [
        f'  {name}: process 0 has {first.get(name)}, process {number} {other.get(name)}'
        for number, other in enumerate(others, 1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    if differences:
        raise InputError(
            'the processes of this run are not of one mind:\n'
            + '\n'.join(differences)
            + '\nStart them all with the same command, on the same code and data'
        )


def source_hash() -> str:
    """A hash of the sources of lmtrain."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob('*.py')):
        digest.update(f'{path.relative_to(root)} {path.stat().st_size};'.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class AsyncMax:
    """The largest of what the processes say, known to all of them at the same call.

    An answer is that to the call before: devices find it while they compute, and no host waits for another. Only the
    first call waits, and one with `now`.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        if not self._alone:
            mine = {device.process_index: device for device in reversed(jax.devices())}  # the first of each process
            mesh = jax.sharding.Mesh(np.array([mine[i] for i in sorted(mine)]), ('process',))
            self._each = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('process'))
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self._most = jax.jit(lambda said: said.max(axis=0), out_shardings=whole)
            self._asked = None

    def __call__(self, *said: float, now: bool = False) -> tuple[float, ...]:
        """`said` by this process -> the largest of each place; float32."""
        if self._alone:
            return said
        row = np.array([said], np.float32)
        asked = self._most(jax.make_array_from_process_local_data(self._each, row))
        before, self._asked = self._asked, asked
        answer = asked if now or before is None else before
        return tuple(np.asarray(answer).tolist())
