"""stories260K as others have measured it: its greedy text, and its loss on the first 150 stories of a sample."""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.inference import sample
from lmtrain.models import load_pretrained

PUBLISHED = 1.4629  # nats a token of the first 150 stories, one by one, cut at 512 (published_results.md, by numpy)
ROWS = 15


def trial() -> dict | None:
    """The measurements; None where ../shared/data (or LMTRAIN_DATA) is missing."""
    beside = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
    root = pathlib.Path(os.environ.get('LMTRAIN_DATA', beside))
    folder = root / 'models' / 'stories260K'
    corpus = root / 'corpora' / 'tinystories' / 'tinystories_sample_2MiB.txt'
    if not (folder.is_dir() and corpus.is_file()):
        return None
    model, params = load_pretrained(folder / 'hf')
    model = dataclasses.replace(model, unroll=1)
    tokenizer = open_tokenizer(folder / 'hf' / 'tokenizer.json', mask=False)
    begin = tokenizer.begin_id

    greedy = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0}
    greedy |= {'end_ids': [tokenizer.end_id], 'vocab_size': tokenizer.vocab_size}
    ((ids, _),) = sample.generate(model, params, [[begin]], max_tokens=256, **greedy)
    published = (folder / 'reference_stories260K.md').read_text(encoding='utf-8').split('-t 0.0\n')[1].split('\n```')[0]

    @jax.jit
    def logprob(params, batch):
        return model.apply({'params': params}, batch)['logprob']

    texts = [text.strip() for text in corpus.read_text(encoding='utf-8').split('<|endoftext|>') if text.strip()][:150]
    rows = [np.array([begin, *tokenizer.encode(text)], np.int32)[: model.max_len] for text in texts]
    total, count = 0.0, 0
    for start in range(0, len(rows), ROWS):
        batch = {name: np.zeros((ROWS, model.max_len), np.int32) for name in ('tokens', 'targets', 'segment_ids')}
        for i, row in enumerate(rows[start : start + ROWS]):
            batch['tokens'][i, : len(row)], batch['segment_ids'][i, : len(row)] = row, 1
            batch['targets'][i, : len(row) - 1] = row[1:]
        values = np.asarray(logprob(params, batch))
        for i, row in enumerate(rows[start : start + ROWS]):
            total, count = total - float(values[i, : len(row) - 1].sum()), count + len(row) - 1
    return {
        'case': 'stories260K',
        'greedy_equals_published': tokenizer.decode(ids) == published,
        'greedy_tokens': len(ids),
        'nats_per_token': total / count,
        'tokens': count,
    }


def figures(measured: dict) -> list[dict]:
    """The rows of the table."""
    same, loss = measured['greedy_equals_published'], measured['nats_per_token']
    text = 'every character as published' if same else 'another text than published'
    return [
        {
            'what': f'stories260K: greedy, {measured["greedy_tokens"]} tokens',
            'figure': text,
            'target': 'the published text',
            'reached': same,
        },
        {
            'what': f'stories260K: nats a token, 150 stories, {measured["tokens"]:,} tokens',
            'figure': f'{loss:.4f}',
            'target': f'{PUBLISHED} published',
            'reached': abs(loss - PUBLISHED) < 1e-4,
        },
    ]
