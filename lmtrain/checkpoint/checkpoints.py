"""Save and restore a tree of arrays through Orbax: asynchronous, atomic, hashed, the last k and the best k kept.

A checkpoint is the folder `<step>` with `state/` (Orbax's files, readable by Orbax alone as {path: array}) and
`manifest.json` (step, metric, counters, shape and dtype of every leaf, size and SHA-256 of every file, and a hash of
itself). It is written as `tmp.<step>`, flushed to the disk and renamed, so that under its final name it is whole.
Orbax notices no flipped bit, no zeroed page without compression and no change of dtype; the manifest is checked, all
of it, before anything is loaded.
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
from lmtrain.runtime.lifecycle import STALL_IN_SAVE, fault

__all__ = ['Checkpoints', 'Damaged', 'SaveFailed', 'inspect', 'ranked', 'restore', 'steps', 'verify']


class SaveFailed(OSError):
    """A checkpoint could not be written; the text says which, why, and that the older ones stand."""


class Checkpoints:
    """The checkpoints of one run in `directory`; one process (or one job of several) may write there, see workdir.lock.

    Args:
      directory: made if missing; what a killed process left half-written is removed.
      every_steps: steps between saves, see `due`.
      keep_last: newest checkpoints that are kept, >= 1.
      keep_best: checkpoints with the lowest metric that are kept beside, >= 0.

    Raises ValueError naming the field. Use it as a context manager, or `close` it.
    """

    def __init__(self, directory: str | os.PathLike, every_steps: int, keep_last: int, keep_best: int):
        for name, value, least in (
            ('every_steps', every_steps, 1),
            ('keep_last', keep_last, 1),
            ('keep_best', keep_best, 0),
        ):
            if type(value) is not int or value < least:  # True is an int to Python
                raise InputError(f'checkpoint.{name}={value!r}: expected a whole number of at least {least}')
        self.directory = Path(directory).absolute()
        self.every_steps, self.keep_last, self.keep_best = every_steps, keep_last, keep_best
        self._commit: threading.Thread | None = None
        self._error: SaveFailed | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            for leftover in self.directory.glob('tmp.*'):
                shutil.rmtree(leftover)
        self._plain = plain_name(self.directory)

    def due(self, step: int) -> bool:
        """Whether the state after `step` updates is to be saved."""
        return step > 0 and step % self.every_steps == 0

    def save(self, state: Any, step: int, extra: dict[str, Any], metric: float | None = None) -> bool:
        """Start to save `state`, the result of `step` updates; False where that step is saved already.

        Waits for the save before it, then for one copy of the arrays to the host, and returns; files, hashes and the
        rename follow on a thread. The arrays may be donated to the next step at once, which then reuses their buffers.

        Args:
          state: any pytree whose leaves are arrays (keys as key data).
          extra: counters that JSON can hold (tokens, FLOPs, seconds); `restore` gives them back.
          metric: what `keep_best` ranks by, lower is better; None or not finite is never among the best.

        Raises SaveFailed (of this save or the one before), TypeError and ValueError naming the leaf or counter.
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
            raise InputError('the state holds no number: there is nothing to save')
        fault('before_save', step)
        temporary = self.directory / f'tmp.{step}'
        orbax, checkpointer = _orbax()
        arguments = orbax.args.PyTreeSave(leaves.detach_host_copies(stored))
        begin = functools.partial(checkpointer.save, self._plain / temporary.name / 'state', args=arguments)
        # Orbax copies a jax.Array, and meets the other processes, before it returns; the rest need not be waited for.
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
        """The newest checkpoint that is whole, as `restore` below has it; damaged ones are renamed `<step>.corrupt`."""
        self.wait()
        return restore(self.directory, abstract_state, quarantine=True)

    def rate(self, step: int, metric: float) -> None:
        """Give the checkpoint of `step`, where there is one, the metric that it was saved without."""
        if jax.process_index() == 0 and (self.directory / str(step)).exists():
            manifests.rate(self.directory / str(step), float(metric))

    def check_for_errors(self) -> None:
        """Raise SaveFailed where a save has failed since the last look. To be called each step; costs nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Block until the save that is under way, if any, is committed. Raises SaveFailed."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
            self.check_for_errors()  # before the others are waited for: they may wait for a save that has failed here
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices('lmtrain.checkpoint')  # the first process renames for all
        self.check_for_errors()

    def close(self) -> None:
        """`wait`, and remove the link of `plain_name`."""
        self.wait()
        if self._plain != self.directory and jax.process_index() == 0:
            self._plain.unlink(missing_ok=True)

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:
            self.close()  # else the others may never come: this process ends, and they by that

    def _finish(self, begin: Callable[[], None] | None, temporary: Path, facts: dict[str, Any]) -> None:
        """On the thread: let Orbax write; then the first process hashes, flushes, renames, deletes what is too old."""
        step = facts['step']
        try:
            if begin:
                begin()
            fault('in_save', step)
            _orbax()[1].wait_until_finished()
            if jax.process_index() != 0:
                return
            fault('before_hash', step)
            fault(STALL_IN_SAVE, step)
            stored = [path for path, leaf in facts['leaves'].items() if math.prod(leaf['shape'])]
            manifests.check_index(self._plain / temporary.name / 'state', stored)
            manifests.write_manifest(temporary, facts)
            fault('before_rename', step)
            temporary.rename(self.directory / str(step))
            sync_folder(self.directory)
            fault('after_rename', step)
            self._retire(step)
        except Exception as error:
            self._error = self._failed(step, temporary, error)
            self._error.__cause__ = error

    def _failed(self, step: int, temporary: Path, error: Exception) -> SaveFailed:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk is not to stay full
        older = ', '.join(map(str, steps(self.directory))) or 'none'
        # TensorStore names each of its layers before the reason, and its settings after it.
        reason = re.sub(r' \[\w+=.*', '', manifests.first_line(error)).rsplit('": ', 1)[-1]
        return SaveFailed(
            f'saving the checkpoint of step {step} in {self.directory} failed: {reason}. Checkpoints that stand: '
            f'{older}. See to the disk, then start again: the run goes on from the newest of them'
        )

    def _retire(self, newest: int) -> None:
        """Delete what is neither among the last k nor the best k. `newest` was just committed and always stays."""
        kept = steps(self.directory)[-self.keep_last :] + ranked(self.directory)[: self.keep_best] + [newest]
        for step in set(steps(self.directory)) - set(kept):
            # Renamed first: killed half-way, a checkpoint is gone, not damaged.
            aside = self.directory / f'tmp.{step}.retired'
            (self.directory / str(step)).rename(aside)
            fault('in_retention', newest)
            shutil.rmtree(aside)


def plain_name(directory: Path) -> Path:
    """`directory`, or if Orbax cannot use its name, a link to it beside the first folder with such a name.

    Orbax merges what the processes wrote by a glob over the folder of the checkpoint, so that a name with '*', '?' or
    '[' matches another folder or none. TensorStore takes names in UTF-8 alone. The link has the same path in all
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
            f'{directory}: such a name needs a link in {link.parent}, which cannot be made '
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
    """(state, extra) of a checkpoint, every byte of it checked first; None where there has never been one.

    Where a checkpoint is damaged, one line says which file and why, and the next one is used: the next older for
    'last', the next best for 'best'.

    Args:
      directory: the folder of `<step>` folders; may belong to a run that is going on.
      abstract_state: the tree with leaves that have shape, dtype and, where wanted, sharding (jax.ShapeDtypeStruct).
      step: 'last', 'best' (the lowest metric; the last where none has one) or a number, which must be there and whole.
      partial: the checkpoint may hold leaves that `abstract_state` lacks; they are not read.
      quarantine: rename what is damaged to `<step>.corrupt`; for the one process that writes there.

    Returns:
      state: fresh arrays on the shardings asked for, which may be donated; bitwise what was saved.
      extra: as saved, and 'step'.

    Raises Damaged where no whole checkpoint is left, FileNotFoundError for a step that is not there, ValueError naming
    the leaf where paths, shapes or dtypes differ.
    """
    directory = Path(directory).absolute()
    chosen = _choose(directory, step, quarantine)
    if chosen < 0:
        return None
    manifest = manifests.read(directory / str(chosen))
    wanted = leaves.named(abstract_state)
    leaves.compare(manifest, leaves.signature(wanted), directory / str(chosen), partial)

    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None) or default)
        for path, leaf in wanted.items()
    }
    stored = {path: leaf for path, leaf in item.items() if math.prod(leaf.shape)}
    orbax, checkpointer = _orbax()
    arguments = orbax.args.PyTreeRestore(
        stored, restore_args=orbax.checkpoint_utils.construct_restore_args(stored), partial_restore=partial
    )
    with _readable(directory / str(chosen)) as folder:
        loaded = checkpointer.restore(folder / 'state', args=arguments) if stored else {}
    restored = []
    for path, leaf in item.items():
        array = loaded.pop(path) if path in stored else jnp.zeros(leaf.shape, leaf.dtype)
        # What Orbax hands back may alias its own host memory, and such a buffer is not reused when donated. A jitted
        # copy would be compiled for each shape; this one is not.
        restored.append(jax.device_put(array, leaf.sharding, may_alias=False))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), restored), manifest['extra'] | {'step': chosen}


