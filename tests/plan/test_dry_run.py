"""The preview of the first batch."""

import types

import numpy as np

from lmtrain import data
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.plan import dry_run
from lmtrain.tasks import TASKS


def test_first_batch_is_that_of_the_training():
    def batch_of(text):
        tokens = np.array([[256, *text.encode()]], np.int32)
        targets = np.array([[*text.encode(), 256]], np.int32)
        positions, ones = np.arange(tokens.size, dtype=np.int32)[None], np.ones(tokens.shape, np.int32)
        columns = {'tokens': tokens, 'targets': targets, 'positions': positions, 'segment_ids': ones}
        return columns | {'loss_mask': ones.astype(np.float32)}

    batches = {True: batch_of('shuffled\x1b[2J'), False: batch_of('in order')}

    def stream(split, shuffle=False):
        assert split == 'train'
        return types.SimpleNamespace(batch=lambda step: batches[shuffle] if step == 0 else None)

    run = types.SimpleNamespace(stream=stream, corpus=types.SimpleNamespace(tokenizer=Bytes()), task=TASKS['text'])
    page = dry_run.decoded(run)
    assert 'shuffled\ufffd[2J' in page and data.batch_hash(batches[True]) in page and 'in order' not in page
