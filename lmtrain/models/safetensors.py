"""Weights of a directory, tensor by tensor: one safetensors file, or several with an index. Pickles are never read."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lmtrain.errors import InputError
from lmtrain.files import parse_json_object, write_atomic, write_json

DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
MAX_FILE_SIZE = 5 * 10**9  # bytes, the same as transformers
SINGLE_FILE, INDEX = 'model.safetensors', 'model.safetensors.index.json'


class Tensor(NamedTuple):
    """The place of a tensor in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # offset of its first byte in the file

    def read(self) -> np.ndarray:
        raw = np.fromfile(self.path, np.uint8, math.prod(self.shape) * self.dtype.itemsize, offset=self.start)
        return raw.view(self.dtype).reshape(self.shape)


def find(directory: Path) -> dict[str, Tensor]:
    """{key: Tensor} of model.safetensors, or of the files that model.safetensors.index.json names.

    FileNotFoundError: there are no weights. InputError: they are pickled, or headers and index contradict the files.
    """
    files = {path.name: path for path in sorted(directory.glob('*.safetensors'))}
    if SINGLE_FILE in files:
        return header(files[SINGLE_FILE])
    index = directory / INDEX
    if not index.is_file():
        pickled = [path.name for path in sorted(directory.iterdir()) if path.suffix in ('.bin', '.pt', '.pth', '.ckpt')]
        if pickled:
            raise InputError(
                f'{directory / pickled[0]} is a pickle, which can execute any code when it is opened: it is not read. '
                'Convert it to safetensors with transformers in a sandbox, or ask its publisher to'
            )
        raise FileNotFoundError(f'{directory} has neither {SINGLE_FILE} nor {INDEX}')
    files_by_key = _json(index.read_bytes(), index).get('weight_map')
    if not isinstance(files_by_key, dict) or not files_by_key:
        raise InputError(f'{index}: "weight_map" is missing or empty')
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in files_by_key.values()}):
        if name not in files:  # compared with names of files, never used as a path
            raise FileNotFoundError(f'{index} names {name!r}, which is not a .safetensors file in {directory}')
        own = header(files[name])
        for key in own:
            if files_by_key.get(key) != name:
                raise InputError(
                    f'{files[name]} contains {key!r}, which {index.name} assigns to {files_by_key.get(key)!r}'
                )
        tensors |= own
    if missing := files_by_key.keys() - tensors.keys():
        key = min(missing)
        raise InputError(f'{index} assigns {key!r} to {files_by_key[key]}, which does not contain it')
    return tensors


def header(path: Path) -> dict[str, Tensor]:
    """{key: Tensor} of one file: 8 bytes of length, a JSON header, the data (github.com/huggingface/safetensors).

    InputError, with file and key: the header is truncated, a dtype is unknown, or the tensors do not fill the data.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > size - 8:
            raise InputError(f'{path} is truncated or not a safetensors file: {size} bytes, but a header of {length}')
        entries = _json(file.read(length), path)
    entries.pop('__metadata__', None)
    tensors, spans = {}, []
    for key, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
            raise InputError(f'{path}: {key!r} has the entry {str(entry)[:80]}, not dtype, shape and data_offsets')
        if entry['dtype'] not in DTYPES:
            raise InputError(f'{path}: {key!r} has dtype {entry["dtype"]!r}, not one of {", ".join(DTYPES)}')
        numbers = [entry['shape'], entry['data_offsets']]
        if not all(isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in numbers):
            raise InputError(f'{path}: {key!r} has shape {entry["shape"]} and data_offsets {entry["data_offsets"]}')
        dtype, shape, offsets = np.dtype(DTYPES[entry['dtype']]), tuple(entry['shape']), entry['data_offsets']
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise InputError(
                f'{path}: {key!r} has data_offsets {offsets}, but {list(shape)} of {dtype} are '
                f'{math.prod(shape) * dtype.itemsize} bytes'
            )
        tensors[key] = Tensor(path, dtype, shape, 8 + length + offsets[0])
        spans.append((*offsets, key))
    end = 0
    for start, stop, key in sorted(spans):
        if start != end:
            raise InputError(
                f'{path}: {key!r} begins at byte {start} of the data, but the tensor before it ends at {end}'
            )
        end = stop
    if end != size - 8 - length:
        raise InputError(f'{path} is truncated or too long: {size - 8 - length} bytes of data, but {end} in the header')
    return tensors


def write(
    directory: Path, tensors: Mapping[str, tuple[tuple, np.dtype]], read: Callable, max_size: int = MAX_FILE_SIZE
) -> None:
    """Writes `tensors` {key: (shape, dtype)}, one read(key) at a time, atomically.

    Above `max_size` bytes the weights are divided into several files with an index. Weights of an earlier write are
    removed.
    """
    files: list[list[str]] = [[]]
    sizes = {key: math.prod(shape) * np.dtype(dtype).itemsize for key, (shape, dtype) in tensors.items()}
    for key in tensors:
        if files[-1] and sum(sizes[k] for k in files[-1]) + sizes[key] > max_size:
            files.append([])
        files[-1].append(key)
    names = [f'model-{i:05}-of-{len(files):05}.safetensors' for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [SINGLE_FILE]
    for name, keys in zip(names, files, strict=True):
        write_file(directory / name, {key: tensors[key] for key in keys}, read)
    if len(files) > 1:
        files_by_key = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': files_by_key}
        write_json(directory / INDEX, index, indent=2)
    for path in directory.iterdir():
        is_weights = re.fullmatch(r'model(-\d{5}-of-\d{5})?\.safetensors', path.name)
        if is_weights and path.name not in names or path.name == INDEX and len(files) == 1:
            path.unlink()


def write_file(path: Path, tensors: Mapping[str, tuple[tuple, np.dtype]], read: Callable) -> None:
    """Writes one file of `tensors` {key: (shape, dtype)}, one read(key) at a time."""
    entries, end = {'__metadata__': {'format': 'pt'}}, 0
    for key, (shape, dtype) in tensors.items():
        offsets = [end, end := end + math.prod(shape) * np.dtype(dtype).itemsize]
        entries[key] = {'dtype': DTYPE_NAMES[np.dtype(dtype)], 'shape': list(shape), 'data_offsets': offsets}
    raw = json.dumps(entries).encode()
    raw += b' ' * (-len(raw) % 8)  # so that tensors are aligned

    def chunks():
        yield len(raw).to_bytes(8, 'little') + raw
        for key, (shape, dtype) in tensors.items():
            array = read(key)
            assert array.shape == tuple(shape) and array.dtype == dtype, key
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    write_atomic(path, chunks())


def _json(raw: bytes, path: Path) -> dict:
    def unique(pairs):
        if len(dict(pairs)) != len(pairs):
            raise InputError('it has a key twice')
        return dict(pairs)

    return parse_json_object(raw, f'{path}: its header', object_pairs_hook=unique)
