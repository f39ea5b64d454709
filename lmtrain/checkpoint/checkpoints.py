"""Saves and restores a tree of arrays through Orbax: asynchronous, atomic, hashed; keeps the last k and the best k.

A checkpoint is the folder `<step>` with `state/` (Orbax's files, readable by Orbax alone as {path: array}) and
`manifest.json` (step, metric, counters, shape and dtype of every leaf, size and SHA-256 of every file, and a hash of
itself). It is written as `tmp.<step>`, flushed to the disk and renamed, so that it is complete under its final name.
Orbax detects no flipped bit, no zeroed page without compression and no change of dtype; every hash of the manifest is
checked before anything is loaded.
"""

import contextlib
import functools
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lmtrain.checkpoint import leaves
from lmtrain.checkpoint import manifest as manifests
from lmtrain.checkpoint.manifest import Damaged, ranked, steps, verify
from lmtrain.errors import InputError
from lmtrain.files import sync_folder
from lmtrain.runtime import faults

__all__ = ['Checkpoints', 'Damaged', 'SaveFailed', 'inspect', 'load', 'ranked', 'restore', 'steps', 'verify']


class SaveFailed(OSError):
    """A checkpoint could not be written. The message says which, why, and which older ones are intact."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one run in `directory`; one process (or one job of several) may write there, see workdir.lock.

    Args:
      directory: created if it is missing; incomplete checkpoints of a killed process are removed.
      every_steps: steps between saves.
      keep_last: number of newest checkpoints to keep, >= 1.
      keep_best: number of checkpoints with the lowest metric to keep in addition, >= 0.
      branch: a step that the loop saves too; the last checkpoint until then is kept. None and -1 are no such step.

    Raises InputError naming the field. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        every_steps: int,
        keep_last: int,
        keep_best: int,
        branch: int | None = None,
    ):
        for name, value, least in (
            ('every_steps', every_steps, 1),
            ('keep_last', keep_last, 1),
            ('keep_best', keep_best, 0),
        ):
            if type(value) is not int or value < least:  # True is an int to Python
                raise InputError(f'checkpoint.{name}={value!r}: expected a whole number of at least {least}')
        self.directory = Path(directory).absolute()
        self.every_steps, self.keep_last, self.keep_best, self.branch = every_steps, keep_last, keep_best, branch
        self._commit: threading.Thread | None = None
        self._error: SaveFailed | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            for leftover in self.directory.glob('tmp.*'):
                shutil.rmtree(leftover)
        self._plain = plain_name(self.directory)

    def save(self, state: Any, step: int, extra: dict[str, Any], metric: float | None = None) -> bool:
        """Starts to save `state`, the result of `step` updates. False if that step is saved already.

        Waits for the previous save and for one copy of the arrays to the host, and returns; a thread writes the
        files, hashes them and renames. The arrays may be donated to the next step at once, which reuses their buffers.

        Args:
          state: any pytree whose leaves are arrays (keys as key data).
          extra: counters that JSON can hold (tokens, FLOPs, seconds); `restore` returns them.
          metric: what `keep_best` ranks by, lower is better; None or not finite is never among the best.

        Raises SaveFailed (of this save or the previous one), TypeError and ValueError naming the leaf or counter.
        """
        self.wait()
        if (self.directory / str(step)).exists():
            return False
        named = leaves.named(state)
        facts = {
            'step': step,
            'metric': None if metric is None or not math.isfinite(metric) else float(metric),
            'extra': json.loads(json.dumps(extra, allow_nan=False)),
            'leaves': leaves.signature(named),
        }
        stored = {path: leaf for path, leaf in named.items() if math.prod(leaf.shape)}  # Orbax refuses empty arrays
        if not stored:
            raise InputError('the state has no elements: there is nothing to save')
        faults.inject('before_save', step)
        temporary = self.directory / f'tmp.{step}'
        orbax, checkpointer = _orbax()
        arguments = orbax.args.PyTreeSave(leaves.detach_host_copies(stored))
        begin = functools.partial(checkpointer.save, self._plain / temporary.name / 'state', args=arguments)
        # For a jax.Array Orbax copies it and synchronises with the other processes before it returns: on this thread.
        # With host arrays alone the whole save can run on the thread.
        if any(isinstance(leaf, jax.Array) for leaf in arguments.item.values()):
            try:
                begin()
            except Exception as error:
                raise self._failed(step, temporary, error) from error
            begin = None
        self._commit = threading.Thread(target=self._finish, args=(begin, temporary, facts), name=f'checkpoint {step}')
        self._commit.start()
        return True

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """`restore` of the newest intact checkpoint; damaged ones are renamed `<step>.corrupt`."""
        self.wait()
        return restore(self.directory, abstract_state, quarantine=True)

    def set_metric(self, step: int, metric: float) -> None:
        """Adds a metric to the checkpoint of `step`, if there is one, that was saved without it; as in `save`."""
        if math.isfinite(metric) and jax.process_index() == 0 and (self.directory / str(step)).exists():
            manifests.set_metric(self.directory / str(step), float(metric))

    def check_for_errors(self) -> None:
        """Raises SaveFailed if a save has failed since the last call. Call it each step; it costs nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Blocks until the save in progress, if any, is committed. Raises SaveFailed."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
            self.check_for_errors()  # before the barrier: the others may wait there for a save that failed here
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices('lmtrain.checkpoint')  # process 0 renames for all
        self.check_for_errors()

    def close(self) -> None:
        """`wait`, and remove the link of `plain_name`."""
        self.wait()
        if self._plain != self.directory and jax.process_index() == 0:
            self._plain.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:
            self.close()  # else the other processes may never reach the barrier; they end when this one does

    def _finish(self, begin: Callable[[], None] | None, temporary: Path, facts: dict[str, Any]) -> None:
        """On the thread: Orbax writes; then process 0 hashes, flushes, renames and deletes old checkpoints."""
        step = facts['step']
        try:
            if begin:
                begin()
            faults.inject('in_save', step)
            _orbax()[1].wait_until_finished()
            if jax.process_index() != 0:
                return
            faults.inject('before_hash', step)
            faults.inject(faults.STALL_IN_SAVE, step)
            stored = [path for path, leaf in facts['leaves'].items() if math.prod(leaf['shape'])]
            manifests.check_index(self._plain / temporary.name / 'state', stored)
            manifests.write_manifest(temporary, facts)
            faults.inject('before_rename', step)
            temporary.rename(self.directory / str(step))
            sync_folder(self.directory)
            faults.inject('after_rename', step)
            self._retire(step)
        except Exception as error:
            self._error = self._failed(step, temporary, error)
            self._error.__cause__ = error

    def _failed(self, step: int, temporary: Path, error: Exception) -> SaveFailed:
        shutil.rmtree(temporary, ignore_errors=True)  # frees a full disk
        older = ', '.join(map(str, steps(self.directory))) or 'none'
        # TensorStore's message has its layers before the reason and its settings after it.
        reason = re.sub(r' \[\w+=.*', '', manifests.first_line(error)).rsplit('": ', 1)[-1]
        return SaveFailed(
            f'saving the checkpoint of step {step} in {self.directory} failed: {reason}. Intact checkpoints: '
            f'{older}. Check the disk, then run the same command: it resumes from the newest of them'
        )

    def _retire(self, newest: int) -> None:
        """Deletes checkpoints that are not among the last k, the best k or `branch`; keeps `newest`, just committed."""
        keep = steps(self.directory)[-self.keep_last :] + ranked(self.directory)[: self.keep_best] + [newest]
        if self.branch is not None:
            keep += [step for step in steps(self.directory) if step <= self.branch][-1:]
        for step in set(steps(self.directory)) - set(keep):
            # Renamed first: if the process is killed here, the checkpoint is gone and not damaged.
            retired = self.directory / f'tmp.{step}.retired'
            (self.directory / str(step)).rename(retired)
            faults.inject('in_retention', newest)
            shutil.rmtree(retired)


