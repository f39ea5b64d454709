"""Files beside a tokenizer.json or instead of one: special tokens, chat template, BERT's vocab.txt."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtrain.data.text_files import decode
from lmtrain.errors import InputError
from lmtrain.files import read_json_object

TOKEN_ROLES = tuple(f'{role}_token' for role in ('bos', 'eos', 'cls', 'sep', 'pad', 'unk', 'mask'))
TOKEN_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')  # of an added token
BERT_TOKENS = {
    'cls_token': '[CLS]',
    'sep_token': '[SEP]',
    'pad_token': '[PAD]',
    'unk_token': '[UNK]',
    'mask_token': '[MASK]',
}


def read_config(directory: Path, known: Mapping[str, str], added: Mapping[str, Mapping]) -> bytes:
    """A tokenizer_config.json with the fields that lmtrain reads from the files beside a tokenizer; b'' without any.

    Names of special tokens: from tokenizer_config.json, else special_tokens_map.json, else `known`. `chat_template`:
    from the folder additional_chat_templates, else chat_template.jinja, else tokenizer_config.json; a text or, if there
    are several or one without the name 'default', a list of {'name', 'template'}, the format of transformers.
    `added_tokens_decoder` and `extra_special_tokens`: only tokens that differ from `added`.

    Args:
      known: {role: name} of special tokens.
      added: {name: token} of the added tokens of the tokenizer.json.

    Raises InputError naming the file and the key.
    """
    merged, templates = dict(known), {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        path = directory / name
        if not path.is_file():
            continue
        config = read_json_object(path)
        for role in TOKEN_ROLES:
            value = config.get(role)
            value = value.get('content') if isinstance(value, dict) else value
            if value is not None and not isinstance(value, str):
                raise InputError(f'{path}: {role} is {value!r}; it must be the text of a token')
            merged |= {role: value} if value else {}
        templates |= _templates(config.get('chat_template'), path)
        merged |= _changed_tokens(config, added, path)
    merged |= _older_tokens(directory / 'added_tokens.json', added, merged.get('added_tokens_decoder', {}))
    files = [('default', directory / 'chat_template.jinja')]
    files += [(path.stem, path) for path in sorted((directory / 'additional_chat_templates').glob('*.jinja'))]
    templates |= {name: read_template(path) for name, path in files if path.is_file()}
    if templates.keys() == {'default'}:
        merged['chat_template'] = templates['default']
    elif templates:
        merged['chat_template'] = [{'name': name, 'template': text} for name, text in templates.items()]
    if not merged:
        return b''
    return json.dumps(merged | {'tokenizer_class': 'PreTrainedTokenizerFast'}, sort_keys=True).encode()


def read_template(path: Path) -> str:
    """The text of a Jinja file, without a byte order mark and carriage returns. Raises InputError naming the file."""
    return decode(path.read_bytes(), path).replace('\r\n', '\n').replace('\r', '\n')


def _changed_tokens(config: Mapping, added: Mapping[str, Mapping], path: Path) -> dict:
    """The fields of a tokenizer_config.json about added tokens that differ from `added`."""
    decoder = config.get('added_tokens_decoder') or {}
    if not isinstance(decoder, dict) or not all(
        token.isdecimal() and isinstance(flags, dict) and isinstance(flags.get('content'), str)
        for token, flags in decoder.items()
    ):
        raise InputError(f"{path}: added_tokens_decoder must be {{id: {{'content': text, flags}}}}")
    entries = {
        token: {name: flags.get(name, False) for name in ('content', *TOKEN_FLAGS)} for token, flags in decoder.items()
    }
    other = {token: flags for token, flags in entries.items() if not _same(int(token), flags, added)}
    listed = [*(config.get('additional_special_tokens') or ()), *(config.get('extra_special_tokens') or ())]
    names = [token.get('content') if isinstance(token, dict) else token for token in listed]
    words = [name for name in names if name in added and not added[name]['special']]
    fields = {'added_tokens_decoder': other, 'extra_special_tokens': words}
    return {name: value for name, value in fields.items() if value}


def _older_tokens(path: Path, added: Mapping[str, Mapping], decoder: Mapping[str, Mapping]) -> dict:
    """`decoder` with the tokens of an added_tokens.json, {name: id}, that are neither in it nor in `added`."""
    if not path.is_file():
        return {}
    tokens, flags = read_json_object(path), dict.fromkeys(TOKEN_FLAGS, False)
    names = added.keys() | {token['content'] for token in decoder.values()}
    entries = {str(token): {'content': name} | flags for name, token in tokens.items() if name not in names}
    return {'added_tokens_decoder': decoder | entries} if entries else {}


def _same(token: int, flags: Mapping, added: Mapping[str, Mapping]) -> bool:
    """Whether an added token is in `added` with equal relevant flags: content is not searched for special tokens."""
    known = added.get(flags['content'])
    if known is None or known['id'] != token or known['special'] != flags['special']:
        return False
    return all(known[name] == flags[name] for name in (('lstrip', 'rstrip') if flags['special'] else TOKEN_FLAGS))


def _templates(value: Any, path: Path) -> dict[str, str]:
    """{name: Jinja source} of the field `chat_template`."""
    if not value:
        return {}
    several = [{'name': 'default', 'template': value}] if isinstance(value, str) else value
    try:
        templates = {each['name']: each['template'] for each in several}
    except (TypeError, KeyError):
        templates = {}
    if not templates or not all(isinstance(text, str) for text in (*templates, *templates.values())):
        raise InputError(f'{path}: chat_template must be text, or a list of objects with "name" and "template"')
    return templates


def wordpiece(vocabulary: bytes) -> bytes:
    """The tokenizer.json of BERT's vocab.txt, one token per line.

    Text is lower-cased and accents are removed if no word of the vocabulary has a capital letter. Raises InputError if
    the vocabulary lacks BERT's special tokens.
    """
    names = re.split('\r\n?|\n', vocabulary.decode())  # splitlines would also cut at U+0085, U+2028 and form feeds
    names = names if names[-1] else names[:-1]  # after the last line's end
    ids = {name: token for token, name in enumerate(names)}
    missing = [name for name in BERT_TOKENS.values() if name not in ids]
    if missing:
        raise InputError(f'the vocabulary lacks {", ".join(missing)}')
    plain = [name for name in names if not (name.startswith('[') and name.endswith(']'))]
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
    special = {name: {'id': name, 'ids': [ids[name]], 'tokens': [name]} for name in ('[CLS]', '[SEP]')}
    cls, sep = ({'SpecialToken': {'id': name, 'type_id': 0}} for name in special)
    first, second = ({'Sequence': {'id': name, 'type_id': kind}} for kind, name in enumerate('AB'))
    end = {'SpecialToken': {'id': '[SEP]', 'type_id': 1}}
    spec = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [
            {'id': ids[name], 'content': name} | flags for name in sorted(BERT_TOKENS.values(), key=ids.get)
        ],
        'normalizer': {
            'type': 'BertNormalizer',
            'clean_text': True,
            'handle_chinese_chars': True,
            'strip_accents': None,
            'lowercase': not any(name != name.lower() for name in plain),
        },
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
        'post_processor': {
            'type': 'TemplateProcessing',
            'single': [cls, first, sep],
            'pair': [cls, first, sep, second, end],
            'special_tokens': special,
        },
        'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
        'model': {
            'type': 'WordPiece',
            'unk_token': '[UNK]',
            'continuing_subword_prefix': '##',
            'max_input_chars_per_word': 100,
            'vocab': ids,
        },
    }
    return json.dumps(spec).encode()
