"""From config.data to a corpus: text read once, tokenised once, packed once, all kept in data.cache."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmtrain.data import baselines
from lmtrain.data.cache import build, cache_directory, key
from lmtrain.data.pack import Rows, pack
from lmtrain.data.source import Source, open_source
from lmtrain.data.splits import SPLITS, bar, check_unchanged, content_of, divide, sample
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.load import LEARNED, check_fits, learn, load_tokenizer, open_tokenizer
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json, write_json

VERSION = 3  # raised when the same text and settings give other batches; a test holds the batches of this version
BATCH = 4 << 20  # characters tokenised at once


class Part(NamedTuple):
    """One source's share of a split."""

    tokens: np.ndarray  # [n] uint16 or uint32, on disk: END d1 END d2 ... END, or BEGIN d1 END BEGIN d2 END ...
    rows: Rows
    weight: float  # against the first source's 1.0
    odd: np.ndarray  # [K] int64, ascending: the tokens that stand for more or fewer bytes than their piece has
    extra: np.ndarray  # [K] int32: how many more


class TextBytes:
    """[n] int32: the bytes of text behind each token of a part, or behind its target, `ahead` tokens on."""

    dtype = np.dtype(np.int32)

    def __init__(self, part: Part, token_bytes: np.ndarray, ahead: int):
        self.part, self.token_bytes, self.ahead = part, token_bytes, ahead

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        tokens, odd, extra = self.part.tokens, self.part.odd, self.part.extra
        index = np.minimum(index + self.ahead, len(tokens) - 1)
        sizes = self.token_bytes[tokens[index]]
        if not len(odd):
            return sizes
        at = np.minimum(np.searchsorted(odd, index), len(odd) - 1)
        return sizes + np.where(odd[at] == index, extra[at], 0)


@dataclass(frozen=True)
class Split:
    """Sums over the sources of a mixture."""

    parts: tuple[Part, ...]
    num_documents: int
    num_tokens: int  # of every document and one END each: what an epoch predicts, or reads where it is masked
    num_bytes: int  # of text, in UTF-8
    num_rows: int


@dataclass(frozen=True)
class Corpus:
    """What `prepare` gives: the tokenizer, the splits, and the fingerprint of all that decides a batch."""

    tokenizer: Tokenizer
    splits: dict[str, Split]
    names: tuple[str, ...]  # of the sources: data.source, then those of data.mix
    divisions: tuple[dict[str, Split], ...]  # the splits of each source alone
    about: dict  # what was read and what was left out: {'split', 'sources': [...]}, see `_what_was_read`
    fingerprint: str  # hex sha256 of text, tokenizer, settings and VERSION
    seq_len: int
    isolate: bool
    mask_rate: float
    whole_word: bool
    _directories: tuple[Path, ...] = field(repr=False)
    _cache: Path = field(repr=False)

    def shares(self, split: str) -> list[float]:
        """Share of the rows that each source has in a batch of training, over those with rows in `split`; the sum is 1.

        A source of weight w has w rows to each row of the first source.
        """
        weights = [part.weight if len(part.rows.first) > 1 else 0.0 for part in self.splits[split].parts]
        return [weight / (sum(weights) or 1.0) for weight in weights]

    def alone(self, index: int) -> 'Corpus':
        """The corpus with one of its sources alone."""
        own = self.divisions[index]
        one = slice(index, index + 1)
        return replace(self, splits=own, names=self.names[one], divisions=(own,), _directories=self._directories[one])

    def facts(self) -> dict:
        """What a person is told of the text: `about`, and 'splits': {name: {'documents', 'bytes', 'tokens'}}."""
        sizes = {
            name: {'documents': split.num_documents, 'bytes': split.num_bytes, 'tokens': split.num_tokens}
            for name, split in self.splits.items()
        }
        return self.about | {'splits': sizes}

    def baselines(self) -> dict[str, float]:
        """Bits per byte that the validation text costs under a unigram, a bigram and xz; computed once and kept.

        Those of a mixture weight its sources as its batches do.
        """
        name = key(VERSION, [directory.name for directory in self._directories], *['each'] * (len(self.names) > 1))
        directory = build(self._cache / f'baselines-{name[:32]}', self._write_baselines)
        each = read_json(directory / 'baselines.json')
        if len(self.names) == 1:
            return each
        texts = [division['validation'] for division in self.divisions]
        # Bytes that a row of the mixture has of each source.
        size = [p * x.num_bytes / x.num_rows if p else 0.0 for p, x in zip(self.shares('validation'), texts)]
        return {
            name: sum(n * values[name] for n, values in zip(size, each) if n) / sum(size)
            for name in next((values for values in each if values), {})
        }

    def _write_baselines(self, directory: Path) -> None:
        train = [part.tokens for part in self.splits['train'].parts]
        own = self.tokenizer
        begin_id = own.begin_id if own.begin_id != own.end_id else None
        texts = [(tokens / 'validation.txt').read_bytes() for tokens in self._directories]
        files = [[part.tokens] for part in self.splits['validation'].parts]
        each = baselines.of_each(train, list(zip(files, texts, strict=True)), own.vocab_size, begin_id)
        values = each[0] if len(each) == 1 else each
        write_json(directory / 'baselines.json', values)


