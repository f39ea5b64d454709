"""Splits of a source: a hash of its text, and the division into train, validation and test.

Everything derived from a text is cached under the hash of the text, so it cannot be stale. The text is not hashed again
at a start if every file has the size, inode, modification time and change time that it had, and none of the files was
changed within SETTLED seconds before it was hashed (git trusts its index by the same rule).
"""

import array
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmtrain.data.cache import key, read_note, write_note
from lmtrain.data.hash_rng import hash_unit
from lmtrain.data.source import Source
from lmtrain.data.tokenizers.subword import cut_text
from lmtrain.errors import InputError
from lmtrain.runtime import progress

SPLITS = ('train', 'validation', 'test')
# Characters; a tokenizer is learned from a sample of about this size if there is more text. Learning from all 10.7 MB
# of Python's text gives 1.1 % fewer tokens, from twice the sample 0.8 % fewer.
LEARN_SAMPLE = 4 << 20
SETTLED = 2.0  # seconds after its last change from which the times of a file are trusted
# data.split = 'auto' keeps documents whole if every split is within NEAR of its share of the bytes, and has at least
# MANY documents, or the tails would be shorter than SHORT bytes: then there is no context to predict a token from.
NEAR, MANY, SHORT = 0.02, 10, 1 << 10


class Content(NamedTuple):
    """A summary of a source's text.

    Attributes:
      sha256: of the text of all documents, their groups and their fixed splits.
      characters, num_bytes, documents: sizes of the documents with text.
      blank: documents without text, which are skipped.
      split: how `divide` divides the documents: 'document', 'tail', or 'tails' (the tail of each document).
      boundaries: [2] where validation and test begin, in hashes ('document') or in characters ('tail').
      stamps: name, size, inode and times of each file.
    """

    sha256: str
    characters: int
    num_bytes: int
    documents: int
    blank: int
    split: str
    boundaries: list[float]
    stamps: list[list]


class _Divisible(NamedTuple):
    """The documents of a source that may be divided: hash in [0, 1), characters and bytes of each."""

    hashes: array.array
    characters: array.array
    num_bytes: array.array


def read_content(source: Source, settings: list[str], rule: dict, cache: Path) -> Content:
    """Reads the text of a source, or the note about it in `cache` if no file has changed.

    Args:
      settings: config fields that change what is read.
      rule: {'split', 'validation', 'test'} of config.data.

    Raises InputError if there is no text, or if a rule of 'tail' would divide the source's own validation and test
    splits, and whatever the source raises.
    """
    stamps = _stamps(source)
    note = cache / 'seen' / f'{key(4, source.name, settings, rule, [stamp[0] for stamp in stamps])[:32]}.json'
    known = read_note(note)
    if known is not None and known['stamps'] == stamps:
        return Content(**known)
    started, digest, characters, num_bytes, documents, blank = time.time(), hashlib.sha256(), 0, 0, 0, 0
    divisible = _Divisible(array.array('d'), array.array('q'), array.array('q'))
    grouped = False
    for text, group, split in progress.each(source.documents(), f'reading {source.name}'):
        if not text.strip():
            blank += 1
            continue
        if split in SPLITS[1:] and rule['split'] == 'tail':
            raise InputError(
                f"data.split='tail' would train on the {split} split of {source.name}: choose 'document' or 'auto'"
            )
        raw = text.encode()
        digest.update(json.dumps([len(raw), group, split]).encode() + raw)
        characters, num_bytes, documents = characters + len(text), num_bytes + len(raw), documents + 1
        grouped = grouped or bool(group)
        if not split:
            divisible.hashes.append(hash_unit('split', group or text))
            divisible.characters.append(len(text))
            divisible.num_bytes.append(len(raw))
    if not documents:
        names = ', '.join(map(str, source.files[:3])) or source.name
        raise InputError(f'{names}: only spaces and empty lines, so there is no text to learn from')
    check_unchanged(source, stamps)
    split, bounds = _choose_division(divisible, rule, grouped, characters, num_bytes)
    content = Content(digest.hexdigest(), characters, num_bytes, documents, blank, split, bounds, stamps)
    if all(started - os.stat(file).st_ctime > SETTLED for file in source.files):
        write_note(note, content._asdict())
    return content


def _choose_division(
    documents: _Divisible, rule: dict, grouped: bool, characters: int, num_bytes: int
) -> tuple[str, list[float]]:
    """(how the documents are divided, where validation and test begin)."""
    shares, split = [rule['validation'], rule['test']], rule['split']
    hashes = np.array(documents.hashes)
    bounds = boundaries(hashes, np.array(documents.characters), [share * characters for share in shares])
    if split == 'auto':
        whole = grouped or keeps_documents_whole(hashes, np.array(documents.num_bytes), bounds, shares, num_bytes)
        split = 'document' if whole else 'tails'
    if split == 'tail':
        bounds = [int(characters * (1 - sum(shares))), int(characters * (1 - rule['test']))]
    return split, bounds