def plain_name(directory: Path) -> Path:
    """`directory`, or if Orbax cannot use its name, a symbolic link to it beside the first folder with such a name.

    Orbax merges the files of the processes by a glob over the folder of the checkpoint, so a name with '*', '?' or
    '[' matches another folder or none. TensorStore accepts only names in UTF-8. The link has the same path in all
    processes. Raises OSError naming the folder and the way out.
    """
    parts = directory.parts
    first = next((n for n, part in enumerate(parts) if glob.has_magic(part) or not in_utf8(part)), None)
    if first is None:
        return directory
    link = Path(*parts[:first]) / f'.lmtrain-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}'
    try:
        with contextlib.suppress(FileExistsError):  # of another process, or of one that was killed
            link.symlink_to(directory)
    except OSError as error:
        raise type(error)(
            error.errno,
            f'{directory}: such a name needs a link in {link.parent}, which cannot be created '
            f'({error.strerror}): use another --workdir',
        ) from error
    return link


def in_utf8(path: str | os.PathLike) -> bool:
    """Whether the bytes of `path` on the file system are UTF-8. Not if Python's file system encoding is another one."""
    return os.fsencode(path) == os.fspath(path).encode('utf-8', errors='replace')


@contextlib.contextmanager
def _readable(directory: Path) -> Iterator[Path]:
    """A path of `directory` that TensorStore can read."""
    with contextlib.ExitStack() as stack:
        if not in_utf8(directory):
            link = Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'link'
            link.symlink_to(directory)
            directory = link
        yield directory


