"""Subword tokenizers: a BPE that is learned here, and any tokenizer.json."""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lmtrain.data.tokenizers.base import END, SpecialTokenLayout, Tokenizer, regex_any_of
from lmtrain.data.tokenizers.hf_files import TOKEN_ROLES
from lmtrain.errors import InputError

KNOWN_ENDS = (END, '<|end_of_text|>', '</s>', '<eos>', '[SEP]', '<s>')  # the first of these in a tokenizer.json is END
PIECE_SIZE = 1 << 18  # characters: a long document is learned from in pieces of about this size
BREAK = re.compile(r'(?<=\w|[!-~])\n')
# Where GPT-2's regex always begins a new word: between an ASCII letter or digit and white space or punctuation, and
# between punctuation except the apostrophe and white space, a letter or a digit.
WORD_EDGE = re.compile(r'(?<=[A-Za-z0-9])(?=[ \t\n\r\f\v!-/:-@[-`{-~])|(?<=[!-&(-/:-@[-`{-~])(?=[ \t\n\r\f\v]|[^\W_])')
MOST_KNOWN, LONGEST_KNOWN = 2**16, 64  # number and characters of the words whose ids a tokenizer keeps


class HuggingFace(Tokenizer):
    """A tokenizer.json run by the `tokenizers` library, on content alone.

    Truncation, padding and the post-processor (which adds special tokens) are removed. An added token that is not
    special is an ordinary word: the library finds it in content by its flags (normalized, lstrip, rstrip, single_word).
    Special tokens are never found in content: those with the flag `special`, and those that tokenizer_config.json names
    (both are special in transformers). The ids of content equal those of transformers with `split_special_tokens=True`,
    except that a special token that is a word of the model (Unigram, WordLevel) is hidden from the model as well.
    Pieces are bytes: byte-level characters are mapped back, and the mark of a word ('▁', no '##') is a space.

    Args:
      config_json: a tokenizer_config.json, whose bos (or cls) token begins a document and whose eos (or sep) token ends
        it.
    """

    kind, file = 'huggingface', 'tokenizer.json'

    def __init__(self, content: bytes, mask: bool = False, config_json: bytes = b''):
        self.content, self.config_json = content, config_json
        spec = json.loads(content)
        if not isinstance(spec, dict) or not isinstance(spec.get('model'), dict):
            raise InputError("it has no object 'model'")
        config = self.config
        unknown = unknown_token(spec['model'])
        self.added = added_tokens(spec, config)
        reserved = {token['content'] for token in self.added if token['special']}
        if unknown not in {config.get(role) for role in ('bos_token', 'eos_token', 'cls_token', 'sep_token')}:
            reserved -= {unknown}  # content has it for what the vocabulary lacks
        spec |= {'added_tokens': self.added, 'truncation': None, 'padding': None, 'post_processor': None}
        hidden = hide_special_tokens(spec, reserved - {unknown})
        self._spec, self.tokenizer = spec, _library(spec)
        ids = {token: hidden.get(name, name) for name, token in self.tokenizer.get_vocab().items()}
        if not ids:
            raise InputError('its vocabulary is empty')
        specials = {token: name for token, name in sorted(ids.items()) if name in reserved}
        size = max(ids) + 1
        pieces = [b''] * size
        to_bytes, leading = _piece_reader(spec)
        literal = {token['content'] for token in self.added} | {unknown}
        for token, name in ids.items():
            if token not in specials:
                pieces[token] = to_bytes(name, name in literal)
        names = [config[role] for role in ('eos_token', 'sep_token') if role in config]
        ends = [token for name in (*names, *KNOWN_ENDS) for token, known in specials.items() if known == name]
        if not ends:
            specials[size], ends = END, [size]
            pieces.append(b'')
        super().__init__(pieces, specials, ends[0], mask, leading)
        self.absent = tuple(sorted(set(range(size)) - ids.keys()))
        begins = [config[role] for role in ('bos_token', 'cls_token') if role in config]
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
        newline = tuple(self.encode_inside('\n'))  # the separator if the model has no special token for it
        second = encoded.type_ids[of.index(1)] if middle else 0
        return SpecialTokenLayout(
            tuple(encoded.ids[:first]), tuple(middle) or newline, tuple(encoded.ids[last:]), second
        )

    @functools.cached_property
    def special_pattern(self):
        flags = {token['content']: token for token in json.loads(self.content).get('added_tokens') or []}
        by_sides: dict[tuple[str, str], list[str]] = {}
        for name in self.special_ids:
            sides = tuple(r'\s*' if flags.get(name, {}).get(side) else '' for side in ('lstrip', 'rstrip'))
            by_sides.setdefault(sides, []).append(name)
        return re.compile(
            '|'.join(f'{left}({regex_any_of(names)}){right}' for (left, right), names in by_sides.items())
        )

    @functools.cached_property
    def restarts_after_special(self):
        return '"prepend_scheme": "first"' not in json.dumps(self._spec)

    @functools.cached_property
    def _inside(self):
        """The tokenizer without a space before its text."""

        def without(part):
            if isinstance(part, list):
                return [
                    without(each) for each in part if not (isinstance(each, dict) and each.get('type') == 'Prepend')
                ]
            if not isinstance(part, dict):
                return part
            changes = {'Metaspace': {'prepend_scheme': 'never'}, 'ByteLevel': {'add_prefix_space': False}}
            return {name: without(value) for name, value in part.items()} | changes.get(part.get('type'), {})

        changed = {name: without([self._spec.get(name)])[:1] for name in ('normalizer', 'pre_tokenizer')}
        return _library(self._spec | {name: parts[0] if parts else None for name, parts in changed.items()})

    @functools.cached_property
    def _words(self) -> frozenset[int]:
        """Ids of the added tokens that content can have."""
        return frozenset(self.tokenizer.token_to_id(token['content']) for token in self.added if not token['special'])

    def encode_inside(self, text):
        encoded = self._inside.encode(text, add_special_tokens=False)
        ids = self._reject_special_ids([text], [np.array(encoded.ids, np.int32)])[0].tolist()
        first = next((at for at, token in enumerate(ids) if token in self._words), len(ids) - 1) + 1
        if first >= len(ids) or not self.restarts_after_special:
            return ids
        return ids[:first] + self.encode(text[encoded.offsets[first - 1][1] :])  # a text begins after an added token

    def encode_with_offsets(self, texts):
        encoded = self._run(self.tokenizer.encode_batch, texts)
        ids = self._reject_special_ids(texts, [np.array(e.ids, np.int32) for e in encoded])
        return [(i, np.array(e.offsets, np.int32).reshape(-1, 2)) for i, e in zip(ids, encoded, strict=True)]

    def encode_batch(self, texts):
        ids = [np.array(e.ids, np.int32) for e in self._run(self.tokenizer.encode_batch_fast, texts)]
        return self._reject_special_ids(texts, ids)

    def _run(self, encode, texts):
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception, for a model without an unknown token
            raise InputError(f'this tokenizer.json cannot encode the text ({error}): use another one') from error

    def _reject_special_ids(self, texts, ids):
        """`ids`. Raises InputError if a special token is among them."""
        reserved = np.array(list(self.specials), np.int32)
        for text, tokens in zip(texts, ids, strict=True):
            hits = tokens[np.isin(tokens, reserved)]
            if len(hits):
                raise InputError(
                    f'this tokenizer.json gives content the special token {self.specials[int(hits[0])]!r} '
                    f'(id {hits[0]}) in the text {text[:40]!r}...: content must not contain special tokens. If it is a '
                    'word, set "special": false in the file'
                )
        return ids

    def _content(self):
        return self.content