def inspect(directory: str | os.PathLike, step: int | str = 'last') -> tuple[int, dict[str, Any], dict] | None:
    """(step, {path: jax.ShapeDtypeStruct}, extra) of the checkpoint that `restore` would use; None where none is."""
    directory = Path(directory).absolute()
    chosen = _choose(directory, step, quarantine=False)
    if chosen < 0:
        return None
    manifest = manifests.read(directory / str(chosen))
    saved = manifest['leaves'].items()
    shapes = {path: jax.ShapeDtypeStruct(leaf['shape'], jnp.dtype(leaf['dtype'])) for path, leaf in saved}
    return chosen, shapes, manifest['extra']


def _choose(directory: Path, step: int | str, quarantine: bool) -> int:
    """The step to restore, verified by the first process for all; -1 where there is nothing. Raises as `restore`."""
    chosen = -1
    if jax.process_index() == 0:
        chosen = manifests.first_whole(directory, step, quarantine)
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    return chosen


@functools.cache
def _orbax() -> tuple[Any, Any]:
    """Orbax and its checkpointer, imported late: it takes half a second. Its chatter below WARNING is dropped, and so
    are the traces that it logs of errors which it also raises.
    """
    logging.getLogger('absl').addFilter(
        lambda record: '/orbax/' not in record.pathname or (record.levelno >= logging.WARNING and not record.exc_info)
    )
    import orbax.checkpoint as orbax

    return orbax, orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler())
