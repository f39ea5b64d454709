"""What a source's text is: its hash, read again only where it may have changed, and its division into splits.

What is kept under such a hash cannot be stale in silence. Hashing the text again at every start is saved where every
file of a source has the size, inode, modification and change time it had when it was hashed, and none of them was
younger than two seconds then (the rule by which git trusts its index).
"""

import array
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lmtrain.data.cache import key, read_note, write_note
from lmtrain.data.document import Document
from lmtrain.data.source import Source
from lmtrain.data.tokenizers.subword import cut
from lmtrain.errors import InputError

SPLITS = ('train', 'validation', 'test')
# Characters; a tokenizer is learned from a sample of about this size where there is more. Of Python's own 10.7 MB all
# would save 1.1 % of the tokens, and twice as much a start 0.8 %.
LEARNED_FROM = 4 << 20
SETTLED = 2.0  # seconds after its last change from which on a file's times can be trusted
# data.split = 'auto' keeps documents whole if each split comes NEAR its share of the bytes, and holds MANY documents or
# the tails would be SHORT: a model that is evaluated on a few words has no context to predict them from.
NEAR, MANY, SHORT = 0.02, 10, 1 << 10


def content_of(source: Source, reading: list[str], rule: dict, place: Path) -> dict:
    """{'sha256', 'characters', 'bytes', 'documents', 'blank', 'split', 'borders', 'stamps'} of a source's text.

    'blank' counts documents without text, which are skipped. 'split' is how `divide` divides the others: 'document',
    'tail' or 'tails' (the tail of each document).

    Args:
      reading: the settings it is read with.
      rule: {'split', 'validation', 'test'} of config.data.

    Raises ValueError where there is no text, and whatever the source raises.
    """
    stamps = _stamps(source)
    note = place / 'seen' / f'{key(2, source.name, reading, rule, [stamp[0] for stamp in stamps])[:32]}.json'
    known = read_note(note)
    if known is not None and known['stamps'] == stamps:
        return known
    begun, digest, characters, total, documents, blank = time.time(), hashlib.sha256(), 0, 0, 0, 0
    # Of the documents that may be divided: the draw, characters and bytes of each.
    draws, sizes, raw_sizes = array.array('d'), array.array('q'), array.array('q')
    grouped = False
    for text, group, split in bar(source.documents(), f'reading {source.name}'):
        if not text.strip():
            blank += 1
            continue
        raw = text.encode()
        digest.update(json.dumps([len(raw), group, split]).encode() + raw)
        characters, total, documents = characters + len(text), total + len(raw), documents + 1
        grouped = grouped or bool(group)
        if not split:
            draws.append(hash_unit('split', group or text))
            sizes.append(len(text))
            raw_sizes.append(len(raw))
    if not documents:
        where = ', '.join(map(str, source.files[:3])) or source.name
        raise InputError(f'{where}: nothing but blanks and empty lines, so there is no text to learn from')
    check_unchanged(source, stamps)
    shares, how = [rule['validation'], rule['test']], rule['split']
    borders = boundaries(np.array(draws), np.array(sizes), [share * characters for share in shares])
    if how == 'auto':
        whole = grouped or stays_whole(np.array(draws), np.array(raw_sizes), borders, shares, total)
        how = 'document' if whole else 'tails'
    if how == 'tail':
        borders = [int(characters * (1 - sum(shares))), int(characters * (1 - rule['test']))]
    content = {'sha256': digest.hexdigest(), 'characters': characters, 'bytes': total, 'documents': documents}
    content |= {'blank': blank, 'split': how, 'borders': borders, 'stamps': stamps}
    if all(begun - os.stat(file).st_ctime > SETTLED for file in source.files):
        write_note(note, content)
    return content


def boundaries(draws: np.ndarray, sizes: np.ndarray, wanted: list[float]) -> list[float]:
    """[2] validation is the documents with draws below the first, test those from it to below the second.

    A split takes the groups, in the order of their draws, whose characters come nearest to what is wanted of it: one
    at least where anything is. Borders at the wanted shares of draws would miss by half where few documents are of all
    sizes.
    """
    draws, group = np.unique(draws, return_inverse=True)
    reached = np.cumsum(np.bincount(group, sizes)) if len(draws) else np.zeros(0)
    borders, first, before = [], 0, 0.0
    for share in wanted:
        if share > 0 and first < len(draws):
            first += max(1, int(np.argmin(np.abs(np.append(before, reached[first:]) - before - share))))
            before = reached[first - 1]
        borders.append(float(draws[first]) if first < len(draws) else 1.0)
    return borders


