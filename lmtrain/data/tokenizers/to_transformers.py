"""Writes a tokenizer for transformers: tokenizer.json and tokenizer_config.json."""

import json

from lmtrain.data.tokenizers.base import Bytes, Chars, SpecialTokenLayout, Symbols, Tokenizer
from lmtrain.data.tokenizers.hf_files import TOKEN_FLAGS
from lmtrain.data.tokenizers.subword import HuggingFace, byte_level_alphabet, hide_special_tokens

EMPTY = dict.fromkeys(('truncation', 'padding', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
WHITE_SPACE = ''.join(chr(code) for code in range(0x3001) if chr(code).isspace())  # the separators of str.split


def tokenizer_files(tokenizer: Tokenizer, framed: bool = False) -> dict[str, bytes]:
    """{name: content} of the files; {} for a SentencePiece .model, which transformers reads unchanged.

    The special tokens are added tokens of the tokenizer.json, and tokenizer_config.json names those that begin and end
    a document, so that generation stops at the end token. A tokenizer that was learned here, or whose file lacks an end
    token, adds the begin token before a text, as in every row of training; other files are unchanged.

    Args:
      framed: whether a text is between the tokens of `tokenizer.layout`, as in the rows of classification and similar
        tasks, instead of after the begin token alone.
    """
    if isinstance(tokenizer, HuggingFace):
        spec = json.loads(tokenizer.content)
    elif isinstance(tokenizer, Bytes):
        ids = {name: byte[0] for name, byte in byte_level_alphabet().items()}
        level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False, 'use_regex': False}
        spec = {'pre_tokenizer': level, 'decoder': level, 'model': _model('BPE', ids, merges=[])}
    elif isinstance(tokenizer, Symbols):
        # [UNK] is not in the vocabulary, so the library rejects unseen symbols, as `Symbols` does.
        spec = {'model': _model('WordLevel', tokenizer.ids, unk_token='[UNK]')}
        chars = isinstance(tokenizer, Chars)
        split = {'Regex': r'[\s\S]' if chars else f'[{WHITE_SPACE}]+'}
        behaviour = 'Isolated' if chars else 'Removed'
        spec |= {'pre_tokenizer': {'type': 'Split', 'pattern': split, 'behavior': behaviour, 'invert': False}}
        spec |= {'decoder': {'type': 'Fuse'} if chars else None}
    else:
        return {}
    spec = {'version': '1.0'} | EMPTY | spec
    added = spec.get('added_tokens') or []
    known = {token['content'] for token in added}
    missing = [(token, name) for token, name in sorted(tokenizer.specials.items()) if name not in known]
    if missing:
        hide_special_tokens(spec, dict(missing).values())  # a word of the text with the same characters
        flags = dict.fromkeys(TOKEN_FLAGS, False) | {'special': True}
        added = [*added, *({'id': token, 'content': name} | flags for token, name in missing)]
    spec['added_tokens'] = added
    if tokenizer.end_id in dict(missing):
        begin = (tokenizer.begin_id,)
        spec['post_processor'] = _around(
            tokenizer.layout if framed else SpecialTokenLayout(begin, begin, ()), tokenizer.specials
        )
    content = json.dumps(spec, ensure_ascii=False).encode() if missing else tokenizer.content
    return {'tokenizer.json': content, 'tokenizer_config.json': json.dumps(_config(tokenizer), indent=2).encode()}


def _config(tokenizer: Tokenizer) -> dict:
    """The tokenizer_config.json: that of the tokenizer's files, with its special tokens if that has no end token."""
    config = tokenizer.config
    if {'eos_token', 'sep_token'} & config.keys():
        return config
    roles = {'bos_token': tokenizer.begin_id, 'eos_token': tokenizer.end_id, 'mask_token': tokenizer.mask_id}
    names = {role: tokenizer.specials[token] for role, token in roles.items() if token is not None}
    plain = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}
    return plain | names | config


def _model(kind: str, vocabulary: dict[str, int], **more) -> dict:
    return {'type': kind, 'vocab': vocabulary} | more


def _around(layout: SpecialTokenLayout, names: dict[int, str]) -> dict:
    """The post-processor that adds the tokens of a layout around a text and between two."""
    prefix, between, suffix = (
        [{'SpecialToken': {'id': names.get(token, str(token)), 'type_id': 0}} for token in tokens]
        for tokens in layout[:3]
    )
    first, second = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
    ids = {names.get(token, str(token)): token for tokens in layout[:3] for token in tokens}
    return {
        'type': 'TemplateProcessing',
        'single': [*prefix, first, *suffix],
        'pair': [*prefix, first, *between, second, *suffix],
        'special_tokens': {name: {'id': name, 'ids': [token], 'tokens': [name]} for name, token in ids.items()},
    }
