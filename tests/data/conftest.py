"""Small corpora: `prepare(documents, **changes)` with the settings of configs/base.py."""

import json
import random

import pytest

import lmtrain.data
from configs.base import get_config
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.data.tokenizers.subword import learn_bpe

WORDS = 'the cat sat on a mat and looked at the moon over seven hills while it sang of tea'.split()


def _poem(number: int) -> str:
    draw = random.Random(number).random
    return '\n'.join(' '.join(WORDS[int(draw() * len(WORDS))] for _ in range(3 + number % 17)) for _ in range(2))


@pytest.fixture(scope='session')
def poem():
    """poem(number): a short text, different for every number."""
    return _poem


@pytest.fixture
def settings(tmp_path):
    """settings(**changes): the keyword arguments of lmtrain.data.prepare."""

    def make(**over):
        data = get_config().data.to_dict()
        small = {'cache': str(tmp_path / 'cache'), 'tokenizer': 'bytes', 'seq_len': 32, 'root': str(tmp_path)}
        return data | small | over

    return make


@pytest.fixture
def prepare(tmp_path, settings):
    """prepare(documents, **changes): the Corpus of some documents, one line of a .jsonl each."""

    def make(documents=None, **over):
        documents = [f'{number}: {_poem(number)}' for number in range(200)] if documents is None else documents
        (tmp_path / 'text.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in documents))
        over = {'source': 'text.jsonl', 'validation': 0.1, 'test': 0.1} | over
        return lmtrain.data.prepare(**settings(**over))

    return make


@pytest.fixture
def bpe():
    """bpe(directory, **files): a byte-level BPE with four special tokens, after writing NAME.json with each content."""

    def make(directory, **files):
        spec = json.loads(learn_bpe([*['the cat sat on the mat '] * 4, 'qq zz'], 270))  # as many as there are ids
        flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
        names = ('<s>', '</s>', '<|im_start|>', '<|im_end|>')
        spec['added_tokens'] = [{'id': 270 + i, 'content': name} | flags for i, name in enumerate(names)]
        directory.mkdir(exist_ok=True)
        (directory / 'tokenizer.json').write_text(json.dumps(spec))
        for name, content in files.items():
            (directory / f'{name}.json').write_text(json.dumps(content))
        return open_tokenizer(directory, False)

    return make
