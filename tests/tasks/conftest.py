"""Rows, tokenizers and splits that the tests of several tasks share."""

from types import SimpleNamespace

import numpy as np
import pytest

from lmtrain.data.example_store import Examples
from lmtrain.data.examples import LengthPolicy
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.tasks.task import RowFormat

WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s sat on un ##der'.split()


@pytest.fixture
def bert(tmp_path):
    """A WordPiece tokenizer of WORDS."""
    (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS))
    return open_tokenizer(tmp_path / 'vocab.txt', False)


@pytest.fixture
def row():
    """A function from fields to a row."""
    return lambda **fields: Row('rows.jsonl:7', fields)


@pytest.fixture
def words_of():
    """A function from token ids to their names."""
    return lambda tokens: ' '.join(WORDS[token] for token in tokens)


@pytest.fixture
def form():
    """A function from what differs to a RowFormat."""

    def make(tokenizer, text, label, labels=(), seq_len=64, policy='error', training=True):
        return RowFormat(text, label, labels, tokenizer, None, LengthPolicy(policy, seq_len), training)

    return make


@pytest.fixture
def task_data():
    """A function from rows and columns to the part of a TaskData that scores read, with the split 'test'."""

    def make(rows, begins, source, flat=None, values=None, **fields):
        examples = Examples(None, np.array(begins), np.array(source), flat or {}, values or {})
        rows = {'test': [Row('', row) for row in rows]}
        return SimpleNamespace(rows=rows, examples={'test': examples}, **fields)

    return make


@pytest.fixture
def cat():
    """A batch of one row, the bytes of 'cat' between two end tokens, and three tokens of padding."""
    tokens = np.array([[256, *b'cat', 256, 0, 0, 0]])
    return {'tokens': tokens, 'segment_ids': np.array([[1] * 5 + [0] * 3])}
