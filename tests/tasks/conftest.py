"""Rows, tokenizers and splits that the tests of several tasks share."""

import json
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from experiments.parity import cases, preference_cases
from lmtrain.data import PaddedStream
from lmtrain.data.example_store import Examples, collect, pack_examples
from lmtrain.data.examples import LengthPolicy
from lmtrain.data.preferences import EncodedCompletion
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.models import load_pretrained, safetensors
from lmtrain.tasks.pairs import example_of
from lmtrain.tasks.task import RowFormat
from lmtrain.training import state, step

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


@pytest.fixture
def stream_of():
    """A function from texts as ids, (prompt, completion), and values of each to the stream of their batches."""

    def make(task, texts, values, size=64, rows=4, pack=False):
        encoded = [
            example_of(n, EncodedCompletion(prompt, completion, [True] * len(completion)), each)
            for n, ((prompt, completion), each) in enumerate(zip(texts, values, strict=True))
        ]
        examples = collect(encoded)
        packed = pack_examples(examples, int(task.predicts_tokens), size, pack)
        tokenizer = SimpleNamespace(vocab_size=10**6)
        data = SimpleNamespace(
            task=task, examples={'train': examples}, packed={'train': packed}, lengths=(size,), tokenizer=tokenizer
        )
        return PaddedStream(data, 'train', rows, 0, False)

    return make


@pytest.fixture(scope='session')
def trl(tmp_path_factory):
    """(goldens, load): what TRL computes, and a function from 'causal' or 'reward' to (model, params)."""
    goldens = json.loads((pathlib.Path(__file__).parent / 'goldens_preferences.json').read_text(encoding='utf-8'))

    def load(name):
        folder = tmp_path_factory.mktemp(name)
        config = preference_cases.CONFIG if name == 'causal' else preference_cases.REWARD_CONFIG
        (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
        arrays = {key: cases.weights(key, tuple(shape)) for key, shape in goldens['shapes'][name].items()}
        safetensors.write(folder, {key: (x.shape, x.dtype) for key, x in arrays.items()}, arrays.__getitem__)
        return load_pretrained(folder)

    return goldens, load


@pytest.fixture
def losses_of():
    """A function from a loss, a model, its parameters and batches to the losses of six steps of Adam."""

    def run(loss, model, params, batches):
        tx = optax.scale_by_adam(preference_cases.B1, preference_cases.B2, preference_cases.EPS)
        now = state.create(jax.random.key(0), params, '.*', tx)
        gradient = step.make_gradient(model, loss)
        options = {'learning_rate': preference_cases.RATE, 'trainable': now.trainable}
        function = jax.jit(step.make_train_step(gradient, tx, lambda progress: 1.0, **options))
        losses = []
        for index in range(preference_cases.STEPS):
            now, measured = function(now, batches[index % len(batches)], 0.0)
            losses.append(measured['loss'].item())
        return losses

    return run
