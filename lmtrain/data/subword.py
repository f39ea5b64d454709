"""Tokenizers with learned parts of words: a BPE learned here, any tokenizer.json, SentencePiece."""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable

import numpy as np

from lmtrain.data.text import END, Layout, Tokenizer, any_of

KNOWN_ENDS = (END, '<|end_of_text|>', '</s>', '<eos>', '[SEP]', '<s>')  # in a tokenizer.json, the first of these is END
CUT = 1 << 18  # characters: a long document is encoded in pieces of about this many, in parallel
BREAK = re.compile(r'(?<=\w|[!-~])\n')
# Where GPT-2's rule always begins a new word: behind ASCII letters and digits before a blank or a sign, behind signs
# but the apostrophe before a blank, a letter or a digit.
EDGE = re.compile(r'(?<=[A-Za-z0-9])(?=[ \t\n\r\f\v!-/:-@[-`{-~])|(?<=[!-&(-/:-@[-`{-~])(?=[ \t\n\r\f\v]|[^\W_])')


class HuggingFace(Tokenizer):
    """A tokenizer.json as the `tokenizers` library runs it, on content alone.

    Truncation, padding and the post-processor (which adds specials) are taken out. Added tokens are never found in
    content, also those that the file does not call special, but for runs of blanks, which mark nothing. Pieces are
    bytes: byte-level characters are mapped back, and a word's mark ('▁' at its start, no '##') is a blank.

    about: a tokenizer_config.json, whose bos (or cls) token begins a document and whose eos (or sep) token ends it.
    """

    kind, file = 'huggingface', 'tokenizer.json'

    def __init__(self, content: bytes, mask: bool = False, about: bytes = b''):
        import tokenizers

        self.content, self.about = content, about
        spec = json.loads(content)
        if not isinstance(spec, dict) or not isinstance(spec.get('model'), dict):
            raise ValueError("it holds no object with a 'model'")
        added = spec.get('added_tokens') or []
        blanks = [token['id'] for token in added if not token['special'] and not token['content'].strip()]
        added = [token | {'special': token['id'] not in blanks} for token in added]
        spec |= {'added_tokens': added, 'truncation': None, 'padding': None, 'post_processor': None}
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
            self.tokenizer.encode_special_tokens = True  # as the characters they are written with
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f'not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}') from error
        unknown = spec['model'].get('unk_token')
        reserved = [token for token in added if token['special'] and token['content'] != unknown]
        specials = {token['id']: token['content'] for token in reserved}
        vocabulary = {token: name for name, token in self.tokenizer.get_vocab().items()}
        if not vocabulary:
            raise ValueError('its vocabulary is empty')
        size = max(vocabulary) + 1
        pieces = [b''] * size
        to_bytes, leading = _piece_reader(spec)
        for token, name in vocabulary.items():
            if token not in specials:
                pieces[token] = name.encode() if name == unknown else to_bytes(name)
        told = json.loads(about or b'{}')
        names = [told[role] for role in ('eos_token', 'sep_token') if role in told]
        ends = [token for name in (*names, *KNOWN_ENDS) for token, special in specials.items() if special == name]
        if not ends:
            specials[size], ends = END, [size]
            pieces.append(b'')
        super().__init__(pieces, specials, ends[0], mask, leading)
        self._spec = spec
        by_name = {name: token for token, name in self.specials.items()}
        begins = [told[role] for role in ('bos_token', 'cls_token') if role in told]
        for name in (*names, *begins):
            if name not in by_name:
                raise ValueError(f'tokenizer_config.json names {name!r}, which is none of its added tokens')
        if begins:
            self.begin_id = by_name[begins[0]]

    @functools.cached_property
    def layout(self):
        import tokenizers

        spec = self._spec | {'post_processor': json.loads(self.content).get('post_processor')}
        encoded = tokenizers.Tokenizer.from_str(json.dumps(spec)).encode('a', 'a')
        of = encoded.sequence_ids
        if 0 not in of or 1 not in of:
            return super().layout
        first, last = of.index(0), len(of) - of[::-1].index(1)
        middle = [token for token, which in zip(encoded.ids[first:last], of[first:last]) if which is None]
        if self.begin_id != self.end_id and self.begin_id in middle:  # a document begins once
            middle = []
        newline = tuple(self.encode_inside('\n'))  # what stands between two texts where the model has no mark for it
        second = encoded.type_ids[of.index(1)] if middle else 0
        return Layout(tuple(encoded.ids[:first]), tuple(middle) or newline, tuple(encoded.ids[last:]), second)

    @functools.cached_property
    def special_pattern(self):
        flags = {token['content']: token for token in self._spec['added_tokens']}
        by_sides: dict[tuple[str, str], list[str]] = {}
        for name in self.special_ids:
            sides = [r'\s*' * bool(flags.get(name, {}).get(side)) for side in ('lstrip', 'rstrip')]
            by_sides.setdefault(tuple(sides), []).append(name)
        return re.compile('|'.join(f'{left}({any_of(names)}){right}' for (left, right), names in by_sides.items()))

    @functools.cached_property
    def blank_after_special(self):
        return '"prepend_scheme": "first"' not in json.dumps(self._spec)

    @functools.cached_property
    def _inside(self):
        """The tokenizer that puts no blank before its text."""
        import tokenizers

        def without(part):
            if isinstance(part, list):
                return [
                    without(each) for each in part if not (isinstance(each, dict) and each.get('type') == 'Prepend')
                ]
            if not isinstance(part, dict):
                return part
            told = {'Metaspace': {'prepend_scheme': 'never'}, 'ByteLevel': {'add_prefix_space': False}}
            return {name: without(value) for name, value in part.items()} | told.get(part.get('type'), {})

        changed = {name: without([self._spec.get(name)])[:1] for name in ('normalizer', 'pre_tokenizer')}
        spec = self._spec | {name: parts[0] if parts else None for name, parts in changed.items()}
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode_inside(self, text):
        return self._content_alone(
            [text], [np.array(self._inside.encode(text, add_special_tokens=False).ids, np.int32)]
        )[0].tolist()

    def encode_with_offsets(self, texts):
        encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = self._content_alone(texts, [np.array(e.ids, np.int32) for e in encoded])
        return [(i, np.array(e.offsets, np.int32).reshape(-1, 2)) for i, e in zip(ids, encoded, strict=True)]

    def encode_batch(self, texts):
        ids = [np.array(e.ids, np.int32) for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return self._content_alone(texts, ids)

    def _content_alone(self, texts, ids):
        """`ids`. Raises ValueError where a special token is among them."""
        reserved = np.array(list(self.specials), np.int32)
        for text, tokens in zip(texts, ids, strict=True):
            hits = tokens[np.isin(tokens, reserved)]
            if len(hits):
                raise ValueError(
                    f'this tokenizer.json gives content the special token {self.specials[int(hits[0])]!r} '
                    f'(id {hits[0]}) in the text {text[:40]!r}...: its model must not hold special tokens as words'
                )
        return ids

    def _content(self):
        return self.content


class Bpe(HuggingFace):
    """A byte-level BPE with GPT-2's rule for what a word is (Radford et al., 2019, section 2.2), then END."""

    kind = 'bpe'

    def encode_batch(self, texts):
        # A word's ids do not depend on what surrounds it, so each different word is encoded once: a tenth of Python's
        # own text. (Given it all, the library's threads wait for each other's allocations where malloc has one arena.)
        words = [EDGE.split(text) for text in texts]
        different = list(dict.fromkeys(itertools.chain.from_iterable(words)))
        encoded = self.tokenizer.encode_batch_fast(different, add_special_tokens=False)
        ids = {word: each.ids for word, each in zip(different, encoded, strict=True)}
        return [np.fromiter(itertools.chain.from_iterable(map(ids.__getitem__, each)), np.int32) for each in words]


class SentencePiece(Tokenizer):
    """A .model file; needs the package `sentencepiece`."""

    kind, file = 'sentencepiece', 'tokenizer.model'

    def __init__(self, content: bytes, mask: bool = False):
        try:
            import sentencepiece
        except ImportError:
            raise ImportError('a .model needs sentencepiece: pip install -e ".[sentencepiece]"') from None
        self.content = content
        if not content:
            raise ValueError('it is empty')
        try:
            self.processor = model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f'not a SentencePiece model: {error}') from error
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
        ends = [token for token in (model.eos_id(), model.bos_id()) if token >= 0]
        if not ends:
            specials[len(pieces)], ends = END, [len(pieces)]
            pieces.append(b'')
        leading = model.encode_as_pieces('a')[:1] != ['a']
        super().__init__(pieces, specials, ends[0], mask, leading)

    def encode_batch(self, texts):
        return [np.array(ids, np.int32) for ids in self.processor.encode(list(texts), out_type=int)]

    def _content(self):
        return self.content