def prepare(
    source: str,
    mix: Iterable[tuple[str, float]],
    root: str,
    cache: str,
    text_field: str,
    document: str,
    split: str,
    validation: float,
    test: float,
    tokenizer: str,
    vocab_size: int,
    seq_len: int,
    batch_size: int,
    isolate: bool,
    mask_rate: float,
    whole_word: bool,
    vocab_limit: int | None = None,
) -> Corpus:
    """The corpus of config.data (configs/base.py says what each argument means), made now or found in `cache`.

    Duplicates of a document fall into the same split. 'bpe' is learned from the train split alone; the alphabet of
    'chars' and 'whitespace' is that of the whole corpus (nanoGPT's rule), so that any part of it can be encoded.

    Args:
      vocab_limit: rows of the model's embedding; no text may need a token beyond them.

    Raises FileNotFoundError, ValueError or ImportError naming the file, line or field at fault, and the way out.
    """
    _check(locals())
    place = cache_directory(cache)
    sources = [open_source(name, root, place, text_field, document) for name, _ in ((source, 1.0), *mix)]
    _distinct(sources)
    rule = {'split': split, 'validation': float(validation), 'test': float(test)}
    contents = [content_of(each, [text_field, document], rule, place) for each in sources]
    tokens_of = _tokenizer(tokenizer, vocab_size, mask_rate > 0, sources, contents, rule, place, root)
    check_fits(tokens_of, tokenizer, vocab_limit, -1, '')  # before minutes are spent on the text
    directories = [
        _tokenised(each, content, tokens_of, rule, place) for each, content in zip(sources, contents, strict=True)
    ]
    for each, directory in zip(sources, directories, strict=True):
        check_fits(tokens_of, tokenizer, vocab_limit, max(_about(directory)['largest'].values()), each.name)
    if vocab_limit is not None and mask_rate:  # no token is replaced by one that the model lacks
        tokens_of.content_ids = tokens_of.content_ids[tokens_of.content_ids < vocab_limit]
    weights = [1.0, *(float(weight) for _, weight in mix)]
    # Where documents share no END, nothing is predicted from it; a masked model reads it all the same.
    gap = int(tokens_of.begin_id != tokens_of.end_id and not mask_rate)
    loaded = [
        _load(directory, _packed(directory, seq_len, isolate, gap, place), weight)
        for directory, weight in zip(directories, weights, strict=True)
    ]
    splits = {name: _join([division[name] for division in loaded]) for name in SPLITS}
    for each, division in zip(sources, loaded, strict=True):
        _check_filled(each.name, division, ['train'])
    if splits['train'].num_tokens < seq_len:
        raise InputError(
            f'{source}: the train split has {splits["train"].num_tokens} tokens in all, not one full row of '
            f'data.seq_len={seq_len}: give more text, or set data.seq_len lower'
        )
    _check_filled(source, splits, [name for name in ('validation', 'test') if rule[name]])
    ways = [content['split'] for content in contents]  # 'auto' is as good as the way that it has taken
    settings = [
        rule | {'split': ways[0] if len(set(ways)) == 1 else ways},
        seq_len,
        isolate,
        float(mask_rate),
        whole_word,
        weights,
    ]
    shas = [content['sha256'] for content in contents]
    fingerprint = key(VERSION, shas, tokens_of.encoding, settings)
    return Corpus(
        tokenizer=tokens_of,
        splits=splits,
        names=tuple(each.name for each in sources),
        divisions=tuple(loaded),
        about=_what_was_read(sources, contents, weights, split),
        fingerprint=fingerprint,
        seq_len=seq_len,
        isolate=isolate,
        mask_rate=mask_rate,
        whole_word=whole_word,
        _directories=tuple(directories),
        _cache=place,
    )