def restore(
    directory: str | os.PathLike,
    abstract_state: Any,
    step: int | str = 'last',
    partial: bool = False,
    quarantine: bool = False,
) -> tuple[Any, dict[str, Any]] | None:
    """(state, extra) of a checkpoint after all its hashes were checked; None if there has never been a checkpoint.

    If a checkpoint is damaged, one line says which file and why, and the next one is used: the next older for
    'last', the next best for 'best'.

    Args:
      directory: the folder of `<step>` folders; may belong to a run in progress.
      abstract_state: a tree whose leaves have shape, dtype and optionally sharding (jax.ShapeDtypeStruct).
      step: 'last', 'best' (the lowest metric; the last if none has a metric) or a number, which must exist intact.
      partial: the checkpoint may hold leaves that `abstract_state` lacks; they are not read.
      quarantine: rename damaged checkpoints to `<step>.corrupt`; only for the run that writes there.

    Returns:
      state: new arrays with the requested shardings, which may be donated; bitwise equal to the saved ones.
      extra: as saved, and 'step'.

    Raises Damaged if no intact checkpoint is left, FileNotFoundError for a step that does not exist, InputError naming
    the leaf if paths, shapes or dtypes differ.
    """
    chosen = _choose(Path(directory).absolute(), step, quarantine)
    return None if chosen < 0 else load(directory, abstract_state, chosen, partial)


def load(
    directory: str | os.PathLike, abstract_state: Any, step: int, partial: bool = False
) -> tuple[Any, dict[str, Any]]:
    """`restore` of a step whose hashes `inspect` has checked: for 70B parameters they take 140 GB of reading.

    Raises Damaged if the manifest is not readable, and InputError as `restore` does.
    """
    folder = Path(directory).absolute() / str(step)
    manifest = manifests.read(folder)
    requested = leaves.named(abstract_state)
    leaves.compare(manifest, leaves.signature(requested), folder, partial)

    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None) or default)
        for path, leaf in requested.items()
    }
    stored = {path: leaf for path, leaf in item.items() if math.prod(leaf.shape)}
    orbax, checkpointer = _orbax()
    arguments = orbax.args.PyTreeRestore(
        stored, restore_args=orbax.checkpoint_utils.construct_restore_args(stored), partial_restore=partial
    )
    with _readable(folder) as readable:
        loaded = checkpointer.restore(readable / 'state', args=arguments) if stored else {}
    restored = []
    for path, leaf in item.items():
        array = loaded.pop(path) if path in stored else jnp.zeros(leaf.shape, leaf.dtype)
        # Orbax may return an alias of its own host memory, and such a buffer is not reused when it is donated. A
        # jitted copy would be compiled for each shape; this one is not.
        restored.append(jax.device_put(array, leaf.sharding, may_alias=False))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), restored), manifest['extra'] | {'step': step}


def inspect(directory: str | os.PathLike, step: int | str = 'last') -> tuple[int, dict[str, Any], dict] | None:
    """(step, {path: jax.ShapeDtypeStruct}, extra) of the checkpoint that `restore` would use, its hashes checked.

    None if there has never been a checkpoint. Raises as `restore`.
    """
    directory = Path(directory).absolute()
    chosen = _choose(directory, step, quarantine=False)
    if chosen < 0:
        return None
    manifest = manifests.read(directory / str(chosen))
    saved = manifest['leaves'].items()
    shapes = {path: jax.ShapeDtypeStruct(leaf['shape'], jnp.dtype(leaf['dtype'])) for path, leaf in saved}
    return chosen, shapes, manifest['extra']


def _choose(directory: Path, step: int | str, quarantine: bool) -> int:
    """The step to restore, verified by process 0 for all; -1 if there has never been a checkpoint."""
    chosen = -1
    if jax.process_index() == 0:
        chosen = manifests.first_intact(directory, step, quarantine)
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return chosen


@functools.cache
def _orbax() -> tuple[Any, Any]:
    """Orbax and its checkpointer, imported late: it takes half a second. Its log records below WARNING are dropped,
    and so are the tracebacks that it logs of errors which it also raises.
    """
    logging.getLogger('absl').addFilter(
        lambda record: '/orbax/' not in record.pathname or (record.levelno >= logging.WARNING and not record.exc_info)
    )
    import orbax.checkpoint as orbax

    # Floats hardly compress (zstd: 7 %), and it takes 2 to 4 times as long and one more copy of the state in memory.
    return orbax, orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler(use_compression=False))