def cut(text: str, size: int = CUT) -> list[str]:
    """`text` in pieces of about `size` characters, cut before a newline that follows a letter or sign.

    There GPT-2's rule always begins a new word, so that encoding the pieces is encoding the text.
    """
    pieces, start = [], 0
    for match in BREAK.finditer(text):
        if match.start() - start >= size:
            pieces.append(text[start : match.start()])
            start = match.start()
    return [*pieces, text[start:]] if text[start:] else pieces


def learn_bpe(texts: Iterable[str], size: int) -> bytes:
    """The tokenizer.json of a byte-level BPE with `size` entries, the same for the same texts."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if size < 257:
        raise ValueError(f"data.vocab_size leaves {size} entries: 'bpe' has 256 bytes and learns pairs, so 512 or more")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((piece for text in texts for piece in cut(text)), trainer)
    return tokenizer.to_str().encode()


def _piece_reader(spec: dict) -> tuple[Callable[[str], bytes], bool]:
    """(name of a vocabulary entry -> its bytes, whether the first blank of a text is an artefact)."""
    told = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer'), spec.get('decoder')])
    if '"ByteLevel"' in told:
        table = _byte_level()
        prefix = '"add_prefix_space": true' in json.dumps(spec.get('pre_tokenizer'))
        return lambda name: b''.join(table.get(c) or c.encode() for c in name), prefix
    if spec['model']['type'] == 'WordPiece':
        mark = spec['model'].get('continuing_subword_prefix') or '##'
        return lambda name: name.removeprefix(mark).encode() if name.startswith(mark) else b' ' + name.encode(), True
    if '\\u2581' in told or '"Metaspace"' in told:
        hexadecimal = re.compile('<0x([0-9A-F]{2})>')
        fallback = spec['model'].get('byte_fallback')
        prefix = '"Prepend"' in told or '"Metaspace"' in told and '"never"' not in told

        def read(name: str) -> bytes:
            byte = hexadecimal.fullmatch(name) if fallback else None
            return bytes([int(byte[1], 16)]) if byte else name.replace('▁', ' ').encode()

        return read, prefix
    return str.encode, False


@functools.cache
def _byte_level() -> dict[str, bytes]:
    """GPT-2's printable stand-ins: the bytes that print stand for themselves, the others follow from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): bytes([byte]) for byte in printable}
    return stand_ins | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