def boundaries(hashes: np.ndarray, sizes: np.ndarray, targets: list[float]) -> list[float]:
    """[2] validation is the documents with hashes below the first, test those from it to below the second.

    A split takes groups in the order of their hashes until its size is nearest to its target, and at least one if the
    target is above 0. With boundaries at the target shares of the hashes instead, a few documents of very different
    sizes would miss the target by half.

    Args:
      hashes, sizes: [D] hash and size of each document; equal hashes are one group.
      targets: sizes of validation and test.
    """
    hashes, group = np.unique(hashes, return_inverse=True)
    total = np.cumsum(np.bincount(group, sizes)) if len(hashes) else np.zeros(0)
    bounds, first, before = [], 0, 0.0
    for target in targets:
        if target > 0 and first < len(hashes):
            first += max(1, int(np.argmin(np.abs(np.append(before, total[first:]) - before - target))))
            before = total[first - 1]
        bounds.append(float(hashes[first]) if first < len(hashes) else 1.0)
    return bounds


def keeps_documents_whole(hashes, sizes, bounds: list[float], shares: list[float], total: int) -> bool:
    """Whether data.split = 'auto' keeps documents whole. See NEAR, MANY and SHORT.

    Args:
      hashes, sizes: [D] hash and bytes of each document that may be divided.
      bounds: the result of `boundaries`.
      shares: of validation and test.
      total: bytes of all documents.
    """
    split = np.searchsorted(bounds, hashes, side='right')  # 0 validation, 1 test, 2 train
    for index, share in enumerate(shares):
        miss = abs(sizes[split == index].sum() / total - share)
        enough = np.sum(split == index) >= MANY or share * total < SHORT * len(hashes)
        if share and (miss > min(NEAR, share / 2) or not enough):
            return False
    return True


def split_tails(text: str, validation: float, test: float) -> list[str]:
    """[train, validation, test] parts of one document: its beginning and two tails, by shares of its bytes.

    >>> split_tails('0123456789', 0.2, 0.1)
    ['0123456', '78', '9']
    """
    raw, cuts = text.encode(), []
    for share in (1 - validation - test, 1 - test):
        cut = round(len(raw) * share)
        while 0 < cut < len(raw) and raw[cut] & 0xC0 == 0x80:  # not inside a character
            cut -= 1
        cuts.append(cut)
    return [part.decode() for part in (raw[: cuts[0]], raw[cuts[0] : cuts[1]], raw[cuts[1] :])]


def _stamps(source: Source) -> list[list]:
    stats = [(str(file), os.stat(file)) for file in source.files]
    return [[name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]


def check_unchanged(source: Source, stamps: list[list]) -> None:
    """Raises InputError if a file of the source has changed since `stamps` were taken."""
    if _stamps(source) != stamps:
        raise InputError(f'{source.name}: a file changed while it was read; start again when it is complete')


def divide(source: Source, content: Content, rule: dict) -> Iterator[tuple[str, str]]:
    """(split, text) of every document that has text, divided by `content.split`.

    'document': by the hash of the document's group or text. 'tail': by place in the concatenated text; a document
    across a boundary is cut. 'tails': see `split_tails`.
    """
    first, second = content.boundaries
    documents = (document for document in source.documents() if document.text.strip())
    if content.split == 'document':
        for text, group, split in documents:
            hashed = hash_unit('split', group or text)
            yield split or ('validation' if hashed < first else 'test' if hashed < second else 'train'), text
        return
    if content.split == 'tails':
        for text, _, fixed in documents:
            parts = [(fixed, text)] if fixed else zip(SPLITS, split_tails(text, rule['validation'], rule['test']))
            yield from ((split, part) for split, part in parts if part.strip())
        return
    position = 0
    for text, *_ in documents:
        begin = 0
        for split, bound in zip(SPLITS, (first, second, content.characters), strict=True):
            end = min(len(text), max(begin, bound - position))
            if text[begin:end].strip():
                yield split, text[begin:end]
            begin = end
        position += len(text)


def sample_train(sources: list[tuple[Source, Content]], rule: dict) -> Iterator[str]:
    """The train split, or about LEARN_SAMPLE characters of it, selected by hash."""
    share = LEARN_SAMPLE / sum(content.characters for _, content in sources)
    for source, content in sources:
        for split, text in divide(source, content, rule):
            if split == 'train':
                yield from (piece for piece in cut_text(text) if share >= 1 or hash_unit('sample', piece) < share)
