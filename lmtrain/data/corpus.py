"""From config.data to a corpus: text is read, tokenised and packed once, and cached in data.cache."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain.data import baselines
from lmtrain.data.cache import build, cache_directory, key
from lmtrain.data.source import Source, open_source
from lmtrain.data.splits import SPLITS, Content, read_content, sample_train
from lmtrain.data.token_files import (
    BATCH_VERSION,
    Split,
    join_splits,
    load_splits,
    pack_tokens,
    write_tokens,
)
from lmtrain.data.tokenizers.base import Bytes, Tokenizer
from lmtrain.data.tokenizers.load import LEARNED, check_fits, learn, load_tokenizer, open_tokenizer
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json, write_json
from lmtrain.runtime import progress


class TooShort(InputError):
    """The text has fewer tokens than one row; `tokens` is their number."""

    def __init__(self, message: str, tokens: int):
        super().__init__(message)
        self.tokens = tokens


@dataclass(frozen=True)
class Corpus:
    """The result of `prepare`: the tokenizer, the splits, and a hash of everything that determines a batch."""

    tokenizer: Tokenizer
    splits: dict[str, Split]
    names: tuple[str, ...]  # of the sources: data.source, then those of data.mix
    source_splits: tuple[dict[str, Split], ...]  # the splits of each source alone
    about: dict  # what was read and skipped: {'split', 'sources': [...]}, see `_describe_sources`
    fingerprint: str  # hex SHA-256 of text, tokenizer, settings and BATCH_VERSION
    seq_len: int
    isolate: bool
    mask_rate: float
    whole_word: bool
    _directories: tuple[Path, ...] = field(repr=False)
    _cache: Path = field(repr=False)

    def shares(self, split: str) -> list[float]:
        """Share of each source in the rows of a training batch, over the sources with rows in `split`; the sum is 1.

        A source of weight w has w rows for each row of the first source.
        """
        weights = [part.weight if len(part.rows.first) > 1 else 0.0 for part in self.splits[split].parts]
        return [weight / (sum(weights) or 1.0) for weight in weights]

    def single_source(self, index: int) -> 'Corpus':
        """The corpus of source number `index` alone."""
        own = self.source_splits[index]
        one = slice(index, index + 1)
        return replace(
            self, splits=own, names=self.names[one], source_splits=(own,), _directories=self._directories[one]
        )

    def facts(self) -> dict:
        """A summary for reports: `about`, and 'splits': {name: {'documents', 'bytes', 'tokens'}}."""
        sizes = {
            name: {'documents': split.num_documents, 'bytes': split.num_bytes, 'tokens': split.num_tokens}
            for name, split in self.splits.items()
        }
        return self.about | {'splits': sizes}

    def baselines(self) -> dict[str, float]:
        """Bits per byte of the validation text under a unigram, a bigram and xz; computed once and cached.

        The baselines of a mixture weight its sources as its batches do.
        """
        kind = ['each'] if len(self.names) > 1 else []
        name = key(BATCH_VERSION, [directory.name for directory in self._directories], *kind)
        directory = build(self._cache / f'baselines-{name[:32]}', self._write_baselines)
        each = read_json(directory / 'baselines.json')
        if len(self.names) == 1:
            return each
        texts = [splits['validation'] for splits in self.source_splits]
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
        tokens = [[part.tokens] for part in self.splits['validation'].parts]
        with progress.phase('measuring unigram, bigram and xz'):
            each = baselines.bits_per_byte_of_texts(
                train, list(zip(tokens, texts, strict=True)), own.vocab_size, begin_id
            )
        write_json(directory / 'baselines.json', each[0] if len(each) == 1 else each)


class _Text(NamedTuple):
    """A source and what is known of its text."""

    source: Source
    content: Content
    weight: float


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
    """The corpus of config.data, whose fields are the arguments (configs/base.py); cached in `cache`.

    Duplicates of a document are in the same split. 'bpe' is learned from the train split alone; the alphabet of 'chars'
    and 'whitespace' is that of the whole corpus (as in nanoGPT), so that any part of it can be encoded.

    Args:
      vocab_limit: rows of the model's embedding; no text may need a token beyond them.

    Raises FileNotFoundError or InputError naming the file, line or field at fault, and the way out.
    """
    _check_settings(locals())
    rule = {'split': split, 'validation': float(validation), 'test': float(test)}
    place = cache_directory(cache)
    texts = _read_texts([(source, 1.0), *mix], root, place, text_field, document, rule)
    tokens_of = _tokenizer(tokenizer, vocab_size, mask_rate > 0, texts, rule, place, root)
    tokenised = _tokenise(texts, tokens_of, tokenizer, vocab_limit, rule, place)
    if vocab_limit is not None and mask_rate:  # no token is replaced by one that the model lacks
        tokens_of.content_ids = tokens_of.content_ids[tokens_of.content_ids < vocab_limit]
    # If documents share no END, nothing is predicted from it; a masked model reads it all the same.
    gap = int(tokens_of.begin_id != tokens_of.end_id and not mask_rate)
    source_splits = tuple(
        load_splits(directory, facts, pack_tokens(directory, seq_len, isolate, gap, place), text.weight)
        for (directory, facts), text in zip(tokenised, texts, strict=True)
    )
    return Corpus(
        tokenizer=tokens_of,
        splits=_join_sources(source_splits, texts, rule, seq_len),
        names=tuple(text.source.name for text in texts),
        source_splits=source_splits,
        about=_describe_sources(texts, split),
        fingerprint=_fingerprint(texts, tokens_of, rule, [seq_len, isolate, float(mask_rate), whole_word]),
        seq_len=seq_len,
        isolate=isolate,
        mask_rate=mask_rate,
        whole_word=whole_word,
        _directories=tuple(directory for directory, _ in tokenised),
        _cache=place,
    )


# --- settings


def _check_settings(settings: dict[str, Any]) -> None:
    """Raises InputError naming the field that is out of range."""

    def check(name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise InputError(f'data.{name} is {settings[name]!r}; it must be {expected}')

    check('split', settings['split'] in ('auto', 'document', 'tail'), "'auto', 'document' or 'tail'")
    for name in ('validation', 'test', 'mask_rate'):
        share = type(settings[name]) in (int, float) and 0 <= settings[name] < 1
        check(name, share, 'a share of the text, from 0 to below 1')
    check('test', settings['validation'] + settings['test'] < 1, 'below 1 together with data.validation')
    for name in ('seq_len', 'batch_size', 'vocab_size'):
        check(name, type(settings[name]) is int and settings[name] > 0, 'a whole number above 0')
    check('seq_len', settings['seq_len'] > 1, 'at least 2 tokens')
    for name in ('isolate', 'whole_word'):
        check(name, type(settings[name]) is bool, 'True or False')
    masked = settings['mask_rate'] or not settings['whole_word']
    check('whole_word', masked, 'False if data.mask_rate is 0, which masks nothing')
    mix = [pair for pair in settings['mix'] if isinstance(pair, tuple | list) and len(pair) == 2]
    pairs = all(type(name) is str and type(weight) in (int, float) and 0 < weight < math.inf for name, weight in mix)
    pairs = pairs and len(mix) == len(settings['mix'])
    check('mix', pairs, "pairs of a source and its weight above 0, as in (('more/*.txt', 0.25),)")


# --- text


def _read_texts(
    names: list[tuple[str, float]], root: str, cache: Path, text_field: str, document: str, rule: dict
) -> list[_Text]:
    """The text of each (source, weight). Raises InputError if a file is in two of them."""
    sources = [open_source(name, root, cache, text_field, document) for name, _ in names]
    seen: dict[Path, Source] = {}
    for source in sources:
        for file in source.files:
            other = seen.setdefault(file.resolve(), source)
            if other is not source:
                raise InputError(f'{file} is in two sources, {other.name!r} and {source.name!r}: remove it from one')
    contents = [read_content(source, [text_field, document], rule, cache) for source in sources]
    weights = [float(weight) for _, weight in names]
    return [_Text(*each) for each in zip(sources, contents, weights, strict=True)]


def _describe_sources(texts: list[_Text], split: str) -> dict:
    """What was read of each source: files, bytes, documents, how they were divided, and what was skipped and why."""
    rows = []
    for source, content, weight in texts:
        skipped = source.skipped | ({'blank': content.blank} if content.blank else {})
        row = {'name': source.name, 'weight': weight, 'files': len(source.files), 'divided': content.split}
        rows.append(row | {'bytes': content.num_bytes, 'documents': content.documents, 'skipped': skipped})
    return {'split': split, 'sources': rows}


def _fingerprint(texts: list[_Text], tokenizer: Tokenizer, rule: dict, settings: list) -> str:
    ways = [text.content.split for text in texts]  # equal for 'auto' and the division that it chose
    rule = rule | {'split': ways[0] if len(set(ways)) == 1 else ways}
    hashes = [text.content.sha256 for text in texts]
    return key(BATCH_VERSION, hashes, tokenizer.encoding, [rule, *settings, [text.weight for text in texts]])


# --- tokens


def _tokenizer(name: str, vocab_size: int, mask: bool, texts: list[_Text], rule: dict, cache: Path, root: str):
    """The tokenizer of a file, or one that is learned and cached."""
    if name not in LEARNED:
        return open_tokenizer(local_path(name, 'data.tokenizer', root), mask)
    if name == 'bytes':  # nothing is learned
        return Bytes(mask=mask)
    hashes = [text.content.sha256 for text in texts]
    directory = key(BATCH_VERSION, name, mask, hashes, [vocab_size, rule] if name == 'bpe' else [])

    def write(directory: Path) -> None:
        if name == 'bpe':
            documents = sample_train([(text.source, text.content) for text in texts], rule)
        else:
            documents = (document.text for text in texts for document in text.source.documents())
        with progress.phase(f'training the tokenizer ({name})'):
            learn(name, documents, vocab_size, mask).save(directory)

    return load_tokenizer(build(cache / f'tokenizer-{directory[:32]}', write))


def _tokenise(
    texts: list[_Text], tokenizer: Tokenizer, name: str, vocab_limit: int | None, rule: dict, cache: Path
) -> list[tuple[Path, dict]]:
    """`write_tokens` of each source. Raises InputError if one has a token that the model lacks."""
    check_fits(tokenizer, name, vocab_limit, -1, '')  # before minutes are spent on the text
    tokenised = [write_tokens(text.source, text.content, tokenizer, rule, cache) for text in texts]
    for text, (_, facts) in zip(texts, tokenised, strict=True):
        check_fits(tokenizer, name, vocab_limit, max(facts['largest'].values()), text.source.name)
    return tokenised


def _join_sources(
    source_splits: tuple[dict[str, Split], ...], texts: list[_Text], rule: dict, seq_len: int
) -> dict[str, Split]:
    """The splits of the mixture. Raises InputError if one is empty although it has a share of the text."""
    splits = source_splits[0]
    if len(source_splits) > 1:
        splits = {name: join_splits([each[name] for each in source_splits]) for name in SPLITS}
    for text, each in zip(texts, source_splits, strict=True):
        _check_not_empty(text.source.name, each, ['train'])
    source = texts[0].source.name
    tokens = splits['train'].num_tokens
    if tokens < seq_len:
        fitting = 1 << max(1, (tokens // 2).bit_length() - 1)  # two rows or more
        raise TooShort(
            f'{source}: the train split has {tokens} tokens in all, less than one row of data.seq_len={seq_len}: '
            f'give more text, or shorter rows, such as --config.data.seq_len={fitting}',
            tokens,
        )
    _check_not_empty(source, splits, [name for name in ('validation', 'test') if rule[name]])
    return splits


def _check_not_empty(source: str, splits: dict[str, Split], names: list[str]) -> None:
    count = sum(split.num_documents for split in splits.values())
    documents = f'{count} document' if count == 1 else f'{count} documents'
    for name in names:
        if not splits[name].num_documents:
            leave_out = '' if name == 'train' else f', or set data.{name} to 0'
            raise InputError(
                f'{source}: the {name} split is empty, of {documents}. Give more documents, divide them into smaller '
                f"ones (data.document='line' or 'paragraph'), or split each of them (data.split='auto'){leave_out}"
            )
