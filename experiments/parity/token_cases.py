"""Small tokenizers of every kind whose added tokens are special or not, and texts full of them. No library is needed.

The script beside this file encodes the texts with transformers and writes the ids; the tests encode them with lmtrain.
"""

import json
import pathlib
import random

FLAGS = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': False}
EMPTY = dict.fromkeys(('truncation', 'padding', 'normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,<>/=()+-:|_\t'
TO_METASPACE = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
DECODER = [{'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}, {'type': 'ByteFallback'}, {'type': 'Fuse'}]
STRIP = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
# What texts are made of beside the names of added tokens, their beginnings and their capitals.
PARTS = [
    'the',
    ' the',
    ' ',
    '  ',
    '\n',
    '\n\n',
    '\t',
    'a',
    'cat',
    'x=1',
    '.',
    '<',
    '>',
    '(',
    ')',
    "'s",
    '9',
    'é',
    '🦙',
    'A',
]


def added(first: int, **named: dict) -> list[dict]:
    return [{'id': first + i, 'content': name} | FLAGS | flags for i, (name, flags) in enumerate(named.items())]


def spec(model: dict, tokens: list[dict], **parts) -> dict:
    return {'version': '1.0', 'added_tokens': tokens} | EMPTY | parts | {'model': model}


def bpe(vocab: dict, merges: list, **more) -> dict:
    defaults = dict.fromkeys(('dropout', 'unk_token', 'continuing_subword_prefix', 'end_of_word_suffix'))
    flags = dict.fromkeys(('fuse_unk', 'byte_fallback', 'ignore_merges'), False)
    return {'type': 'BPE'} | defaults | flags | more | {'vocab': vocab, 'merges': merges}


def numbered(names) -> dict[str, int]:
    return {name: token for token, name in enumerate(dict.fromkeys(names))}


def gemma() -> dict:
    special = ('<pad>', '<eos>', '<bos>', '<unk>', '<start_of_turn>', '<end_of_turn>')
    words = ('\n', '\n\n', '▁▁', '▁▁▁', '<table>', '<tr>', '</table>', '<h1>')
    vocab = numbered(
        [*special, *words, *(f'<0x{byte:02X}>' for byte in range(256)), '▁', *LETTERS, 'th', 'the', '▁the']
    )
    merges = [['\n', '\n'], ['▁', '▁'], ['▁▁', '▁'], ['t', 'h'], ['th', 'e'], ['▁', 'the']]
    tokens = added(0, **{name: {'special': name in special} for name in (*special, *words)})
    split = {'type': 'Split', 'pattern': {'String': ' '}, 'behavior': 'MergedWithPrevious', 'invert': False}
    model = bpe(vocab, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True)
    decoder = {'type': 'Sequence', 'decoders': DECODER}
    return spec(model, tokens, normalizer=TO_METASPACE, pre_tokenizer=split, decoder=decoder)


def byte_level(tokens: dict[str, dict], normalizer=None, prefix: bool = False) -> dict:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocab = numbered([*letters, 'th', 'the', 'Ġthe', 'Ġa', 'at', 'cat'])
    merges = [['t', 'h'], ['th', 'e'], ['Ġ', 'the'], ['Ġ', 'a'], ['a', 't'], ['c', 'at']]
    level = {'type': 'ByteLevel', 'add_prefix_space': prefix, 'trim_offsets': False, 'use_regex': True}
    parts = {'normalizer': normalizer, 'pre_tokenizer': level, 'decoder': level}
    return spec(bpe(vocab, merges), added(len(vocab), **tokens), **parts)


SPECIAL = {'special': True}
QWEN = {'<|endoftext|>': SPECIAL, '<|im_start|>': SPECIAL, '<|im_end|>': SPECIAL, '<think>': {}, '</think>': {}}
QWEN |= {'<tool_call>': {}, '</tool_call>': {}, '<tool_response>': {}}
# Every flag, and names that begin or contain each other.
DOMAIN = {'<|endoftext|>': SPECIAL, 'COVID-19': {'normalized': True}, 'COVID': {'normalized': True}}
DOMAIN |= {'remdesivir': {'single_word': True}, '<a>': {'lstrip': True}, '<a><b>': {'rstrip': True}, 'x=1': {}}
DOMAIN |= {'É': {'normalized': True, 'single_word': True}, ' \n': {'normalized': True}}


def wordpiece() -> dict:
    special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
    words = [*special, *'abcdefghijklmnopqrstuvwxyz0123456789<>/=()[].-:', 'the', 'cat', '##s', '##at', '##the', '##a']
    words += [f'##{letter}' for letter in 'bcdefghijklmnopqrstuvwxyz0123456789']
    more = {'COVID-19': {'normalized': True}, 'remdesivir': {'single_word': True}, '<a>': {'lstrip': True}, 'x=1': {}}
    tokens = added(0, **dict.fromkeys(special, SPECIAL)) + added(len(words), **more)
    lower = {'clean_text': True, 'handle_chinese_chars': True, 'strip_accents': None, 'lowercase': True}
    model = {'type': 'WordPiece', 'unk_token': '[UNK]', 'continuing_subword_prefix': '##'}
    return spec(
        model | {'max_input_chars_per_word': 100, 'vocab': numbered(words)},
        tokens,
        normalizer={'type': 'BertNormalizer'} | lower,
        pre_tokenizer={'type': 'BertPreTokenizer'},
        decoder={'type': 'WordPiece', 'prefix': '##', 'cleanup': False},
    )


def unigram() -> dict:
    pieces = ['<pad>', '</s>', '<unk>', '▁', '▁the', 'the', '▁a', 'cat', *LETTERS]
    scores = [0.0, 0.0, 0.0, *(-2.0 - i / 8 for i in range(len(pieces) - 3))]
    meta = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}
    words = {'COVID-19': {'normalized': True}, '<a>': {'rstrip': True}, 'remdesivir': {'single_word': True}, 'é': {}}
    tokens = added(0, **dict.fromkeys(pieces[:3], SPECIAL)) + added(len(pieces), **words)
    model = {'type': 'Unigram', 'unk_id': 2, 'byte_fallback': False, 'vocab': list(zip(pieces, scores))}
    return spec(model, tokens, pre_tokenizer=meta, decoder=meta)


def llama(scheme: str | None) -> dict:
    """LLaMA's: a blank is put before every text (None), or by Metaspace before the first one alone ('first')."""
    special = ('<unk>', '<s>', '</s>')
    bytes_ = (f'<0x{byte:02X}>' for byte in range(256))
    vocab = numbered([*special, *bytes_, '▁', *LETTERS, 'th', 'the', '▁the', '▁a'])
    merges = [['t', 'h'], ['th', 'e'], ['▁', 'the'], ['▁', 'a']]
    words = {
        '<|im_start|>': SPECIAL,
        '<tool>': {},
        '<a>': {'lstrip': True, 'rstrip': True},
        'COVID': {'normalized': True},
    }
    tokens = added(0, **dict.fromkeys(special, SPECIAL)) + added(len(vocab), **words)
    model = bpe(vocab, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True)
    decoder = {'type': 'Sequence', 'decoders': [*DECODER, STRIP]}
    if scheme is None:
        prepend = [{'type': 'Prepend', 'prepend': '▁'}, TO_METASPACE]
        return spec(model, tokens, normalizer={'type': 'Sequence', 'normalizers': prepend}, decoder=decoder)
    meta = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': scheme, 'split': False}
    return spec(model, tokens, pre_tokenizer=meta, decoder=decoder)


CASES = {
    'gemma': gemma(),
    'qwen': byte_level(QWEN, {'type': 'NFC'}),
    'gpt2 with domain words': byte_level(DOMAIN),
    'gpt2 with a blank before': byte_level(DOMAIN, prefix=True),
    'bert': wordpiece(),
    'unigram': unigram(),
    'llama': llama(None),
    'llama, first': llama('first'),
}
CONFIG = {
    'gemma': {'bos_token': '<bos>', 'eos_token': '<eos>', 'pad_token': '<pad>', 'unk_token': '<unk>'},
    'qwen': {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'},
    'bert': {'cls_token': '[CLS]', 'sep_token': '[SEP]', 'unk_token': '[UNK]', 'mask_token': '[MASK]'},
    'unigram': {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'},
    'llama': {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<unk>', 'unk_token': '<unk>'},
}


def config(name: str) -> dict:
    fields = CONFIG.get(name.split(',')[0], {'eos_token': '<|endoftext|>'})
    return fields | {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}


def write(name: str, directory: pathlib.Path) -> None:
    """The files of a case, in a new directory."""
    directory.mkdir(parents=True)
    for file, content in (('tokenizer.json', CASES[name]), ('tokenizer_config.json', config(name))):
        (directory / file).write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')


def texts(name: str, count: int) -> list[str]:
    """`count` texts of a case, the same in every call; of specials too, where no model would take them for words."""
    tokens = CASES[name]['added_tokens']
    names = [token['content'] for token in tokens if not token['special'] or name != 'unigram']
    parts = PARTS + names * 2 + [each[:-1] for each in names] + [each.lower() for each in names]
    draw = random.Random(name)
    return [''.join(draw.choice(parts) for _ in range(draw.randint(1, 9))) for _ in range(count)]
