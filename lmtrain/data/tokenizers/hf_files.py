"""What stands beside a tokenizer.json or in its place: names of special tokens, a chat template, BERT's vocab.txt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError
from lmtrain.files import read_json_object

ROLES = tuple(f'{role}_token' for role in ('bos', 'eos', 'cls', 'sep', 'pad', 'unk', 'mask'))
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')  # of an added token
BERT = {'cls_token': '[CLS]', 'sep_token': '[SEP]', 'pad_token': '[PAD]', 'unk_token': '[UNK]', 'mask_token': '[MASK]'}


def about(directory: Path, known: Mapping[str, str], added: Mapping[str, Mapping]) -> bytes:
    """A tokenizer_config.json of what lmtrain reads of the files beside a tokenizer; b'' if there is nothing.

    The names of special tokens: from special_tokens_map.json and tokenizer_config.json of `directory`, later ones
    first, and last of all from `known`. `chat_template`: from tokenizer_config.json, chat_template.jinja and the
    folder additional_chat_templates, later ones first; a text or, if there are several or one without the name
    'default', a list of {'name', 'template'}, as transformers writes them. `added_tokens_decoder` and
    `extra_special_tokens`: only what says something else than `added`, the added tokens of the tokenizer.json by name.

    Raises ValueError naming the file and the key.
    """
    told, templates = dict(known), {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        path = directory / name
        if not path.is_file():
            continue
        config = read_json_object(path)
        for role in ROLES:
            value = config.get(role)
            value = value.get('content') if isinstance(value, dict) else value
            if value is not None and not isinstance(value, str):
                raise InputError(f'{path}: {role} is {value!r}; the text of a token is expected')
            told |= {role: value} if value else {}
        templates |= _templates(config.get('chat_template'), path)
        told |= _added(config, added, path)
    told |= _of_older_files(directory / 'added_tokens.json', added, told.get('added_tokens_decoder', {}))
    files = [('default', directory / 'chat_template.jinja')]
    files += [(path.stem, path) for path in sorted((directory / 'additional_chat_templates').glob('*.jinja'))]
    templates |= {name: path.read_text(encoding='utf-8') for name, path in files if path.is_file()}
    if templates.keys() == {'default'}:
        told['chat_template'] = templates['default']
    elif templates:
        told['chat_template'] = [{'name': name, 'template': text} for name, text in templates.items()]
    if not told:
        return b''
    return json.dumps(told | {'tokenizer_class': 'PreTrainedTokenizerFast'}, sort_keys=True).encode()


def _added(config: Mapping, added: Mapping[str, Mapping], path: Path) -> dict:
    """What a tokenizer_config.json says of added tokens that `added` does not."""
    decoder = config.get('added_tokens_decoder') or {}
    if not isinstance(decoder, dict) or not all(
        token.isdecimal() and isinstance(flags, dict) and isinstance(flags.get('content'), str)
        for token, flags in decoder.items()
    ):
        raise InputError(f"{path}: added_tokens_decoder must be {{id: {{'content': text, flags}}}}")
    entries = {
        token: {name: flags.get(name, False) for name in ('content', *FLAGS)} for token, flags in decoder.items()
    }
    other = {token: flags for token, flags in entries.items() if not _same(int(token), flags, added)}
    listed = [*(config.get('additional_special_tokens') or ()), *(config.get('extra_special_tokens') or ())]
    names = [token.get('content') if isinstance(token, dict) else token for token in listed]
    words = [name for name in names if name in added and not added[name]['special']]
    fields = {'added_tokens_decoder': other, 'extra_special_tokens': words}
    return {name: value for name, value in fields.items() if value}


def _of_older_files(path: Path, added: Mapping[str, Mapping], decoder: Mapping[str, Mapping]) -> dict:
    """The added_tokens_decoder with the tokens of an added_tokens.json, {name: id}, that neither of both has."""
    if not path.is_file():
        return {}
    further, flags = read_json_object(path), dict.fromkeys(FLAGS, False)
    named = added.keys() | {token['content'] for token in decoder.values()}
    entries = {str(token): {'content': name} | flags for name, token in further.items() if name not in named}
    return {'added_tokens_decoder': decoder | entries} if entries else {}


def _same(token: int, flags: Mapping, added: Mapping[str, Mapping]) -> bool:
    """Whether an added token is in `added` with the flags that matter: a special one is not looked for in content."""
    known = added.get(flags['content'])
    if known is None or known['id'] != token or known['special'] != flags['special']:
        return False
    return all(known[name] == flags[name] for name in (('lstrip', 'rstrip') if flags['special'] else FLAGS))


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
    """The tokenizer.json of BERT's vocab.txt, a token a line.

    Text is lower-cased, and its accents are taken off, where no word of the vocabulary has a capital letter.
    Raises ValueError where BERT's special tokens are not in it.
    """
    names = vocabulary.decode().splitlines()
    ids = {name: token for token, name in enumerate(names)}
    missing = [name for name in BERT.values() if name not in ids]
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
        'added_tokens': [{'id': ids[name], 'content': name} | flags for name in sorted(BERT.values(), key=ids.get)],
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