class Bpe(HuggingFace):
    """A byte-level BPE with the word regex of GPT-2 (Radford et al., 2019, section 2.2), then END."""

    kind = 'bpe'

    def encode_batch(self, texts):
        # Of a long text, the words of one piece at a time are in memory.
        short = iter(self._encode_words([text for text in texts if len(text) <= PIECE_SIZE]))
        return [
            next(short)
            if len(text) <= PIECE_SIZE
            else np.concatenate([self._encode_words([piece])[0] for piece in cut_text(text, PIECE_SIZE)])
            for text in texts
        ]

    def _encode_words(self, texts: Sequence[str]) -> list[np.ndarray]:
        # The ids of a word do not depend on its context, so each different word is encoded once: a tenth of Python's
        # own text. (With the whole text, the library's threads wait for each other if malloc has one arena.)
        words = [WORD_EDGE.split(text) for text in texts]
        different = dict.fromkeys(itertools.chain.from_iterable(words))
        ids = {word: known for word in different if (known := self._known.get(word)) is not None}
        if missing := [word for word in different if word not in ids]:
            encoded = self.tokenizer.encode_batch_fast(missing, add_special_tokens=False)
            new = {word: each.ids for word, each in zip(missing, encoded, strict=True)}
            if len(self._known) + len(new) <= MOST_KNOWN:
                self._known.update({word: own for word, own in new.items() if len(word) <= LONGEST_KNOWN})
            ids |= new
        return [np.fromiter(itertools.chain.from_iterable(map(ids.__getitem__, each)), np.int32) for each in words]

    @functools.cached_property
    def _known(self) -> dict[str, list[int]]:
        """Words and their ids: prompts repeat those of a few rows, and a call of the library costs more than a word."""
        return {}


