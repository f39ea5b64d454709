"""The tokens of a source on disk: written once, packed into rows, memory-mapped."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmtrain.data.cache import build, key
from lmtrain.data.pack import Rows, pack
from lmtrain.data.source import Source
from lmtrain.data.splits import SPLITS, Content, check_unchanged, divide
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.files import read_json, write_json
from lmtrain.runtime import progress

BATCH_VERSION = 3  # increased if the same text and settings give other batches; a test stores batches of this version
ENCODE_CHARACTERS = 4 << 20  # characters that are encoded at a time


class Part(NamedTuple):
    """One source's share of a split.

    Attributes:
      tokens: [n] uint16 or uint32, on disk: END d1 END d2 ... END, or BEGIN d1 END BEGIN d2 END ...
      rows: which tokens each row has.
      weight: relative to the first source, which has 1.0.
      irregular: [K] int64, ascending: tokens with more or fewer bytes of text than their piece has.
      extra_bytes: [K] int32: how many more.
    """

    tokens: np.ndarray
    rows: Rows
    weight: float
    irregular: np.ndarray
    extra_bytes: np.ndarray


@dataclass(frozen=True)
class ByteColumn:
    """[n] int32: the bytes of text behind each token of a part, or behind the token `ahead` positions later."""

    part: Part
    token_bytes: np.ndarray
    ahead: int
    dtype: ClassVar = np.dtype(np.int32)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        tokens, irregular, extra_bytes = self.part.tokens, self.part.irregular, self.part.extra_bytes
        index = np.minimum(index + self.ahead, len(tokens) - 1)
        sizes = self.token_bytes[tokens[index]]
        if not len(irregular):
            return sizes
        at = np.minimum(np.searchsorted(irregular, index), len(irregular) - 1)
        return sizes + np.where(irregular[at] == index, extra_bytes[at], 0)


@dataclass(frozen=True)
class Split:
    """Sums over the sources of a mixture."""

    parts: tuple[Part, ...]
    num_documents: int
    num_tokens: int  # of every document and one END each: the targets of an epoch, or the inputs of a masked model
    num_bytes: int  # of text, in UTF-8
    num_rows: int


class _SplitWriter:
    """Writes the tokens of one split and the index of its documents."""

    def __init__(self, directory: Path, name: str, tokenizer: Tokenizer, dtype: type[np.unsignedinteger]):
        self._directory, self._name, self._dtype = directory, name, dtype
        self._token_bytes = tokenizer.token_bytes
        shared = tokenizer.begin_id == tokenizer.end_id  # the END of one document begins the next one
        self._begin = b'' if shared else dtype(tokenizer.begin_id).tobytes()
        self._end = dtype(tokenizer.end_id).tobytes()
        self._file = (directory / f'{name}.tokens').open('wb')
        if shared:
            self._file.write(self._end)
        self._special_tokens = 1 if shared else 2  # of a document
        self._begins, self._irregular, self._extra_bytes = [0], [], []
        self.num_bytes, self.largest = 0, -1

    def add(self, text: bytes, ids: np.ndarray, sizes: np.ndarray) -> None:
        """Appends a document; ids [n] and sizes [n + 1] are those of `Tokenizer.encode_with_bytes`."""
        self._file.write(self._begin + ids.astype(self._dtype).tobytes() + self._end)
        extra_bytes = sizes - np.append(self._token_bytes[ids], np.int32(0))
        at = np.flatnonzero(extra_bytes)
        if len(at):  # two arrays for each of many short documents are larger than their tokens
            self._irregular.append(self._begins[-1] + 1 + at)
            self._extra_bytes.append(extra_bytes[at])
        self._begins.append(self._begins[-1] + len(ids) + self._special_tokens)
        self.num_bytes += len(text)
        self.largest = max(self.largest, int(ids.max(initial=-1)))

    def close(self) -> None:
        """Writes the index."""
        self._file.close()
        empty = np.zeros(0)
        columns = {
            'begins': np.array(self._begins, np.int64),
            'irregular': np.concatenate([empty, *self._irregular]).astype(np.int64),
            'extra_bytes': np.concatenate([empty, *self._extra_bytes]).astype(np.int32),
        }
        for column, values in columns.items():
            np.save(self._directory / f'{self._name}.{column}.npy', values)


def write_tokens(
    source: Source, content: Content, tokenizer: Tokenizer, rule: dict, cache: Path
) -> tuple[Path, dict[str, Any]]:
    """(the directory with the tokens of a source, facts about them), written at the first call.

    Per split: NAME.tokens, NAME.begins.npy (document starts), NAME.irregular.npy and NAME.extra_bytes.npy (see `Part`).
    Also validation.txt, the text of that split, and about.json, the facts: {'dtype' of the tokens, 'bytes' of text and
    'largest' id of content, both {split: value}}.
    """

    def write(directory: Path) -> None:
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        writers = {name: _SplitWriter(directory, name, tokenizer, dtype) for name in SPLITS}
        documents = progress.each(divide(source, content, rule), f'tokenising {source.name}', content.documents)
        with (directory / 'validation.txt').open('wb') as validation:
            for batch in _batches(documents):
                encoded = tokenizer.encode_with_bytes([text for _, text in batch])
                for (name, text), (ids, sizes) in zip(batch, encoded, strict=True):
                    raw = text.encode()
                    writers[name].add(raw, ids, sizes)
                    if name == 'validation':
                        validation.write(raw)
        check_unchanged(source, content.stamps)
        for writer in writers.values():
            writer.close()
        facts = {'dtype': np.dtype(dtype).name, 'bytes': {name: each.num_bytes for name, each in writers.items()}}
        facts['largest'] = {name: each.largest for name, each in writers.items()}
        write_json(directory / 'about.json', facts)

    own_begin = ['begin'] if tokenizer.begin_id != tokenizer.end_id else []
    name = key(BATCH_VERSION, 'extra_bytes', content.sha256, tokenizer.encoding, rule, *own_begin)
    tokens = build(cache / f'tokens-{name[:32]}', write)
    return tokens, read_json(tokens / 'about.json')


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Lists of documents of about ENCODE_CHARACTERS characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= ENCODE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pack_tokens(tokens: Path, seq_len: int, isolate: bool, gap: int, cache: Path) -> Path:
    """The directory with the rows of each split, packed at the first call. See `pack.pack`.

    gap: 1 if every document has its own begin and end token and nothing is predicted from the end; 0 if neighbours
    share one token, or if a masked model reads both.
    """

    def write(directory: Path) -> None:
        for name in progress.each(SPLITS, 'packing'):
            rows = pack(np.load(tokens / f'{name}.begins.npy'), seq_len, isolate, gap)
            for column, values in rows._asdict().items():
                np.save(directory / f'{name}.{column}.npy', values)

    name = key(BATCH_VERSION, tokens.name, seq_len, isolate, *([gap] if gap else []))
    return build(cache / f'rows-{name[:32]}', write)


def load_splits(tokens: Path, facts: dict, packed: Path, weight: float) -> dict[str, Split]:
    """The splits of one source, memory-mapped from the results of `write_tokens` and `pack_tokens`."""
    splits = {}
    for name in SPLITS:
        file = tokens / f'{name}.tokens'
        ids = np.memmap(file, facts['dtype'], 'r') if file.stat().st_size else np.zeros(0, facts['dtype'])
        rows = Rows(*(np.load(packed / f'{name}.{column}.npy', mmap_mode='r') for column in Rows._fields))
        documents = len(np.load(tokens / f'{name}.begins.npy', mmap_mode='r')) - 1
        columns = ('irregular', 'extra_bytes')
        irregular, extra_bytes = (np.load(tokens / f'{name}.{column}.npy', mmap_mode='r') for column in columns)
        part = Part(ids, rows, weight, irregular, extra_bytes)
        splits[name] = Split((part,), documents, int(rows.length.sum()), facts['bytes'][name], len(rows.first) - 1)
    return splits


def join_splits(splits: list[Split]) -> Split:
    """One split of a mixture from those of its sources."""
    sums = ('num_documents', 'num_tokens', 'num_bytes', 'num_rows')
    parts = tuple(part for split in splits for part in split.parts)
    return Split(parts, *(sum(getattr(split, name) for split in splits) for name in sums))