# --- settings


def _check(settings: dict) -> None:
    def need(name: str, right: bool, expected: str) -> None:
        if not right:
            raise InputError(f'data.{name} is {settings[name]!r}; it must be {expected}')

    need('split', settings['split'] in ('auto', 'document', 'tail'), "'auto', 'document' or 'tail'")
    for name in ('validation', 'test', 'mask_rate'):
        share = type(settings[name]) in (int, float) and 0 <= settings[name] < 1
        need(name, share, 'a share of the text, from 0 to below 1')
    need('test', settings['validation'] + settings['test'] < 1, 'below 1 together with data.validation')
    for name in ('seq_len', 'batch_size', 'vocab_size'):
        need(name, type(settings[name]) is int and settings[name] > 0, 'a whole number above 0')
    need('seq_len', settings['seq_len'] > 1, 'at least 2 tokens')
    for name in ('isolate', 'whole_word'):
        need(name, type(settings[name]) is bool, 'True or False')
    need(
        'whole_word',
        settings['mask_rate'] or not settings['whole_word'],
        'False where data.mask_rate is 0: it hides nothing',
    )
    mix = [pair for pair in settings['mix'] if isinstance(pair, tuple | list) and len(pair) == 2]
    pairs = all(type(name) is str and type(weight) in (int, float) and 0 < weight < math.inf for name, weight in mix)
    pairs = pairs and len(mix) == len(settings['mix'])
    need('mix', pairs, "pairs of a source and its weight above 0, as in (('more/*.txt', 0.25),)")


def _what_was_read(sources: list[Source], contents: list[dict], weights: list[float], split: str) -> dict:
    """What was read of each source: files, bytes, documents, how they were divided, and what was left out and why."""
    rows = []
    for source, content, weight in zip(sources, contents, weights, strict=True):
        skipped = source.skipped | ({'blank': content['blank']} if content['blank'] else {})
        row = {'name': source.name, 'weight': weight, 'files': len(source.files), 'divided': content['split']}
        rows.append(row | {'bytes': content['bytes'], 'documents': content['documents'], 'skipped': skipped})
    return {'split': split, 'sources': rows}


def _distinct(sources: list[Source]) -> None:
    seen: dict[Path, Source] = {}
    for source in sources:
        for file in source.files:
            other = seen.setdefault(file.resolve(), source)
            if other is not source:
                raise InputError(
                    f'{file} stands in two sources, {other.name!r} and {source.name!r}: leave it out of one'
                )


# --- the tokenizer


def _tokenizer(name, vocab_size, mask, sources, contents, rule, place, root) -> Tokenizer:
    if name not in LEARNED:
        return open_tokenizer(local_path(name, 'data.tokenizer', root), mask)
    seen = [] if name == 'bytes' else [content['sha256'] for content in contents]
    known = key(VERSION, name, mask, seen, [vocab_size, rule] if name == 'bpe' else [])

    def write(directory: Path) -> None:
        if name == 'bpe':
            texts = sample(list(zip(sources, contents, strict=True)), rule)
        else:
            texts = (document.text for source in sources for document in source.documents())
        learn(name, texts, vocab_size, mask).save(directory)

    return load_tokenizer(build(place / f'tokenizer-{known[:32]}', write))


# --- tokens and rows


