import collections
import contextlib
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from configs.base import get_config
from lmtrain.data import COLUMNS, Prefetch, Stream, batch_hash, check_ids, hash_rng, prepare

once = examples(max_examples=40)


@pytest.fixture(scope='module')
def corpora(tmp_path_factory, poem):
    """One corpus of each kind: causal, masked, mixed."""
    place = tmp_path_factory.mktemp('corpora')
    for name, count, written in (('a', 120, str.lower), ('b', 50, str.upper)):
        texts = [written(f'{number} {poem(number)}') for number in range(count)]
        (place / f'{name}.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    data = get_config().data.to_dict() | {'source': str(place / 'a.jsonl'), 'cache': str(place / 'cache')}
    data |= {'tokenizer': 'bytes', 'seq_len': 32, 'validation': 0.1, 'test': 0.1}
    return {
        'causal': prepare(**data),
        'masked': prepare(**data | {'mask_rate': 0.2}),
        'mixed': prepare(**data | {'mix': ((str(place / 'b.jsonl'), 1.7),)}),
    }


kinds = st.sampled_from(['causal', 'masked', 'mixed'])


@once
@given(
    kind=kinds,
    steps=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    seed=st.integers(0, 5),
    size=st.integers(1, 9),
)
def test_batch_is_a_function_of_step(corpora, kind, steps, seed, size):
    used = Stream(corpora[kind], 'train', size, seed, shuffle=True)
    for step in steps:
        fresh = Stream(corpora[kind], 'train', size, seed, shuffle=True)
        assert batch_hash(used.batch(step)) == batch_hash(fresh.batch(step))


@once
@given(kind=kinds, step=st.integers(0, 100), processes=st.sampled_from([1, 2, 3, 4, 6, 12]), shuffle=st.booleans())
def test_processes_read_disjoint_rows(corpora, kind, step, processes, shuffle):
    whole = Stream(corpora[kind], 'train', 12, 1, shuffle)
    step = step if shuffle else step % whole.steps_per_epoch
    blocks = np.arange(12).reshape(processes, -1)
    parts = [Stream(corpora[kind], 'train', 12, 1, shuffle, rows).batch(step) for rows in blocks]
    for name, values in whole.batch(step).items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    assert np.concatenate([part['row'] for part in parts]).tolist() == list(range(12))


@pytest.mark.parametrize('kind', ['causal', 'masked', 'mixed'])
def test_columns_match_table(corpora, kind):
    batch = Stream(corpora[kind], 'train', 4, 0, True).batch(0)
    assert set(batch) == set(COLUMNS[: 7 if kind == 'masked' else 6])
    for name, values in batch.items():
        assert values.dtype == (np.float32 if name == 'loss_mask' else np.int32), name
        width = () if name == 'row' else (32,)
        if kind == 'masked' and name in ('select', 'targets', 'loss_mask'):
            width = (6,)
        assert values.shape == (4, *width), name


def rows_of(stream, steps):
    return [row.tobytes() for step in steps for row in stream.batch(step)['tokens']]


def test_epoch_has_every_row_once_in_new_order(corpora):
    corpus = corpora['causal']
    count = corpus.splits['train'].num_rows
    stream = Stream(corpus, 'train', 1, 0, shuffle=True)
    assert stream.steps_per_epoch == count
    in_order = rows_of(Stream(corpus, 'train', 1, 0, shuffle=False), range(count))
    epochs = [rows_of(stream, range(epoch * count, (epoch + 1) * count)) for epoch in range(3)]
    assert all(sorted(epoch) == sorted(in_order) for epoch in epochs)
    assert in_order != epochs[0] != epochs[1] != epochs[2]
    assert rows_of(Stream(corpus, 'train', 1, 1, shuffle=True), range(count)) != epochs[0]
    wide = rows_of(Stream(corpus, 'train', 7, 0, shuffle=True), range(3 * count // 7))
    assert wide == sum(epochs, [])[: len(wide)]  # batches cross the ends of epochs


def test_unisolated_text_is_shifted_in_every_epoch(prepare):
    corpus = prepare(isolate=False)
    count, total = corpus.splits['train'].num_rows, corpus.splits['train'].num_tokens
    stream = Stream(corpus, 'train', 1, 0, shuffle=True)
    cuts = []
    for epoch in range(4):
        batches = [stream.batch(step) for step in range(epoch * count, (epoch + 1) * count)]
        sizes = [int(batch['loss_mask'].sum()) for batch in batches]
        assert total - 32 < sum(sizes) <= total and min(sizes) > 0
        assert sorted(sizes)[2:] == [32] * (count - 2)  # all but the first and the last of the text
        cuts.append({batch['targets'].tobytes() for batch in batches})
    assert not cuts[0] & cuts[1] and not cuts[1] & cuts[2] and not cuts[2] & cuts[3]
    across = Stream(corpus, 'train', 7, 0, shuffle=True)  # two passes in one batch
    step = count // 7
    np.testing.assert_array_equal(
        across.batch(step)['tokens'], np.concatenate([stream.batch(7 * step + row)['tokens'] for row in range(7)])
    )
    evaluated = Stream(corpus, 'train', count, 0, shuffle=False).batch(0)
    assert evaluated['loss_mask'].sum() == total and (evaluated['loss_mask'][:-1] == 1).all()


def test_mixture_weights_hold_over_steps(corpora):
    corpus = corpora['mixed']
    sizes = [len(part.rows.first) - 1 for part in corpus.splits['train'].parts]
    stream = Stream(corpus, 'train', 1, 0, shuffle=True)
    first = {row.tobytes() for row in Stream(corpora['causal'], 'train', sizes[0], 0, shuffle=False).batch(0)['tokens']}
    epoch = rows_of(stream, range(stream.steps_per_epoch))
    from_first = [row in first for row in epoch]
    assert sum(from_first) == sizes[0] and len(epoch) - sum(from_first) == round(1.7 * sizes[0])
    assert 0 < sum(from_first[: len(epoch) // 2]) < sizes[0]  # not one source after the other
    others = [row for row in epoch if row not in first]
    counts = np.unique([others.count(row) for row in set(others)])
    assert counts.max() - counts.min() <= 1  # every row equally often


def test_evaluation_reads_every_row_once(corpora):
    for kind, corpus in corpora.items():
        split = corpus.splits['validation']
        stream = Stream(corpus, 'validation', split.num_rows - 1, seed=0, shuffle=False)
        assert stream.steps_per_epoch == 2
        last = stream.batch(1)
        assert last['tokens'].shape[0] == split.num_rows - 1
        assert not last['loss_mask'][1:].any() and not last['segment_ids'][1:].any()
        if kind != 'masked':
            assert stream.batch(0)['loss_mask'].sum() + last['loss_mask'].sum() == split.num_tokens
        for step in (-1, 2):
            with pytest.raises(IndexError, match='of 2'):
                stream.batch(step)


def test_limit_samples_rows_independent_of_seed(corpora):
    for kind in ('causal', 'masked'):
        corpus = corpora[kind]
        every = rows_of(Stream(corpus, 'train', 1, 0, shuffle=False), range(corpus.splits['train'].num_rows))
        sample = Stream(corpus, 'train', 4, seed=3, shuffle=False, limit=5)
        assert (sample.steps_per_epoch, sample.num_rows) == (5, 20)
        with pytest.raises(IndexError, match='step 5 of 5'):
            sample.batch(5)
        other = Stream(corpus, 'train', 4, seed=4, shuffle=False, limit=5)
        assert [batch_hash(sample.batch(n)) for n in range(5)] == [batch_hash(other.batch(n)) for n in range(5)]
        if kind == 'causal':
            taken = [every.index(row) for row in rows_of(sample, range(5))]
            assert len(set(taken)) == 20 and max(taken) > len(every) // 2 and taken != sorted(taken)
            wider = rows_of(Stream(corpus, 'train', 4, 0, shuffle=False, limit=6), range(6))
            assert wider[:20] == rows_of(sample, range(5))


def test_large_limit_reads_all_rows_in_order(corpora):
    whole = Stream(corpora['causal'], 'validation', 4, 0, shuffle=False)
    for limit in (0, whole.steps_per_epoch, whole.steps_per_epoch + 1):
        again = Stream(corpora['causal'], 'validation', 4, 0, shuffle=False, limit=limit)
        assert again.steps_per_epoch == whole.steps_per_epoch
        assert again.num_rows == whole.num_rows == corpora['causal'].splits['validation'].num_rows
        assert batch_hash(again.batch(0)) == batch_hash(whole.batch(0))


def test_mixture_sources_alone(corpora):
    mixed = corpora['mixed']
    assert mixed.shares('train') == pytest.approx([1 / 2.7, 1.7 / 2.7])
    first, second = mixed.single_source(0), mixed.single_source(1)
    whole = Stream(mixed, 'validation', 1, 0, shuffle=False)
    rows = [
        rows_of(Stream(each, 'validation', 1, 0, False), range(each.splits['validation'].num_rows))
        for each in (first, second)
    ]
    assert rows[0] + rows[1] == rows_of(whole, range(whole.steps_per_epoch))
    assert first.names != second.names and first.baselines() != second.baselines()
    for name in ('num_bytes', 'num_tokens', 'num_documents', 'num_rows'):
        parts = [getattr(each.splits['train'], name) for each in (first, second)]
        assert sum(parts) == getattr(mixed.splits['train'], name)


def reference_order(sizes, quotas, seed, epoch):
    """Rows of an epoch of a mixture, [(source, row)], by a loop: the rows of each source in turn."""
    rows = []
    for source, (size, quota) in enumerate(zip(sizes, quotas)):
        turn, endless = 0, []
        while len(endless) < (epoch + 1) * quota:
            endless += hash_rng.permutation(size, seed, 0, source, turn).tolist()
            turn += 1
        rows += [(source, row) for row in endless[epoch * quota : (epoch + 1) * quota]]
    return [rows[place] for place in hash_rng.permutation(len(rows), seed, 0, len(sizes), epoch).tolist()]


@pytest.mark.parametrize('weight', [0.3, 1.7])
def test_mixture_order_changes_every_epoch(corpora, weight):
    mixed = corpora['mixed']
    train = mixed.splits['train']
    parts = tuple(part._replace(weight=w) for part, w in zip(train.parts, (1.0, weight)))
    corpus = replace(mixed, splits=mixed.splits | {'train': replace(train, parts=parts)})
    stream = Stream(corpus, 'train', 1, 5, shuffle=True)
    of_source = []
    for index in (0, 1):
        alone = Stream(mixed.single_source(index), 'train', 1, 0, shuffle=False)
        of_source.append(rows_of(alone, range(alone.steps_per_epoch)))
    sizes = [len(rows) for rows in of_source]
    quotas = [sizes[0], round(weight * sizes[0])]
    assert quotas[1] % sizes[1]  # so that epochs end inside a pass over the second source
    count, second = stream.steps_per_epoch, collections.Counter()
    for epoch in range(3):
        expected = [of_source[source][row] for source, row in reference_order(sizes, quotas, 5, epoch)]
        assert rows_of(stream, range(epoch * count, (epoch + 1) * count)) == expected
        second.update(row for row in expected if row in set(of_source[1]))
    assert max(second.values()) - min(second[row] for row in of_source[1]) <= 1


def test_evaluation_with_an_empty_source(tmp_path, poem, settings):
    (tmp_path / 'a.txt').write_text(' '.join(map(poem, range(50))))
    (tmp_path / 'b.txt').write_text(poem(0) * 5 + '\n' * 900)  # its last tenth is blank
    over = {'source': 'a.txt', 'mix': (('b.txt', 1.0),), 'split': 'tail', 'validation': 0.1, 'test': 0.1}
    corpus = prepare(**settings(**over))
    split = corpus.splits['validation']
    assert len(split.parts[1].rows.first) == 1
    assert corpus.shares('validation') == [1.0, 0.0] and corpus.shares('train') == [0.5, 0.5]
    batch = Stream(corpus, 'validation', split.num_rows + 3, seed=0, shuffle=False).batch(0)
    assert batch['loss_mask'].sum() == split.num_tokens and not batch['loss_mask'][-3:].any()


def test_masks_change_in_training_only(corpora):
    corpus = corpora['masked']
    count = corpus.splits['train'].num_rows
    stream = Stream(corpus, 'train', count, 0, shuffle=True)
    first, second = stream.batch(0), stream.batch(1)
    masked_at = []
    for batch in (first, second):
        real = batch['loss_mask'] == 1
        whole = batch['tokens'].copy()
        for row in range(count):  # the text before masking
            whole[row, batch['select'][row][real[row]]] = batch['targets'][row][real[row]]
        places = [tuple(sorted(places[keep].tolist())) for places, keep in zip(batch['select'], real)]
        masked_at.append(dict(zip((row.tobytes() for row in whole), places)))
    assert masked_at[0].keys() == masked_at[1].keys()  # each row once per epoch
    assert sum(masked_at[0][row] == masked_at[1][row] for row in masked_at[0]) < count // 20
    fixed = [Stream(corpus, 'validation', 4, seed, shuffle=False).batch(0) for seed in (0, 7)]
    assert batch_hash(fixed[0]) == batch_hash(fixed[1])


@pytest.mark.parametrize(
    'over, message',
    [
        ({'rows': [0, 8]}, r'batch_size is 8; \[0, 8\] ... are not ascending rows of it'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'rows': [1, 1]}, r'\[1, 1\] ... are not ascending rows'),
        ({'seed': -1}, 'seed is -1'),
    ],
)
def test_invalid_streams_are_rejected(corpora, over, message):
    with pytest.raises(ValueError, match=message):
        Stream(corpora['causal'], 'train', **{'batch_size': 8, 'seed': 0, 'shuffle': True} | over)


@pytest.mark.parametrize('token', [-1, 258, 2**31 - 1])
def test_out_of_range_ids_are_rejected(token):
    with pytest.raises(ValueError, match=f'{token}.*the vocabulary from 0 to 257'):
        check_ids(np.array([[0, token, 257]]), 258)


def test_batch_hash_depends_on_every_column():
    batch = {'a': np.arange(4), 'b': np.zeros(2, np.int32)}
    others = [
        batch | {'a': np.arange(4)[::-1]}, batch | {'a': np.arange(4).reshape(2, 2)}, batch | {'c': np.arange(4)},
        batch | {'b': np.zeros(2, np.float32)}, {'a': batch['a']},
    ]  # fmt: skip
    assert len({batch_hash(each) for each in [batch, *others]}) == 6
    assert batch_hash(dict(reversed(batch.items()))) == batch_hash(batch)


# --- prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == 'prefetch']


def test_prefetch_yields_steps_in_order(corpora):
    stream = Stream(corpora['causal'], 'train', 4, 0, True)
    with contextlib.closing(Prefetch(stream, 5, lambda batch: batch_hash(batch))) as ahead:
        got = [next(ahead) for _ in range(20)]
        assert ahead.waited > 0
    assert got == [(step, batch_hash(stream.batch(step))) for step in range(5, 25)]
    assert not threads()
    assert list(ahead) == []


def test_prefetch_ends_with_stream(corpora):
    stream = Stream(corpora['causal'], 'validation', 2, 0, False)
    steps = [step for step, _ in Prefetch(stream, 0, lambda batch: batch)]
    assert steps == list(range(stream.steps_per_epoch))
    assert not threads()


def test_prefetch_raises_at_the_failing_step(corpora):
    stream = Stream(corpora['causal'], 'train', 4, 0, True)
    count = iter(range(99))

    def place(batch):
        if next(count) == 3:
            raise RuntimeError('no room on the device')
        return batch

    ahead = Prefetch(stream, 0, place)
    assert [next(ahead)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match='no room on the device'):
        next(ahead)
    assert not threads() and list(ahead) == []


def test_prefetch_depth_is_bounded(corpora):
    stream, placed = Stream(corpora['causal'], 'train', 4, 0, True), []
    with contextlib.closing(Prefetch(stream, 0, placed.append, depth=2)) as ahead:
        next(ahead)
        until = time.monotonic() + 100
        while len(placed) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)  # long enough to exceed the depth
        assert 2 <= len(placed) <= 4


def test_batches_are_faster_than_training(corpora):
    stream = Stream(corpora['causal'], 'train', 256, 0, True)
    stream.batch(0)
    begun = time.thread_time()  # CPU time of this thread
    for step in range(1, 21):
        stream.batch(step)
    assert 20 * 256 * 32 / (time.thread_time() - begun) > 1e6
