"""Tokenizers with learned parts of words: a BPE learned here, and any tokenizer.json."""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable

import numpy as np

from lmtrain.data.tokenizers.base import END, SpecialTokenLayout, Tokenizer, any_of
from lmtrain.data.tokenizers.hf_files import ROLES
from lmtrain.errors import InputError

KNOWN_ENDS = (END, '<|end_of_text|>', '</s>', '<eos>', '[SEP]', '<s>')  # in a tokenizer.json, the first of these is END
CUT = 1 << 18  # characters: a long document is encoded in pieces of about this many, in parallel
BREAK = re.compile(r'(?<=\w|[!-~])\n')
# Where GPT-2's rule always begins a new word: behind ASCII letters and digits before a blank or a sign, behind signs
# but the apostrophe before a blank, a letter or a digit.
EDGE = re.compile(r'(?<=[A-Za-z0-9])(?=[ \t\n\r\f\v!-/:-@[-`{-~])|(?<=[!-&(-/:-@[-`{-~])(?=[ \t\n\r\f\v]|[^\W_])')


class HuggingFace(Tokenizer):
    """A tokenizer.json as the `tokenizers` library runs it, on content alone.

    Truncation, padding and the post-processor (which adds special tokens) are taken out. An added token that is not
    special is an ordinary word: the library finds it in content by its flags (normalized, lstrip, rstrip,
    single_word). Special tokens are never found in content: those whose flag says so, and those that
    tokenizer_config.json names (transformers adds both as special ones). The ids of content are those of transformers
    with `split_special_tokens=True`, except that a special token which is a word of the model (Unigram, WordLevel) is
    hidden from the model as well. Pieces are bytes: byte-level characters are mapped back, and a word's mark ('▁' at
    its start, no '##') is a blank.

    about: a tokenizer_config.json, whose bos (or cls) token begins a document and whose eos (or sep) token ends it.
    """

    kind, file = 'huggingface', 'tokenizer.json'

    def __init__(self, content: bytes, mask: bool = False, about: bytes = b''):
        self.content, self.about = content, about
        spec = json.loads(content)
        if not isinstance(spec, dict) or not isinstance(spec.get('model'), dict):
            raise InputError("it holds no object with a 'model'")
        told = self.config
        unknown = unknown_of(spec['model'])
        self.added = added_tokens(spec, told)
        reserved = {token['content'] for token in self.added if token['special']}
        if unknown not in {told.get(role) for role in ('bos_token', 'eos_token', 'cls_token', 'sep_token')}:
            reserved -= {unknown}  # which content has wherever the vocabulary lacks something
        spec |= {'added_tokens': self.added, 'truncation': None, 'padding': None, 'post_processor': None}
        hidden = hide(spec, reserved - {unknown})
        self._spec, self.tokenizer = spec, _library(spec)
        ids = {token: hidden.get(name, name) for name, token in self.tokenizer.get_vocab().items()}
        if not ids:
            raise InputError('its vocabulary is empty')
        specials = {token: name for token, name in sorted(ids.items()) if name in reserved}
        size = max(ids) + 1
        pieces = [b''] * size
        to_bytes, leading = _piece_reader(spec)
        as_written = {token['content'] for token in self.added} | {unknown}
        for token, name in ids.items():
            if token not in specials:
                pieces[token] = to_bytes(name, name in as_written)
        names = [told[role] for role in ('eos_token', 'sep_token') if role in told]
        ends = [token for name in (*names, *KNOWN_ENDS) for token, known in specials.items() if known == name]
        if not ends:
            specials[size], ends = END, [size]
            pieces.append(b'')
        super().__init__(pieces, specials, ends[0], mask, leading)
        self.absent = tuple(sorted(set(range(size)) - ids.keys()))
        begins = [told[role] for role in ('bos_token', 'cls_token') if role in told]
        for name in (*names, *begins):
            if name not in self.special_ids:
                raise InputError(f'tokenizer_config.json names {name!r}, which is none of its added tokens')
        if begins:
            self.begin_id = self.special_ids[begins[0]]

    @functools.cached_property
    def encoding(self):
        if all(token['special'] for token in self.added):
            return self.hash
        return hashlib.sha256(f'{self.hash} with added tokens as words'.encode()).hexdigest()

    @functools.cached_property
    def layout(self):
        import tokenizers

        spec = self._spec | {'post_processor': json.loads(self.content).get('post_processor')}
        word = self.decode(next(ids for ids in self.content_ids[:, None] if self.pieces[ids[0]].strip()))
        encoded = tokenizers.Tokenizer.from_str(json.dumps(spec)).encode(word, word)
        of = encoded.sequence_ids
        if 0 not in of or 1 not in of:
            return super().layout
        first, last = of.index(0), len(of) - of[::-1].index(1)
        middle = [token for token, which in zip(encoded.ids[first:last], of[first:last]) if which is None]
        if self.begin_id != self.end_id and self.begin_id in middle:  # a document begins once
            middle = []
        newline = tuple(self.encode_inside('\n'))  # what stands between two texts where the model has no mark for it
        second = encoded.type_ids[of.index(1)] if middle else 0
        return SpecialTokenLayout(
            tuple(encoded.ids[:first]), tuple(middle) or newline, tuple(encoded.ids[last:]), second
        )

    @functools.cached_property
    def special_pattern(self):
        flags = {token['content']: token for token in json.loads(self.content).get('added_tokens') or []}
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
        return _library(self._spec | {name: parts[0] if parts else None for name, parts in changed.items()})

    @functools.cached_property
    def _words(self) -> frozenset[int]:
        """Ids of the added tokens that content can have."""
        return frozenset(self.tokenizer.token_to_id(token['content']) for token in self.added if not token['special'])

    def encode_inside(self, text):
        encoded = self._inside.encode(text, add_special_tokens=False)
        ids = self._content_alone([text], [np.array(encoded.ids, np.int32)])[0].tolist()
        first = next((at for at, token in enumerate(ids) if token in self._words), len(ids) - 1) + 1
        if first >= len(ids) or not self.blank_after_special:
            return ids
        return ids[:first] + self.encode(text[encoded.offsets[first - 1][1] :])  # after an added token a text begins

    def encode_with_offsets(self, texts):
        encoded = self._run(self.tokenizer.encode_batch, texts)
        ids = self._content_alone(texts, [np.array(e.ids, np.int32) for e in encoded])
        return [(i, np.array(e.offsets, np.int32).reshape(-1, 2)) for i, e in zip(ids, encoded, strict=True)]

    def encode_batch(self, texts):
        ids = [np.array(e.ids, np.int32) for e in self._run(self.tokenizer.encode_batch_fast, texts)]
        return self._content_alone(texts, ids)

    def _run(self, encode, texts):
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception, for a model without an unknown token
            raise InputError(f'this tokenizer.json cannot encode the text ({error}): take another one') from error

    def _content_alone(self, texts, ids):
        """`ids`. Raises ValueError if a special token is among them."""
        reserved = np.array(list(self.specials), np.int32)
        for text, tokens in zip(texts, ids, strict=True):
            hits = tokens[np.isin(tokens, reserved)]
            if len(hits):
                raise InputError(
                    f'this tokenizer.json gives content the special token {self.specials[int(hits[0])]!r} '
                    f'(id {hits[0]}) in the text {text[:40]!r}...: no text may become one; mark the token as not '
                    'special in the file if it is a word'
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
        raise InputError(f"data.vocab_size leaves {size} entries: 'bpe' has 256 bytes and learns pairs, so 512 or more")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((piece for text in texts for piece in cut(text)), trainer)
    return tokenizer.to_str().encode()


def unknown_of(model: dict) -> str | None:
    """The token that stands for what a model's vocabulary lacks; a Unigram names it by its index."""
    if model.get('type') == 'Unigram' or isinstance(model.get('vocab'), list):
        index = model.get('unk_id')
        return None if index is None else model['vocab'][index][0]
    return model.get('unk_token')


def added_tokens(spec: dict, told: dict) -> list[dict]:
    """The added tokens of a tokenizer.json `spec`, as transformers has them once it has read tokenizer_config.json.

    `told`, the latter, overrides their flags and may add tokens, and what it names is special.
    """
    added = {token['content']: token for token in spec.get('added_tokens') or []}
    for token, flags in told.get('added_tokens_decoder', {}).items():
        added[flags['content']] = {'id': int(token)} | flags
    named = {told.get(role) for role in ROLES} | set(told.get('extra_special_tokens', ()))
    return [
        token | {'special': token['special'] or token['content'] in named}
        for token in sorted(added.values(), key=lambda token: token['id'])
    ]


def hide(spec: dict, special: Iterable[str]) -> dict[str, str]:
    """Renames in `spec` the special tokens that the model holds as words; {the new name: the special token}.

    A Unigram or WordLevel model would give content such a word, and a BPE could merge it.
    """
    model = spec['model']
    vocabulary = model.get('vocab') or {}
    listed = isinstance(vocabulary, list)  # [[piece, score], ...] of a Unigram
    words = {piece for piece, _ in vocabulary} if listed else vocabulary.keys()
    names = {name: f'\U0010fffd{number}\U0010fffd' for number, name in enumerate(special) if name in words}
    if not names:
        return {}
    if listed:
        vocabulary = [[names.get(piece, piece), score] for piece, score in vocabulary]
    else:
        vocabulary = {names.get(piece, piece): token for piece, token in vocabulary.items()}
    changed = {'vocab': vocabulary}
    if model.get('merges'):
        pairs = [merge.split(' ', 1) if isinstance(merge, str) else merge for merge in model['merges']]
        changed['merges'] = [pair for pair in pairs if not {*pair, ''.join(pair)} & names.keys()]
    spec['model'] = model | changed
    spec['added_tokens'] = [
        token | {'content': names.get(token['content'], token['content'])} for token in spec.get('added_tokens') or ()
    ]
    return {new: name for name, new in names.items()}


def _library(spec: dict):
    """The tokenizer of the library, which finds no special token in a text."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        tokenizer.encode_special_tokens = True  # as the characters they are written with
    except Exception as error:  # the library raises bare Exception
        raise InputError(f'not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}') from error
    return tokenizer


def _piece_reader(spec: dict) -> tuple[Callable[[str, bool], bytes], bool]:
    """((name of a vocabulary entry, whether it is an added token) -> its bytes, whether a text's first blank is added).

    An added token is written as it is read; a word of the model may be written with stand-ins for bytes.
    """
    told = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer'), spec.get('decoder')])
    if '"ByteLevel"' in told:
        table = byte_level()
        prefix = '"add_prefix_space": true' in json.dumps(spec.get('pre_tokenizer'))

        def level(name: str, added: bool) -> bytes:
            return name.encode() if added else b''.join(table.get(c) or c.encode() for c in name)

        return level, prefix
    if spec['model']['type'] == 'WordPiece':
        mark = spec['model'].get('continuing_subword_prefix') or '##'

        def wordpiece(name: str, added: bool) -> bytes:
            return name.removeprefix(mark).encode() if name.startswith(mark) else b' ' + name.encode()

        return wordpiece, True
    if '\\u2581' in told or '"Metaspace"' in told:
        hexadecimal = re.compile('<0x([0-9A-F]{2})>')
        fallback = spec['model'].get('byte_fallback')
        prefix = '"Prepend"' in told or '"Metaspace"' in told and '"never"' not in told

        def metaspace(name: str, added: bool) -> bytes:
            byte = hexadecimal.fullmatch(name) if fallback and not added else None
            return bytes([int(byte[1], 16)]) if byte else name.replace('▁', ' ').encode()

        return metaspace, prefix
    if spec['model']['type'] == 'WordLevel' and not spec.get('decoder'):  # the library puts a blank between two words
        return lambda name, added: b' ' + name.encode(), True
    return lambda name, added: name.encode(), False


@functools.cache
def byte_level() -> dict[str, bytes]:
    """GPT-2's printable stand-ins: the bytes that print stand for themselves, the others follow from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): bytes([byte]) for byte in printable}
    return stand_ins | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