def _tokenised(source: Source, content: dict, tokenizer: Tokenizer, rule: dict, place: Path) -> Path:
    """The directory of a source's tokens: SPLIT.(tokens, begins.npy, odd.npy, extra.npy), validation.txt, about.json.

    about.json: 'dtype' of the tokens, 'bytes' of each split's text, 'largest' id of each split's content.
    """
    shared = tokenizer.begin_id == tokenizer.end_id

    def write(directory: Path) -> None:
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        files = {name: (directory / f'{name}.tokens').open('wb') for name in SPLITS}
        validation = (directory / 'validation.txt').open('wb')
        begins = {name: [0] for name in SPLITS}
        sizes, largest = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, -1)
        odd = {name: ([], []) for name in SPLITS}
        end = dtype(tokenizer.end_id).tobytes()
        begin = b'' if shared else dtype(tokenizer.begin_id).tobytes()
        if shared:  # the END of one document is the begin of the next
            for name in SPLITS:
                files[name].write(end)
        documents = bar(divide(source, content, rule), f'tokenising {source.name}', content['documents'])
        for batch in _batches(documents):
            encoded = tokenizer.encode_with_bytes([text for _, text in batch])
            for (name, text), (ids, spelled) in zip(batch, encoded, strict=True):
                files[name].write(begin + ids.astype(dtype).tobytes() + end)
                extra = spelled - np.append(tokenizer.token_bytes[ids], np.int32(0))
                at = np.flatnonzero(extra)
                odd[name][0].append(begins[name][-1] + 1 + at)
                odd[name][1].append(extra[at])
                begins[name].append(begins[name][-1] + len(ids) + 2 - shared)
                raw = text.encode()
                sizes[name] += len(raw)
                largest[name] = max(largest[name], int(ids.max(initial=-1)))
                if name == 'validation':
                    validation.write(raw)
        for file in (*files.values(), validation):
            file.close()
        check_unchanged(source, content['stamps'])
        for name in SPLITS:
            np.save(directory / f'{name}.begins.npy', np.array(begins[name], np.int64))
            for column, values, kind in zip(('odd', 'extra'), odd[name], (np.int64, np.int32)):
                np.save(directory / f'{name}.{column}.npy', np.concatenate([np.zeros(0), *values]).astype(kind))
        write_json(directory / 'about.json', {'dtype': np.dtype(dtype).name, 'bytes': sizes, 'largest': largest})

    known = key(VERSION, 'bytes', content['sha256'], tokenizer.encoding, rule, *([] if shared else ['begin']))
    return build(place / f'tokens-{known[:32]}', write)


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _packed(tokens: Path, seq_len: int, isolate: bool, gap: int, place: Path) -> Path:
    def write(directory: Path) -> None:
        for name in SPLITS:
            rows = pack(np.load(tokens / f'{name}.begins.npy'), seq_len, isolate, gap)
            for column, values in rows._asdict().items():
                np.save(directory / f'{name}.{column}.npy', values)

    return build(place / f'rows-{key(VERSION, tokens.name, seq_len, isolate, *[gap] * gap)[:32]}', write)


def _about(tokens: Path) -> dict:
    return read_json(tokens / 'about.json')


def _load(tokens: Path, packed: Path, weight: float) -> dict[str, Split]:
    about, splits = _about(tokens), {}
    for name in SPLITS:
        file = tokens / f'{name}.tokens'
        ids = np.memmap(file, about['dtype'], 'r') if file.stat().st_size else np.zeros(0, about['dtype'])
        rows = Rows(*(np.load(packed / f'{name}.{column}.npy', mmap_mode='r') for column in Rows._fields))
        documents = len(np.load(tokens / f'{name}.begins.npy', mmap_mode='r')) - 1
        odd, extra = (np.load(tokens / f'{name}.{column}.npy', mmap_mode='r') for column in ('odd', 'extra'))
        part = Part(ids, rows, weight, odd, extra)
        splits[name] = Split((part,), documents, int(rows.length.sum()), about['bytes'][name], len(rows.first) - 1)
    return splits


def _join(splits: list[Split]) -> Split:
    names = ('num_documents', 'num_tokens', 'num_bytes', 'num_rows')
    return Split(
        tuple(part for split in splits for part in split.parts),
        *(sum(getattr(split, name) for split in splits) for name in names),
    )


def _check_filled(source: str, splits: dict[str, Split], names: list[str]) -> None:
    count = sum(split.num_documents for split in splits.values())
    for name in names:
        if not splits[name].num_documents:
            raise InputError(
                f'{source}: no text fell into the {name} split, of {count} document{"s" * (count != 1)}. Give more '
                f"documents, cut them finer (data.document='line' or 'paragraph'), take their ends for it "
                f"(data.split='auto')" + f', or set data.{name} to 0' * (name != 'train')
            )