def stays_whole(draws, sizes, borders: list[float], shares: list[float], total: int) -> bool:
    """Whether data.split = 'auto' keeps documents whole. See NEAR, MANY and SHORT.

    Args:
      draws, sizes: [D] draw and bytes of each document that may be divided.
      borders: as `borders_of` gives them. shares: of validation and test. total: bytes of all documents.
    """
    split = np.searchsorted(borders, draws, side='right')  # 0 validation, 1 test, 2 train
    for index, share in enumerate(shares):
        miss = abs(sizes[split == index].sum() / total - share)
        many = np.sum(split == index) >= MANY or share * total < SHORT * len(draws)
        if share and (miss > min(NEAR, share / 2) or not many):
            return False
    return True


def tails(text: str, validation: float, test: float) -> list[str]:
    """[train, validation, test] parts of one document, cut by shares of its bytes, between characters."""
    raw, cuts = text.encode(), []
    for share in (1 - validation - test, 1 - test):
        cut = round(len(raw) * share)
        while 0 < cut < len(raw) and raw[cut] & 0xC0 == 0x80:  # not within a character
            cut -= 1
        cuts.append(cut)
    return [part.decode() for part in (raw[: cuts[0]], raw[cuts[0] : cuts[1]], raw[cuts[1] :])]


def _documents(source: Source) -> Iterator[Document]:
    return (document for document in source.documents() if document.text.strip())


def _stamps(source: Source) -> list[list]:
    found = [(str(file), os.stat(file)) for file in source.files]
    return [[name, at.st_size, at.st_ino, at.st_mtime_ns, at.st_ctime_ns] for name, at in found]


def check_unchanged(source: Source, stamps: list[list]) -> None:
    """Raises ValueError where a file of the source is not as it was when `stamps` were taken."""
    if _stamps(source) != stamps:
        raise InputError(f'{source.name}: a file changed while it was read; start again when it is complete')


def divide(source: Source, content: dict, rule: dict) -> Iterator[tuple[str, str]]:
    """(split, text) of every document that has text.

    How: content['split']. 'document': by a number that the document's group, or its text, decides. 'tail': by place in
    the concatenated text; a document that stands across a border is cut there. 'tails': see `tails`.
    """
    first, second = content['borders']
    if content['split'] == 'document':
        for text, group, split in _documents(source):
            draw = hash_unit('split', group or text)
            yield split or ('validation' if draw < first else 'test' if draw < second else 'train'), text
        return
    if content['split'] == 'tails':
        for text, _, fixed in _documents(source):
            parts = [(fixed, text)] if fixed else zip(SPLITS, tails(text, rule['validation'], rule['test']))
            yield from ((split, part) for split, part in parts if part.strip())
        return
    position = 0
    for text, *_ in _documents(source):
        begin = 0
        for split, border in zip(SPLITS, (first, second, content['characters']), strict=True):
            end = min(len(text), max(begin, border - position))
            if text[begin:end].strip():
                yield split, text[begin:end]
            begin = end
        position += len(text)


def hash_unit(purpose: str, text: str) -> float:
    """A number in [0, 1) that the text decides, equal in every run; for another purpose another number."""
    return int.from_bytes(hashlib.sha256(f'{purpose}:{text}'.encode()).digest()[:8], 'big') / 2**64


def sample(pairs: list[tuple[Source, dict]], rule: dict) -> Iterator[str]:
    """The train split, or about LEARNED_FROM characters of it, chosen by hash."""
    share = LEARNED_FROM / sum(content['characters'] for _, content in pairs)
    for source, content in pairs:
        for split, text in divide(source, content, rule):
            if split == 'train':
                yield from (piece for piece in cut(text) if share >= 1 or hash_unit('sample', piece) < share)


def bar(items: Iterable, label: str, total: int | None = None) -> Iterable:
    """The items, with a progress bar where stderr is a terminal and they take more than a second."""
    if not sys.stderr.isatty():
        return items
    import tqdm

    return tqdm.tqdm(items, label, total, unit=' documents', delay=1.0, leave=False)
