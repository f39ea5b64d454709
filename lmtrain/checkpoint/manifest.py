"""The manifest of a checkpoint: hashes of its files, verification, quarantine, and the choice of a checkpoint."""

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from absl import logging

from lmtrain.errors import InputError
from lmtrain.files import describe_files, list_files, sha256, sync_folder, write_atomic

FORMAT = 1
NAME = 'manifest.json'


class Damaged(InputError):
    """A checkpoint differs from what was written. The message names the file and the difference."""


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest: `facts`, and size and hash of every file in the folder; flushes all of it to the disk."""
    files = describe_files(folder, list_files(folder), functools.partial(_digest, flush=True))
    _write(folder / NAME, {'format': FORMAT, **facts, 'files': files})
    for inner in [path for path in folder.rglob('*') if path.is_dir()] + [folder]:
        sync_folder(inner)


def check_index(folder: Path, leaves: list[str]) -> None:
    """Reads back the index that Orbax wrote in `folder`. Raises OSError if it lacks the header of an array."""
    import tensorstore  # late: comes with Orbax

    index = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{folder}/'}}).result()
    headers = {'.zarray', 'zarr.json'}  # of formats 2 and 3
    arrays = {key.decode().rpartition('/') for key in index.list().result()}
    arrays = {path for path, _, name in arrays if name in headers}
    missing = [path for path in leaves if path not in arrays]
    if missing:
        raise OSError(f'{folder}: the index that Orbax wrote lacks {missing[0]!r}, {len(missing)} arrays in all')


def set_metric(folder: Path, metric: float) -> None:
    """Adds a metric to a checkpoint that was saved without one; atomic, also if the process is killed."""
    temporary = folder.parent / f'.{folder.name}.{NAME}'
    _write(temporary, read(folder) | {'metric': metric})
    temporary.rename(folder / NAME)
    sync_folder(folder)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint after all hashes were checked. Raises Damaged naming the file and the reason."""
    manifest = read(folder)
    expected, present = manifest['files'], set(list_files(folder)) - {NAME}
    for name in sorted(expected.keys() - present):
        raise Damaged(f'{folder / name}: missing')
    for name in sorted(present - expected.keys()):
        raise Damaged(f'{folder / name}: not part of this checkpoint')
    for name, digest in describe_files(folder, expected, _digest).items():
        if digest['bytes'] != expected[name]['bytes']:
            raise Damaged(f'{folder / name}: {digest["bytes"]} bytes, {expected[name]["bytes"]} were written')
        if digest != expected[name]:
            raise Damaged(f'{folder / name}: its content is not what was written (SHA-256 differs)')
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """The manifest, its own hash checked; the files are not read. Raises Damaged, PermissionError."""
    path = folder / NAME
    if path.is_symlink():
        raise Damaged(f'{path}: is not a regular file')
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        intact = manifest['sha256'] == _self_hash(manifest) and content == _text(manifest).encode()
    except PermissionError:
        raise  # its content is unknown: it must not be quarantined
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f'{path}: {type(error).__name__}: {first_line(error)}') from error
    if not intact:
        raise Damaged(f'{path}: its content is not what was written (SHA-256 differs)')
    if manifest['format'] != FORMAT:
        raise InputError(f'{path}: format {manifest["format"]}, this lmtrain reads format {FORMAT}')
    if str(manifest['step']) != folder.name:
        raise Damaged(f'{path}: is of step {manifest["step"]}')
    return manifest


def steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the committed checkpoints, ascending; not verified."""
    return sorted(int(path.name) for path in Path(directory).glob('*') if re.fullmatch(r'0|[1-9][0-9]*', path.name))


def ranked(directory: str | os.PathLike) -> list[int]:
    """Steps of the committed checkpoints that have a metric, best (lowest) first, the newer of two equal ones first."""
    metrics = {}
    for step in steps(directory):
        try:
            metrics[step] = read(Path(directory) / str(step))['metric']
        except Damaged as error:
            logging.error('%s: not ranked', error)
    return sorted((step for step in metrics if metrics[step] is not None), key=lambda step: (metrics[step], -step))


def first_intact(directory: Path, step: int | str, quarantine: bool) -> int:
    """The step that `checkpoint.restore` uses, its hashes checked; -1 if there has never been a checkpoint."""
    committed = steps(directory)
    if isinstance(step, int):
        if step not in committed:
            raise FileNotFoundError(f'{directory} holds no checkpoint of step {step}; it has {committed}')
        verify(directory / str(step))
        return step
    if step not in ('last', 'best'):
        raise InputError(f"step={step!r}: expected 'last', 'best' or a number")
    order = committed[::-1]
    if step == 'best':
        best = ranked(directory)
        order = best + [other for other in order if other not in best]
    for candidate in order:
        try:
            verify(directory / str(candidate))
            return candidate
        except Damaged as error:
            quarantined = _quarantine(directory / str(candidate)) if quarantine else None
            logging.error(
                'CHECKPOINT %d IS DAMAGED: %s. %s; trying the next one.',
                candidate,
                error,
                f'Kept as {quarantined}' if quarantined else 'Left in place',
            )
    corrupt = sorted(path.name for path in directory.glob('*.corrupt*'))
    if order or corrupt:
        raise Damaged(
            f'{directory}: no intact checkpoint is left ({", ".join(corrupt or map(str, order))} damaged). To start '
            f'anew, choose another workdir or move this folder away'
        )
    return -1


def _quarantine(folder: Path) -> Path:
    number = 0
    while (renamed := folder.with_name(f'{folder.name}.corrupt' + (f'.{number}' if number else ''))).exists():
        number += 1
    return folder.rename(renamed)


def _digest(path: Path, flush: bool = False) -> dict[str, Any]:
    """{'bytes', 'sha256'} of a file, flushed to the disk first if `flush`. Raises Damaged if it cannot be read."""
    try:
        if path.is_symlink() or not path.is_file():
            raise Damaged(f'{path}: is not a regular file')
        if flush:
            with open(path, 'rb') as file:
                os.fsync(file.fileno())
        return {'bytes': path.stat().st_size, 'sha256': sha256(path)}
    except PermissionError:
        raise
    except OSError as error:
        raise Damaged(f'{path}: {first_line(error)}') from error


def _write(path: Path, manifest: dict[str, Any]) -> None:
    write_atomic(path, _text(manifest | {'sha256': _self_hash(manifest)}).encode())


def _self_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_text({key: manifest[key] for key in manifest if key != 'sha256'}).encode()).hexdigest()


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; for an OSError the reason and the file, without the error number."""
    if isinstance(error, OSError) and error.strerror:
        return f'{error.strerror}: {error.filename}' if error.filename else error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
