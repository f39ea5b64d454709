"""The interface of a tokenizer; tokenizers of bytes, characters and symbols between spaces.

A tokenizer has a list of pieces, the bytes of each id, and a method `encode`. Special tokens have no bytes: END begins
and ends a document, MASK replaces a token for a masked language model. Content never becomes a special token: a literal
'<|endoftext|>' in a text is encoded as thirteen characters. `Tokenizer.specials` and `special_ids` name the special
tokens; every other entry of the vocabulary, including an added token that is not special, is a word that `encode` finds
in content.
"""

import codecs
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmtrain.errors import InputError
from lmtrain.files import write_json

END, MASK = '<|endoftext|>', '<|mask|>'
KNOWN_MASKS = (MASK, '<mask>', '[MASK]')
JOINED = 1 << 16  # ids whose bytes are joined at a time


class SpecialTokenLayout(NamedTuple):
    """Ids of the special tokens around one text and between two: prefix a suffix, prefix a between b suffix.

    Attributes:
      second: token type of the second text and its suffix (BERT's sentence B); that of the first text is 0.
    """

    prefix: tuple[int, ...]
    between: tuple[int, ...]
    suffix: tuple[int, ...]
    second: int = 0


class Tokenizer:
    """The base class.

    Attributes:
      pieces: [V] the bytes of each id; b'' for special tokens.
      specials: {id: name} of the special tokens.
      leading: pieces of words begin with the space before them; the first space of a text is not part of it.
      begin_id, end_id: of a document; equal unless a pretrained tokenizer has two tokens.
      mask_id: None without one.
      absent: ids below vocab_size without a token.
      config_json: a tokenizer_config.json, with names of special tokens and chat template.
    """

    kind: str  # the name in lmtrain_tokenizer.json
    file: str  # the name of the file that `save` writes
    config_json: bytes = b''

    def __init__(
        self, pieces: Sequence[bytes], specials: dict[int, str], end_id: int, mask: bool, leading: bool = False
    ):
        self.pieces, self.specials, self.leading = list(pieces), dict(specials), leading
        self.begin_id = self.end_id = end_id
        self.mask_id = None
        if mask:
            known = [token for name in KNOWN_MASKS for token, special in self.specials.items() if special == name]
            self.mask_id = known[0] if known else self._add(MASK)
        self.vocab_size = len(self.pieces)
        self.absent: tuple[int, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The fields of `config_json`."""
        return json.loads(self.config_json or b'{}')

    def _add(self, special: str) -> int:
        self.specials[len(self.pieces)] = special
        self.pieces.append(b'')
        return len(self.pieces) - 1

    def encode(self, text: str) -> list[int]:
        """Ids of the content `text`, without END and special tokens."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids per text."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued, after the token that begins a document, same as in every row of training.

        Training, scoring and generation encode their prompts with this function. The empty text is that token alone.
        """
        return [self.begin_id, *self.encode(text)]

    def encode_inside(self, text: str) -> list[int]:
        """Ids of content that follows other content: no space is added before it."""
        return self.encode(text)

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids [n], offsets [n, 2]) of each text, int32: the range of characters of each token.

        Raises InputError if the ids do not decode to the text.
        """
        encoded = []
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            if self.decode_bytes(ids) != text.encode():
                raise InputError(f'the {self.kind!r} tokenizer does not decode to {text[:60]!r}: use another one')
            sizes = [len(self.pieces[token]) for token in ids.tolist()]
            ends = np.maximum(np.cumsum(sizes, dtype=np.int64) - (sum(sizes) - len(text.encode())), 0)
            begins = np.concatenate([np.zeros(1, np.int64), ends])[: len(ids)]
            of_byte = np.repeat(np.arange(len(text) + 1), [*(len(c.encode()) for c in text), 1])  # the character
            offsets = np.stack([of_byte[begins], np.where(ends > begins, of_byte[ends - 1] + 1, of_byte[begins])], 1)
            encoded.append((ids, offsets.astype(np.int32)))
        return encoded

    def encode_with_bytes(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [n], sizes int32 [n + 1]) of each text: the bytes of UTF-8 of each token, and of the rest.

        They sum to the bytes of the text, even if the tokenizer drops a part of it: a token counts the bytes from the
        end of the token before it to its own end, so spaces and characters without a token are counted with the next
        token, and those after the last token with END (the last of `sizes`).
        """
        encoded, inexact = [], []
        for at, (text, ids) in enumerate(zip(texts, self.encode_batch(texts), strict=True)):
            raw, sizes = text.encode(), np.append(self.token_bytes[ids], np.int32(0))
            extra = int(sizes.sum()) - len(raw)  # the space that `leading` adds before a text
            if extra not in (0, 1) or self.decode_bytes(ids) != raw:
                inexact.append(at)
            elif extra:
                sizes[0] -= 1
            encoded.append((ids, sizes))
        if inexact:
            offsets_of = self.encode_with_offsets([texts[at] for at in inexact])
            for at, (ids, offsets) in zip(inexact, offsets_of, strict=True):
                encoded[at] = ids, _bytes_between(texts[at], offsets[:, 1])
        return encoded

    def bytes_behind(self, text: str, ids: Sequence[int]) -> list[int]:
        """Bytes of UTF-8 of each id [n] of a text inside a row: those of its piece, while bytes are left.

        They sum to the bytes of the text; the rest is counted with the last id. (`encode_with_bytes` is exact, but only
        for whole texts.)
        """
        if not len(ids):
            return []
        total = len(text.encode())
        reached = np.minimum(np.cumsum(self.token_bytes[np.asarray(ids)], dtype=np.int64), total)
        reached[-1] = total
        return np.diff(reached, prepend=0).tolist()

    @functools.cached_property
    def layout(self) -> SpecialTokenLayout:
        """The special tokens around the texts of a classified row."""
        return SpecialTokenLayout((self.begin_id,), (self.end_id,), (self.end_id,))

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """The id of each special token's name."""
        return {name: token for token, name in self.specials.items()}

    @functools.cached_property
    def special_pattern(self) -> re.Pattern:
        """Matches the name of a special token (the last group) and the white space that belongs to it."""
        return re.compile(f'({regex_any_of(self.special_ids)})')

    restarts_after_special = True  # whether content after a special token is encoded like the beginning of a text

    def decode_bytes(self, ids: Iterable[int] | np.ndarray) -> bytes:
        """The bytes of the ids; specials have none."""
        ids = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, np.int64)
        # In slices: `join` holds a list and buffers of about 90 bytes for each part until it returns.
        slices = (ids[at : at + JOINED].tolist() for at in range(0, len(ids), JOINED))
        text = b''.join([b''.join(map(self.pieces.__getitem__, part)) for part in slices])
        return text.removeprefix(b' ') if self.leading else text

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, with special tokens as their names; an incomplete character is U+FFFD."""
        named = (self.specials[token].encode() if token in self.specials else self.pieces[token] for token in ids)
        text = b''.join(named)
        return (text.removeprefix(b' ') if self.leading else text).decode('utf-8', 'replace')

    def streamer(self) -> Callable[[Iterable[int]], str]:
        """A function from the next ids to the text that they complete, without incomplete characters."""
        decoder, first = codecs.getincrementaldecoder('utf-8')('replace'), self.leading

        def feed(ids: Iterable[int]) -> str:
            nonlocal first
            text = decoder.decode(b''.join(self.pieces[token] for token in ids))
            if first and text:
                text, first = text.removeprefix(' '), False
            return text

        return feed

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """[V] int32: bytes of each id's piece, 0 for special tokens. `encode_with_bytes` is exact for a given text."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    @functools.cached_property
    def content_ids(self) -> np.ndarray:
        """The ids that content can have, ascending, int32."""
        return np.setdiff1d(np.arange(self.vocab_size, dtype=np.int32), np.array(list(self.specials), np.int32))

    @functools.cached_property
    def word_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """([V], [V]) bool: whether the id starts, ends with a letter, a digit or a byte of a non-ASCII character."""
        inside = [byte >= 128 or chr(byte).isalnum() for byte in range(256)]
        first = np.array([bool(piece) and inside[piece[0]] for piece in self.pieces])
        return first, np.array([bool(piece) and inside[piece[-1]] for piece in self.pieces])

    @functools.cached_property
    def hash(self) -> str:
        """Hex SHA-256 of everything that determines `encode`."""
        content = self.kind.encode() + bytes([self.mask_id is not None]) + self._content() + self.config_json
        return hashlib.sha256(content).hexdigest()

    @property
    def encoding(self) -> str:
        """Hex SHA-256 of everything that determines the ids of a text, including the code version: a cache key."""
        return self.hash

    def save(self, directory: Path) -> None:
        """Writes the tokenizer into `directory`; `load_tokenizer` reads it back."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / self.file).write_bytes(self._content())
        if self.config_json:
            (directory / 'tokenizer_config.json').write_bytes(self.config_json)
        facts = {'kind': self.kind, 'mask': self.mask_id is not None, 'hash': self.hash}
        write_json(directory / 'lmtrain_tokenizer.json', facts)

    def _content(self) -> bytes:
        raise NotImplementedError


def regex_any_of(names: Iterable[str]) -> str:
    """A regex for one of `names`; longer ones match first."""
    return '|'.join(map(re.escape, sorted(names, key=len, reverse=True)))


def _bytes_between(text: str, ends: np.ndarray) -> np.ndarray:
    """int32 [n + 1]: bytes of a text between successive `ends` [n] (in characters), and after the last one."""
    code = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    sizes = 1 + (code >= 0x80).astype(np.int64) + (code >= 0x800) + (code >= 0x10000)  # of UTF-8
    reached = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.clip(np.maximum.accumulate(ends), 0, len(text))
    return np.diff(np.concatenate([[0], reached[ends], reached[-1:]])).astype(np.int32)


class Bytes(Tokenizer):
    """256 bytes of UTF-8, then END.

    >>> Bytes().encode_prompt('é')
    [256, 195, 169]
    """

    kind, file = 'bytes', 'bytes.json'

    def __init__(self, content: bytes = b'', mask: bool = False):
        super().__init__([bytes([byte]) for byte in range(256)] + [b''], {256: END}, 256, mask)

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def _content(self):
        return b''


class Symbols(Tokenizer):
    """The alphabet of the corpus in sorted order, then END, same as nanoGPT."""

    file = 'symbols.json'

    def __init__(self, content: bytes, mask: bool = False):
        self.symbols = json.loads(content)
        self.ids = {symbol: token for token, symbol in enumerate(self.symbols)}
        end_id = len(self.symbols)
        pieces = [(self.prefix + symbol).encode() for symbol in self.symbols] + [b'']
        super().__init__(pieces, {end_id: END}, end_id, mask, leading=bool(self.prefix))

    def encode_batch(self, texts):
        try:
            return [np.array([self.ids[symbol] for symbol in self.symbols_of(text)], np.int32) for text in texts]
        except KeyError as error:
            raise InputError(
                f'{error.args[0]!r} is not among the {len(self.symbols)} symbols of the {self.kind!r} tokenizer, which '
                "are those of its corpus: remove it, or use tokenizer='bytes' or 'bpe'"
            ) from None

    def _content(self):
        return json.dumps(self.symbols).encode()


class Chars(Symbols):
    """Every character is a symbol."""

    kind, prefix = 'chars', ''
    symbols_of = staticmethod(iter)


class Whitespace(Symbols):
    """Every run of characters between white space is a symbol; decoding joins them with one space."""

    kind, prefix = 'whitespace', ' '
    symbols_of = staticmethod(str.split)

    def encode_with_offsets(self, texts):
        offsets = [np.array([match.span() for match in re.finditer(r'\S+', text)], np.int32) for text in texts]
        return [(ids, at.reshape(-1, 2)) for ids, at in zip(self.encode_batch(texts), offsets, strict=True)]
