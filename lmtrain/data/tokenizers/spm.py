"""SentencePiece models: a .model file and the added tokens that a tokenizer_config.json names beside it."""

import functools
import re

import numpy as np

from lmtrain.data.tokenizers.base import END, Tokenizer
from lmtrain.data.tokenizers.hf_files import FLAGS, ROLES
from lmtrain.errors import InputError, MissingPackage


class SentencePiece(Tokenizer):
    """A .model file; needs the package `sentencepiece`.

    about: a tokenizer_config.json, whose bos token begins a document and whose eos token ends it. The added tokens of
    its `added_tokens_decoder` that are not special are found in the text before the model sees it, as transformers has
    it, and each stretch between two of them is encoded like a text of its own.
    """

    kind, file = 'sentencepiece', 'tokenizer.model'

    def __init__(self, content: bytes, mask: bool = False, about: bytes = b''):
        self.content, self.about = content, about
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
        told = self.config
        named = {told.get(role) for role in ROLES if role != 'unk_token'}
        self._words = {}
        for token, flags in sorted(told.get('added_tokens_decoder', {}).items(), key=lambda item: int(item[0])):
            token, name = int(token), flags['content']
            pieces += [b''] * (token + 1 - len(pieces))
            if flags['special'] or name in named:
                specials[token], pieces[token] = name, b''
            else:
                self._words[name], pieces[token] = (token, flags), name.encode()
        written = {int(token) for token in told.get('added_tokens_decoder', {})}
        absent = tuple(token for token in range(model.get_piece_size(), len(pieces)) if token not in written)
        by_name = {name: token for token, name in specials.items()}
        begin, end = (by_name.get(told.get(role)) for role in ('bos_token', 'eos_token'))
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
        before, ids = self.encode('\n'), self.encode('\n' + text)  # which takes the blank that is put before a text
        kept = before and self.pieces[before[-1]] == b'\n' and ids[: len(before)] == before
        return ids[len(before) :] if kept else self.encode(text)

    def encode_with_offsets(self, texts):
        return [self._with_offsets(text) for text in texts]

    def _with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets, at = [], [], 0
        for match in [*self._pattern.finditer(text), None] if self._words else [None]:
            stretch = text[at : match.start() if match else len(text)]
            for token, begin, end in self._pieces(stretch) if stretch else ():
                ids.append(token)
                offsets.append((at + begin, at + end))
            if match:
                ids.append(self._words[match[match.lastindex]][0])
                offsets.append(match.span())
                at = match.end()
        return np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)

    def _pieces(self, text: str):
        """(id, first character, last) of each piece.

        By the surfaces of the pieces: whether their own offsets count bytes or characters depends on the version.
        """
        encode = getattr(self.processor, 'encode_as_proto', None) or self.processor.encode_as_immutable_proto
        end = 0
        for piece in encode(text).pieces:
            begin = text.index(piece.surface, end)  # blanks at the beginning of a text may have no piece
            end = begin + len(piece.surface)
            yield piece.id, begin, end

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        """Finds an added token that is a word, the longest that fits; its name is the last group."""

        def one(name, flags):
            word = (r'(?<!\w)', r'(?!\w)') if flags['single_word'] else ('', '')
            strip = [r'\s*' * bool(flags[side]) for side in ('lstrip', 'rstrip')]
            return f'{strip[0]}{word[0]}({re.escape(name)}){word[1]}{strip[1]}'

        return re.compile('|'.join(one(name, self._words[name][1]) for name in sorted(self._words, key=len)[::-1]))

    def _content(self):
        return self.content


def known_tokens(content: bytes) -> dict[str, dict]:
    """{name: flags} of the pieces of a model that are no parts of words, like the added tokens of a tokenizer.json."""
    model, flags = _processor(content), dict.fromkeys(FLAGS, False)
    ids = {model.id_to_piece(token): token for token in range(model.get_piece_size())}
    return {
        name: {'id': token, 'content': name} | flags | {'special': model.is_control(token) or model.is_unknown(token)}
        for name, token in ids.items()
    }


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