def cut_text(text: str, size: int = PIECE_SIZE) -> list[str]:
    """`text` in pieces of about `size` characters, cut before a newline that follows a letter or punctuation.

    GPT-2's regex always begins a new word there, so that encoding the pieces equals encoding the text.
    """
    pieces, start = [], 0
    for match in BREAK.finditer(text):
        if match.start() - start >= size:
            pieces.append(text[start : match.start()])
            start = match.start()
    return [*pieces, text[start:]] if text[start:] else pieces


def learn_bpe(texts: Iterable[str], size: int) -> bytes:
    """The tokenizer.json of a byte-level BPE with `size` entries; deterministic."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if size < 257:
        raise InputError(f"data.vocab_size leaves {size} entries: 'bpe' has 256 bytes and learns pairs, so 512 or more")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((piece for text in texts for piece in cut_text(text)), trainer)
    return tokenizer.to_str().encode()


def unknown_token(model: dict) -> str | None:
    """The token for what a model's vocabulary lacks; a Unigram has its index."""
    if model.get('type') == 'Unigram' or isinstance(model.get('vocab'), list):
        index = model.get('unk_id')
        return None if index is None else model['vocab'][index][0]
    return model.get('unk_token')


def added_tokens(spec: dict, config: dict) -> list[dict]:
    """The added tokens of a tokenizer.json `spec` and a tokenizer_config.json `config`, same as in transformers.

    `config` overrides flags and may add tokens, and the tokens that it names are special.
    """
    added = {token['content']: token for token in spec.get('added_tokens') or []}
    for token, flags in config.get('added_tokens_decoder', {}).items():
        added[flags['content']] = {'id': int(token)} | flags
    names = {config.get(role) for role in TOKEN_ROLES} | set(config.get('extra_special_tokens', ()))
    return [
        token | {'special': token['special'] or token['content'] in names}
        for token in sorted(added.values(), key=lambda token: token['id'])
    ]


def hide_special_tokens(spec: dict, special: Iterable[str]) -> dict[str, str]:
    """Renames in `spec` the special tokens that are words of the model; {new name: special token}.

    Without this, a Unigram or WordLevel model would find such a word in content, and a BPE could merge it.
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
    """The tokenizer of the library, set to find no special token in a text."""
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        tokenizer.encode_special_tokens = True  # encodes them as ordinary characters
    except Exception as error:  # the library raises bare Exception
        raise InputError(f'not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}') from error
    return tokenizer


def _piece_reader(spec: dict) -> tuple[Callable[[str, bool], bytes], bool]:
    """((name of a vocabulary entry, whether it is literal) -> its bytes, whether a space is added before a text).

    Added tokens are literal; the name of a word of the model may contain substitutes for bytes.
    """
    parts = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer'), spec.get('decoder')])
    if '"ByteLevel"' in parts:
        table = byte_level_alphabet()
        prefix = '"add_prefix_space": true' in json.dumps(spec.get('pre_tokenizer'))

        def level(name: str, literal: bool) -> bytes:
            return name.encode() if literal else b''.join(table.get(c) or c.encode() for c in name)

        return level, prefix
    if spec['model']['type'] == 'WordPiece':
        mark = spec['model'].get('continuing_subword_prefix') or '##'

        def wordpiece(name: str, literal: bool) -> bytes:
            return name.removeprefix(mark).encode() if name.startswith(mark) else b' ' + name.encode()

        return wordpiece, True
    if '\\u2581' in parts or '"Metaspace"' in parts:
        hexadecimal = re.compile('<0x([0-9A-F]{2})>')
        fallback = spec['model'].get('byte_fallback')
        prefix = '"Prepend"' in parts or '"Metaspace"' in parts and '"never"' not in parts

        def metaspace(name: str, literal: bool) -> bytes:
            byte = hexadecimal.fullmatch(name) if fallback and not literal else None
            return bytes([int(byte[1], 16)]) if byte else name.replace('▁', ' ').encode()

        return metaspace, prefix
    if spec['model']['type'] == 'WordLevel' and not spec.get('decoder'):  # the library joins words with spaces
        return lambda name, literal: b' ' + name.encode(), True
    return lambda name, literal: name.encode(), False


@functools.cache
def byte_level_alphabet() -> dict[str, bytes]:
    """GPT-2's printable characters for bytes: printable bytes are themselves, the others follow from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
