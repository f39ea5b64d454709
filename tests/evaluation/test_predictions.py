"""Predictions of a split, in the order of its examples, whatever the batches were."""

import json

import jax.numpy as jnp
import pytest

from configs.base import get_config
from lmtrain.data import PaddedStream
from lmtrain.evaluation import heads, predictions
from lmtrain.tasks import classify
from lmtrain.tasks.prepare import prepare_task


class Reader:
    """A model that reads the label from the text: the byte at the second place is 'a' or 'b'."""

    def apply(self, variables, batch):
        second = batch['tokens'][:, 1]
        return {'logits': jnp.stack([second == ord('a'), second == ord('b')], axis=1).astype(jnp.float32)}


@pytest.mark.parametrize('batch_size', [3, 8])
def test_each_example_is_predicted_once(tmp_path, batch_size):
    rows = [
        {'text': 'ab'[number % 2] * (1 + number % 7), 'label': 'ab'[number % 2 if number else 1]}
        for number in range(20)
    ]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    data = {'root': str(tmp_path), 'cache': str(tmp_path), 'tokenizer': 'bytes', 'seq_len': 16, 'vocab_size': 0}
    config = get_config().task.to_dict() | {
        'name': 'classify',
        'train': ('rows.jsonl',),
        'text': ('text',),
        'label': 'label',
    }
    task = prepare_task(data | {'validation': 0.0, 'test': 0.0}, **config)
    stream = PaddedStream(task, 'train', batch_size, 0, False)
    labels = predictions.predictions(Reader(), classify.predict, {}, stream)
    assert [task.labels[label] for label in labels] == [row['text'][0] for row in rows]
    results = heads.score_split(Reader(), {}, stream, head='logits', pool='first')
    assert 0.9 < results['macro_f1'] < 1  # the first row lies
    assert 0 < results['macro_f1_stderr'] < 0.2 and 'accuracy_stderr' not in results
