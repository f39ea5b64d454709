"""A tokenizer as the files that transformers reads: tokenizer.json and tokenizer_config.json."""

import json

from lmtrain.data.tokenizers.base import Bytes, Chars, SpecialTokenLayout, Symbols, Tokenizer
from lmtrain.data.tokenizers.hf_files import FLAGS
from lmtrain.data.tokenizers.subword import HuggingFace, byte_level, hide

EMPTY = dict.fromkeys(('truncation', 'padding', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
BLANKS = ''.join(chr(code) for code in range(0x3001) if chr(code).isspace())  # where str.split divides a text


def tokenizer_files(tokenizer: Tokenizer, framed: bool = False) -> dict[str, bytes]:
    """{name: content} of the files; {} if it has no such form (a SentencePiece .model is read as it is).

    The special tokens are added tokens of the tokenizer.json, and tokenizer_config.json names those that begin and end
    a document, so that a text ends where the model says so. A tokenizer that was learned here, or whose file lacks an
    end token, puts the begin token before a text, as every row of training has it; other files stay as they were
    published.

    Args:
      framed: whether a text stands between the tokens of `tokenizer.layout`, as in the rows of classification and
        similar tasks, and not behind the begin token alone.
    """
    if isinstance(tokenizer, HuggingFace):
        spec = json.loads(tokenizer.content)
    elif isinstance(tokenizer, Bytes):
        ids = {name: byte[0] for name, byte in byte_level().items()}
        level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False, 'use_regex': False}
        spec = {'pre_tokenizer': level, 'decoder': level, 'model': _model('BPE', ids, merges=[])}
    elif isinstance(tokenizer, Symbols):
        # No unknown token: the library, too, refuses a symbol that the corpus did not have.
        spec = {'model': _model('WordLevel', tokenizer.ids, unk_token='[UNK]')}
        chars = isinstance(tokenizer, Chars)
        split = {'Regex': r'[\s\S]' if chars else f'[{BLANKS}]+'}
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
        hide(spec, dict(missing).values())  # a word of the text that is spelled like one
        flags = dict.fromkeys(FLAGS, False) | {'special': True}
        added = [*added, *({'id': token, 'content': name} | flags for token, name in missing)]
    spec['added_tokens'] = added
    if tokenizer.end_id in dict(missing):
        begin = (tokenizer.begin_id,)
        spec['post_processor'] = _around(
            tokenizer.layout if framed else SpecialTokenLayout(begin, begin, ()), tokenizer.specials
        )
    whole = json.dumps(spec, ensure_ascii=False).encode() if missing else tokenizer.content
    return {'tokenizer.json': whole, 'tokenizer_config.json': json.dumps(_config(tokenizer), indent=2).encode()}


def _config(tokenizer: Tokenizer) -> dict:
    """The tokenizer_config.json: what the tokenizer came with, and if that names no end token, its own."""
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
    """The post-processor that puts the tokens of a layout around a text and between two."""
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
