"""SentencePiece models: a .model file, with the added tokens of a tokenizer_config.json."""

import functools
import re
from collections.abc import Set

import numpy as np

from lmtrain.data.tokenizers.base import END, Tokenizer
from lmtrain.data.tokenizers.hf_files import TOKEN_FLAGS, TOKEN_ROLES
from lmtrain.errors import InputError, MissingPackage

LENGTH_DELIMITED = 2  # wire type of texts and messages in a protocol buffer
CONTROL = b'\x18\x03'  # field 3 (type) of a piece = 3 (CONTROL)


class SentencePiece(Tokenizer):
    """A .model file; requires the package `sentencepiece`.

    Args:
      config_json: a tokenizer_config.json, whose bos token begins a document and whose eos token ends it. The added
        tokens of its `added_tokens_decoder` that are not special are matched before the model runs, same as in
        transformers, and the text between two of them is encoded like a text of its own. Those that are special are
        never found in content, also if the model has them as user-defined symbols: a text has their characters.
    """

    kind, file = 'sentencepiece', 'tokenizer.model'

    def __init__(self, content: bytes, mask: bool = False, config_json: bytes = b''):
        self.content, self.config_json = content, config_json
        self.processor = model = _processor(content)
        specials, pieces = {}, []
        for token in range(model.get_piece_size()):
            name = model.id_to_piece(token)
            if model.is_control(token):
                specials[token] = name
                pieces.append(b'')
            elif model.is_byte(token):  # '<0x0A>'
                pieces.append(bytes([int(name[3:5], 16)]))
            else:
                pieces.append(name.replace('▁', ' ').encode())
        config = self.config
        names = {config.get(role) for role in TOKEN_ROLES if role != 'unk_token'}
        self._words, hidden = {}, set()
        for token, flags in sorted(config.get('added_tokens_decoder', {}).items(), key=lambda item: int(item[0])):
            token, name = int(token), flags['content']
            pieces += [b''] * (token + 1 - len(pieces))
            if flags['special'] or name in names:
                specials[token], pieces[token] = name, b''
                hidden |= {token} if _in_content(model, token) else set()
            else:
                self._words[name], pieces[token] = (token, flags), name.encode()
        if hidden:
            self.processor = _processor(_as_control_symbols(content, hidden))
        defined = {int(token) for token in config.get('added_tokens_decoder', {})}
        absent = tuple(token for token in range(model.get_piece_size(), len(pieces)) if token not in defined)
        by_name = {name: token for token, name in specials.items()}
        begin, end = (by_name.get(config.get(role)) for role in ('bos_token', 'eos_token'))
        ends = [token for token in (end, model.eos_id(), model.bos_id()) if token is not None and token >= 0]
        if not ends:
            specials[len(pieces)], ends = END, [len(pieces)]
            pieces.append(b'')
        leading = model.encode_as_pieces('a')[:1] != ['a']
        super().__init__(pieces, specials, ends[0], mask, leading)
        self.absent = absent
        if begin is not None:
            self.begin_id = begin

    def encode_batch(self, texts):
        if self._words:
            return [ids for ids, _ in self.encode_with_offsets(texts)]
        return [np.array(ids, np.int32) for ids in self.processor.encode(list(texts), out_type=int)]

    def encode_inside(self, text):
        before, ids = (
            self.encode('\n'),
            self.encode('\n' + text),
        )  # the newline takes the space that is added before a text
        separate = before and self.pieces[before[-1]] == b'\n' and ids[: len(before)] == before
        return ids[len(before) :] if separate else self.encode(text)

    def encode_with_offsets(self, texts):
        return [self._with_offsets(text) for text in texts]

    def _with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets, at = [], [], 0
        for match in [*self._pattern.finditer(text), None] if self._words else [None]:
            between = text[at : match.start() if match else len(text)]
            for token, begin, end in self._pieces(between) if between else ():
                ids.append(token)
                offsets.append((at + begin, at + end))
            if match:
                ids.append(self._words[match[match.lastindex]][0])
                offsets.append(match.span())
                at = match.end()
        return np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)

    def _pieces(self, text: str):
        """(id, first character, end) of each piece.

        From the surfaces of the pieces: whether their offsets count bytes or characters depends on the version.
        """
        encode = getattr(self.processor, 'encode_as_proto', None) or self.processor.encode_as_immutable_proto
        end = 0
        for piece in encode(text).pieces:
            begin = text.index(piece.surface, end)  # spaces at the beginning of a text may have no piece
            end = begin + len(piece.surface)
            yield piece.id, begin, end

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        """Matches an added token that is a word, longer ones first; its name is the last group."""

        def one(name, flags):
            word = (r'(?<!\w)', r'(?!\w)') if flags['single_word'] else ('', '')
            left, right = (r'\s*' if flags[side] else '' for side in ('lstrip', 'rstrip'))
            return f'{left}{word[0]}({re.escape(name)}){word[1]}{right}'

        return re.compile('|'.join(one(name, self._words[name][1]) for name in sorted(self._words, key=len)[::-1]))

    def _content(self):
        return self.content


def known_tokens(content: bytes) -> dict[str, dict]:
    """{name: token} of the pieces of a model, in the format of the added tokens of a tokenizer.json."""
    model, flags = _processor(content), dict.fromkeys(TOKEN_FLAGS, False)
    ids = {model.id_to_piece(token): token for token in range(model.get_piece_size())}
    return {
        name: {'id': token, 'content': name} | flags | {'special': model.is_control(token) or model.is_unknown(token)}
        for name, token in ids.items()
    }


def _in_content(model, token: int) -> bool:
    """Whether the model finds the piece in a text, as one of its words or user-defined symbols."""
    kinds = (model.is_control, model.is_unknown, model.is_byte)
    return token < model.get_piece_size() and not any(is_kind(token) for is_kind in kinds)


def _as_control_symbols(content: bytes, tokens: Set[int]) -> bytes:
    """The model with the pieces `tokens` as control symbols, which are not found in a text.

    A .model is a protocol buffer (sentencepiece_model.proto): field 1 of a ModelProto is a list of pieces, and field 3
    of a piece is its type, of which the last value counts.
    """
    changed, piece, at = [], 0, 0
    while at < len(content):
        tag, at = _varint(content, at)
        if tag & 7 != LENGTH_DELIMITED:
            raise InputError('a field of this SentencePiece model is no message')
        size, at = _varint(content, at)
        field, at = content[at : at + size], at + size
        if tag >> 3 == 1:
            field += CONTROL if piece in tokens else b''
            piece += 1
        changed += [_to_varint(tag), _to_varint(len(field)), field]
    return b''.join(changed)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """(the number that begins at byte `at`, 7 bits a byte, the lowest first; the byte after it)."""
    number, shift = 0, 0
    while raw[at] & 0x80:
        number, shift, at = number | (raw[at] & 0x7F) << shift, shift + 7, at + 1
    return number | raw[at] << shift, at + 1


def _to_varint(number: int) -> bytes:
    low = []
    while number >= 0x80:
        low.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*low, number])


def _processor(content: bytes):
    try:
        import sentencepiece
    except ImportError:
        raise MissingPackage('a .model needs sentencepiece: pip install -e ".[sentencepiece]"') from None
    if not content:
        raise InputError('it is empty')
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise InputError(f'not a SentencePiece model: {error}') from error
