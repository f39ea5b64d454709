"""Weights of a directory, tensor by tensor: one safetensors file, or several with an index. No pickle is ever read."""

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
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
SHARD = 5 * 10**9  # bytes of a file, as Hugging Face cuts them
WHOLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'


class Tensor(NamedTuple):
    """Where a tensor lies; `read` brings it."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # of its bytes in the file

    def read(self) -> np.ndarray:
        raw = np.fromfile(self.path, np.uint8, math.prod(self.shape) * self.dtype.itemsize, offset=self.start)
        return raw.view(self.dtype).reshape(self.shape)


def find(directory: Path) -> dict[str, Tensor]:
    """{key: Tensor} of model.safetensors, or of the files that model.safetensors.index.json names.

    Raises FileNotFoundError where there are no weights, ValueError where they are pickled, or where headers or index
    do not tell the truth.
    """
    files = {path.name: path for path in sorted(directory.glob('*.safetensors'))}
    if WHOLE in files:
        return header(files[WHOLE])
    index = directory / INDEX
    if not index.is_file():
        pickled = [path.name for path in sorted(directory.iterdir()) if path.suffix in ('.bin', '.pt', '.pth', '.ckpt')]
        if pickled:
            raise InputError(
                f'{directory / pickled[0]} is a pickle, which can run any code when it is opened: it is not read. '
                'Have its publisher, or transformers in a sandbox, save it as safetensors'
            )
        raise FileNotFoundError(f'{directory} holds neither {WHOLE} nor {INDEX}')
    places = _json(index.read_bytes(), index).get('weight_map')
    if not isinstance(places, dict) or not places:
        raise InputError(f'{index}: "weight_map" is missing or empty')
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in places.values()}):
        if name not in files:  # compared, never made into a path
            raise FileNotFoundError(f'{index} names {name!r}, which is no .safetensors file of {directory}')
        found = header(files[name])
        for key in found:
            if places.get(key) != name:
                raise InputError(f'{files[name]} holds {key!r}, which {index.name} puts in {places.get(key)!r}')
        tensors |= found
    if missing := places.keys() - tensors.keys():
        key = min(missing)
        raise InputError(f'{index} puts {key!r} in {places[key]}, which does not hold it')
    return tensors


def header(path: Path) -> dict[str, Tensor]:
    """{key: Tensor} of one file, after 8 bytes of length and a JSON header (github.com/huggingface/safetensors).

    Raises ValueError naming the file and the key where the header is cut short, where a dtype is unknown, or where the
    tensors do not fill the rest of the file one after the other.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > size - 8:
            raise InputError(
                f'{path} is truncated or no safetensors: {size} bytes, and a header of {length} is promised'
            )
        about = _json(file.read(length), path)
    about.pop('__metadata__', None)
    tensors, spans = {}, []
    for key, entry in about.items():
        if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
            raise InputError(f'{path}: {key!r} is described by {str(entry)[:80]}, not by dtype, shape and data_offsets')
        if entry['dtype'] not in DTYPES:
            raise InputError(f'{path}: {key!r} has dtype {entry["dtype"]!r}, which is none of {", ".join(DTYPES)}')
        numbers = [entry['shape'], entry['data_offsets']]
        if not all(isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in numbers):
            raise InputError(f'{path}: {key!r} has shape {entry["shape"]} and data_offsets {entry["data_offsets"]}')
        dtype, shape, offsets = np.dtype(DTYPES[entry['dtype']]), tuple(entry['shape']), entry['data_offsets']
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise InputError(
                f'{path}: {key!r} lies at {offsets}, but {list(shape)} of {dtype} are '
                f'{math.prod(shape) * dtype.itemsize} bytes'
            )
        tensors[key] = Tensor(path, dtype, shape, 8 + length + offsets[0])
        spans.append((*offsets, key))
    end = 0
    for start, stop, key in sorted(spans):
        if start != end:
            raise InputError(f'{path}: {key!r} begins at byte {start} of the data, but what comes before ends at {end}')
        end = stop
    if end != size - 8 - length:
        raise InputError(
            f'{path} is truncated or too long: {size - 8 - length} bytes of data, the header tells of {end}'
        )
    return tensors


def write(directory: Path, tensors: Mapping[str, tuple[tuple, np.dtype]], read: Callable, shard: int = SHARD) -> None:
    """Writes `tensors` {key: (shape, dtype)}, asking read(key) for one at a time; files appear whole or not at all.

    Above `shard` bytes the file is cut in several with an index. Weights of an earlier write are removed.
    """
    files: list[list[str]] = [[]]
    sizes = {key: math.prod(shape) * np.dtype(dtype).itemsize for key, (shape, dtype) in tensors.items()}
    for key in tensors:
        if files[-1] and sum(sizes[k] for k in files[-1]) + sizes[key] > shard:
            files.append([])
        files[-1].append(key)
    names = [f'model-{i:05}-of-{len(files):05}.safetensors' for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [WHOLE]
    for name, keys in zip(names, files, strict=True):
        write_file(directory / name, {key: tensors[key] for key in keys}, read)
    if len(files) > 1:
        places = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': places}
        write_json(directory / INDEX, index, indent=2)
    for path in directory.iterdir():
        ours = re.fullmatch(r'model(-\d{5}-of-\d{5})?\.safetensors', path.name)
        if ours and path.name not in names or path.name == INDEX and len(files) == 1:
            path.unlink()


def write_file(path: Path, tensors: Mapping[str, tuple[tuple, np.dtype]], read: Callable) -> None:
    """One file of `tensors` {key: (shape, dtype)}, asking read(key) for one at a time."""
    about, end = {'__metadata__': {'format': 'pt'}}, 0
    for key, (shape, dtype) in tensors.items():
        offsets = [end, end := end + math.prod(shape) * np.dtype(dtype).itemsize]
        about[key] = {'dtype': NAMES[np.dtype(dtype)], 'shape': list(shape), 'data_offsets': offsets}
    raw = json.dumps(about).encode()
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
            raise InputError('a key stands in it twice')
        return dict(pairs)

    return parse_json_object(raw, f'{path}: its header', object_pairs_hook=unique)
