"""The tokenizer that data.tokenizer names: learned from a corpus, read from a file, or saved with a run."""

import json
from collections.abc import Iterable
from pathlib import Path

from lmtrain.data.tokenizers.base import END, Bytes, Chars, Tokenizer, Whitespace
from lmtrain.data.tokenizers.hf_files import BERT_TOKENS, read_config, wordpiece
from lmtrain.data.tokenizers.spm import SentencePiece, known_tokens
from lmtrain.data.tokenizers.subword import Bpe, HuggingFace, learn_bpe
from lmtrain.errors import InputError
from lmtrain.files import read_json

FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.txt')  # of a Hugging Face directory; the first one is read
LEARNED = ('bytes', 'chars', 'whitespace', 'bpe')
TOKENIZERS = {cls.kind: cls for cls in (Bytes, Chars, Whitespace, HuggingFace, Bpe, SentencePiece)}


def load_tokenizer(directory: Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote. Raises FileNotFoundError, and InputError if the files are damaged."""
    directory = Path(directory)
    facts = read_json(directory / 'lmtrain_tokenizer.json')
    kind = TOKENIZERS[facts['kind']]
    config = directory / 'tokenizer_config.json'
    config_json = config.read_bytes() if config.is_file() else b''
    tokenizer = _create(kind, (directory / kind.file).read_bytes(), facts['mask'], config_json)
    if tokenizer.hash != facts['hash']:
        raise InputError(f'{directory} is damaged: its hash is {tokenizer.hash[:16]}, saved was {facts["hash"][:16]}')
    return tokenizer


def _create(kind: type[Tokenizer], content: bytes, mask: bool, config_json: bytes) -> Tokenizer:
    reads_config = issubclass(kind, (HuggingFace, SentencePiece))
    tokenizer = kind(content, mask, config_json) if reads_config else kind(content, mask)
    tokenizer.config_json = config_json  # of a learned tokenizer: the chat template of the run
    return tokenizer


def learn(kind: str, texts: Iterable[str], vocab_size: int, mask: bool) -> Tokenizer:
    """A tokenizer learned from `texts`: one of LEARNED. 'bpe' has `vocab_size` entries, including special tokens.

    >>> learn('chars', ['abba', 'c'], 0, mask=False).encode('cab')
    [2, 0, 1]
    """
    if kind == 'bytes':
        return Bytes(mask=mask)
    if kind == 'bpe':
        return Bpe(learn_bpe(texts, vocab_size - 1 - mask), mask)
    symbols: set[str] = set()
    for text in texts:
        symbols.update(TOKENIZERS[kind].symbols_of(text))
    return TOKENIZERS[kind](json.dumps(sorted(symbols)).encode(), mask)


def check_fits(tokenizer: Tokenizer, name: str, limit: int | None, largest: int, place: str) -> None:
    """Raises InputError if a text, or a document's special tokens, have an id beyond an embedding of `limit` rows.

    A tokenizer may have more entries (an added [PAD] that was never trained) if they are not used.

    Args:
      name: the tokenizer in errors.
      largest: id in the texts of `place`, -1 for none.
    """
    if limit is None or tokenizer.vocab_size <= limit:
        return
    specials = [token for token in (tokenizer.begin_id, tokenizer.end_id, tokenizer.mask_id) if token is not None]
    needed = max(largest, *specials)
    if needed < limit:
        return
    token = tokenizer.specials.get(needed) or tokenizer.decode([needed])
    user = f'{place} has' if needed == largest else 'every document needs'
    if token == END and name not in LEARNED:
        raise InputError(
            f'the tokenizer {name!r} has no token that ends a text, and the {limit} embeddings of the model leave no '
            "room for one: name one of its special tokens as 'eos_token' in tokenizer_config.json, or set "
            f'model.vocab_size to at least {needed + 1}'
        )
    raise InputError(
        f'the tokenizer {name!r} has {tokenizer.vocab_size} entries and model.vocab_size is {limit}: '
        f'set model.vocab_size to at least {needed + 1}, since {user} {token!r}, id {needed}'
    )


def open_tokenizer(path: Path, mask: bool) -> Tokenizer:
    """The tokenizer of a tokenizer.json, BERT's vocab.txt, a SentencePiece .model, or a directory with one of them.

    A directory may be that of a Hugging Face model, or one that `Tokenizer.save` wrote. Special tokens and chat
    template are read from tokenizer_config.json, special_tokens_map.json and chat_template.jinja beside it.

    Raises FileNotFoundError, InputError.
    """
    path = Path(path)
    if (path / 'lmtrain_tokenizer.json').is_file():
        saved = load_tokenizer(path)
        if mask and saved.mask_id is None:  # saved by a run without masking
            saved = _create(type(saved), (path / saved.file).read_bytes(), mask, saved.config_json)
        return saved
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(
                f'data.tokenizer: {path} has no tokenizer.json, tokenizer.model or vocab.txt; transformers '
                'writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)'
            )
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"data.tokenizer: no file {path}; it is 'bytes', 'chars', 'whitespace', 'bpe', or the path of a Hugging "
            'Face directory or tokenizer.json, a vocab.txt of BERT or a SentencePiece .model'
        )
    kind = SentencePiece if path.suffix == '.model' else HuggingFace
    try:
        if kind is SentencePiece:
            content = path.read_bytes()
            return SentencePiece(content, mask, read_config(path.parent, {}, known_tokens(content)))
        if path.suffix == '.txt':
            content, known = wordpiece(path.read_bytes()), BERT_TOKENS
        else:
            content, known = path.read_bytes(), {}
        spec = json.loads(content)
        if not isinstance(spec, dict):
            raise InputError("it has no object 'model'")
        added = {token['content']: token for token in spec.get('added_tokens') or []}
        return HuggingFace(content, mask, read_config(path.parent, known, added))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kinds = {'.model': 'a SentencePiece .model', '.txt': "BERT's vocab.txt"}
        expected = kinds.get(path.suffix, 'a Hugging Face tokenizer.json')
        raise InputError(f'{path}: expected {expected}, and this cannot be read as one ({error})') from error
