"""The tokenizer that data.tokenizer names: learned from a corpus, read from a file, or saved with a run."""

import json
from collections.abc import Iterable
from pathlib import Path

from lmtrain.data.tokenizers.base import Bytes, Chars, Tokenizer, Whitespace
from lmtrain.data.tokenizers.hf_files import BERT, about, wordpiece
from lmtrain.data.tokenizers.spm import SentencePiece, known_tokens
from lmtrain.data.tokenizers.subword import Bpe, HuggingFace, learn_bpe
from lmtrain.errors import InputError
from lmtrain.files import read_json

LEARNED = ('bytes', 'chars', 'whitespace', 'bpe')
KINDS = {cls.kind: cls for cls in (Bytes, Chars, Whitespace, HuggingFace, Bpe, SentencePiece)}


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that `save` wrote. Raises FileNotFoundError; ValueError where its files are not what was saved."""
    directory = Path(directory)
    about = read_json(directory / 'lmtrain_tokenizer.json')
    kind = KINDS[about['kind']]
    config = directory / 'tokenizer_config.json'
    told = config.read_bytes() if config.is_file() else b''
    tokenizer = _opened(kind, (directory / kind.file).read_bytes(), about['mask'], told)
    if tokenizer.hash != about['hash']:
        raise InputError(f'{directory} is damaged: its hash is {tokenizer.hash[:16]}, saved was {about["hash"][:16]}')
    return tokenizer


def _opened(kind: type[Tokenizer], content: bytes, mask: bool, about: bytes) -> Tokenizer:
    reads = issubclass(kind, (HuggingFace, SentencePiece))
    tokenizer = kind(content, mask, about) if reads else kind(content, mask)
    tokenizer.about = about  # of a learned tokenizer: the chat template that a run was trained with
    return tokenizer


def learn(kind: str, texts: Iterable[str], vocab_size: int, mask: bool) -> Tokenizer:
    """A tokenizer of `texts`: 'bytes', 'chars', 'whitespace', or 'bpe' of `vocab_size` entries, specials included."""
    if kind == 'bytes':
        return Bytes(mask=mask)
    if kind == 'bpe':
        return Bpe(learn_bpe(texts, vocab_size - 1 - mask), mask)
    symbols: set[str] = set()
    for text in texts:
        symbols.update(KINDS[kind].symbols_of(text))
    return KINDS[kind](json.dumps(sorted(symbols)).encode(), mask)


def check_fits(tokenizer: Tokenizer, name: str, limit: int | None, largest: int, place: str) -> None:
    """Raises ValueError if a text or a document's marks need a token without a row in an embedding of `limit` rows.

    A tokenizer may have more entries than that (a [PAD] that was added and never trained): only their use is an error.

    Args:
      name: the tokenizer in errors. largest: id in the texts of `place`, -1 for none.
    """
    if limit is None or tokenizer.vocab_size <= limit:
        return
    marks = [token for token in (tokenizer.begin_id, tokenizer.end_id, tokenizer.mask_id) if token is not None]
    needed = max(largest, *marks)
    if needed < limit:
        return
    token = tokenizer.specials.get(needed) or tokenizer.decode([needed])
    user = f'{place} holds' if needed == largest else 'every document needs'
    raise InputError(
        f'the tokenizer {name!r} has {tokenizer.vocab_size} entries and model.vocab_size is {limit}: '
        f'set model.vocab_size to at least {needed + 1}, since {user} {token!r}, id {needed}'
    )


def open_tokenizer(path: Path, mask: bool) -> Tokenizer:
    """The tokenizer of a tokenizer.json, BERT's vocab.txt, a SentencePiece .model, or a directory that holds one.

    A directory may be a Hugging Face model's, or one that `save` wrote. Special tokens and chat template are those of
    the tokenizer_config.json, special_tokens_map.json and chat_template.jinja beside it.

    Raises FileNotFoundError, ValueError.
    """
    path = Path(path)
    if (path / 'lmtrain_tokenizer.json').is_file():
        saved = load_tokenizer(path)
        if mask and saved.mask_id is None:  # saved by a run that hid nothing
            saved = _opened(type(saved), (path / saved.file).read_bytes(), mask, saved.about)
        return saved
    if path.is_dir():
        found = [path / name for name in ('tokenizer.json', 'tokenizer.model', 'vocab.txt') if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f'data.tokenizer: {path} holds no tokenizer.json, tokenizer.model or vocab.txt; transformers '
                'writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)'
            )
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"data.tokenizer: no file {path}; it is 'bytes', 'chars', 'whitespace', 'bpe', or the path of a Hugging "
            'Face directory or tokenizer.json, a vocab.txt of BERT or a SentencePiece .model'
        )
    kind = SentencePiece if path.suffix == '.model' else HuggingFace
    try:
        if kind is SentencePiece:
            content = path.read_bytes()
            return SentencePiece(content, mask, about(path.parent, {}, known_tokens(content)))
        if path.suffix == '.txt':
            content, known = wordpiece(path.read_bytes()), BERT
        else:
            content, known = path.read_bytes(), {}
        spec = json.loads(content)
        if not isinstance(spec, dict):
            raise InputError("it holds no object with a 'model'")
        added = {token['content']: token for token in spec.get('added_tokens') or []}
        return HuggingFace(content, mask, about(path.parent, known, added))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = {'.model': 'a SentencePiece .model', '.txt': "BERT's vocab.txt"}
        wanted = wanted.get(path.suffix, 'a Hugging Face tokenizer.json')
        raise InputError(f'{path}: {wanted} is expected, and this cannot be read as one ({error})') from error
