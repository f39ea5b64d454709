import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.pack import best_fit, gather, pack, shift_rows

END = 999
documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)  # tokens of each


def token_file(sizes):
    """Tokens that are all different, so that a token identifies its place in the file."""
    tokens, begins, counter = [END], [0], 1000
    for size in sizes:
        tokens += [*range(counter, counter + size), END]
        begins.append(len(tokens) - 1)
        counter += size
    return np.array(tokens, np.uint32), np.array(begins)


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(2, 24), st.booleans())
def test_every_target_is_in_exactly_one_row(sizes, seq_len, isolate):
    tokens, begins = token_file(sizes)
    rows = pack(begins, seq_len, isolate)
    assert rows.first[0] == 0 and rows.first[-1] == len(rows.start)
    batch = gather(tokens, rows, np.arange(len(rows.first) - 1), seq_len)
    real = batch['loss_mask'] == 1
    np.testing.assert_array_equal(real, batch['segment_ids'] > 0)
    assert sorted(batch['targets'][real].tolist()) == sorted(tokens[1:].tolist())  # each target once
    place = {token: index for index, token in enumerate(tokens.tolist()) if token != END}
    document_of = np.searchsorted(begins, np.arange(len(tokens)), side='left')  # of each target
    for row in range(len(real)):
        segments = batch['segment_ids'][row]
        assert segments.max() == len(set(segments[segments > 0]))
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            assert (np.diff(at) == 1).all() and len(at) <= seq_len
            np.testing.assert_array_equal(batch['positions'][row, at], np.arange(len(at)))
            inputs, targets = batch['tokens'][row, at], batch['targets'][row, at]
            np.testing.assert_array_equal(inputs[1:], targets[:-1])  # in order
            where = [place[token] for token in targets.tolist() if token != END]
            assert not isolate or len({document_of[each] for each in where}) <= 1  # no piece crosses a document
    padding = batch['segment_ids'] == 0
    for name in ('tokens', 'targets', 'positions'):
        assert not batch[name][padding].any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=40, max_size=120))
def test_packing_short_documents_leaves_little_padding(sizes):
    tokens, begins = token_file(sizes)
    rows = pack(begins, 64, True)
    needed = -(-(len(tokens) - 1) // 64)
    assert len(rows.first) - 1 <= 1.25 * needed + 1


@given(st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_best_fit_takes_tightest_row(sizes):
    spaces = []  # of each row, by the definition of best fit decreasing
    for size in sorted(sizes, reverse=True):
        fitting = [space for space in spaces if space >= size]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else 16) - size)
    rows = best_fit(np.array(sizes), 16)
    assert sorted(16 - np.bincount(rows, weights=sizes)) == sorted(spaces)


def test_without_isolation_rows_are_consecutive():
    tokens, begins = token_file([5, 9, 3])
    rows = pack(begins, 8, False)
    batch = gather(tokens, rows, np.arange(3), 8)
    np.testing.assert_array_equal(batch['tokens'].ravel()[: len(tokens) - 1], tokens[:-1])
    np.testing.assert_array_equal(batch['targets'].ravel()[: len(tokens) - 1], tokens[1:])
    assert set(batch['segment_ids'][:2].ravel()) == {1}
    np.testing.assert_array_equal(batch['positions'][1], np.arange(8))


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 60), st.integers(2, 8), st.data())
def test_shifted_rows_lose_less_than_one_row(size, seq_len, data):
    tokens, begins = token_file([size])
    rows = pack(begins, seq_len, False)
    back = data.draw(st.integers(0, seq_len - 1))
    count = len(rows.start)
    moved = shift_rows(rows, np.arange(count), np.full(count, back), seq_len, len(tokens) - 1)
    batch = gather(tokens, moved, np.arange(count), seq_len)
    targets = batch['targets'][batch['loss_mask'] == 1]
    np.testing.assert_array_equal(targets, tokens[1 : 1 + len(targets)])  # each once, in order
    assert len(tokens) - 1 - len(targets) < seq_len
    assert moved.length[0] == seq_len - back and (moved.length[1:-1] == seq_len).all() and moved.length.min() > 0
    np.testing.assert_array_equal(batch['tokens'][batch['loss_mask'] == 1], tokens[: len(targets)])


def test_each_row_is_shifted_by_its_own_offset():
    tokens, begins = token_file([30])
    moved = shift_rows(pack(begins, 8, False), np.array([1, 0, 2]), np.array([3, 2, 0]), 8, len(tokens) - 1)
    assert moved.start.tolist() == [5, 0, 16] and moved.length.tolist() == [8, 6, 8]


def test_row_minus_one_is_padding():
    tokens, begins = token_file([5, 9, 3])
    batch = gather(tokens, pack(begins, 8, True), np.array([-1, 1, -1]), 8)
    assert not batch['loss_mask'][[0, 2]].any() and not batch['segment_ids'][[0, 2]].any()
    alone = gather(tokens, pack(begins, 8, True), np.array([1]), 8)
    for name, values in alone.items():
        np.testing.assert_array_equal(batch[name][1:2], values)


def test_best_fit_padding_is_below_one_percent():
    sizes = np.random.default_rng(0).integers(1, 400, 100_000)
    rows = pack(np.concatenate([[0], np.cumsum(sizes + 1)]), 256, True)
    filled = rows.length.sum() / ((len(rows.first) - 1) * 256)
    assert filled > 0.99


def test_documents_with_separate_begin_and_end_tokens():
    """BEGIN a b END BEGIN c END: END is not an input, and BEGIN is not a target."""
    tokens, begins = np.array([9, 1, 2, 8, 9, 3, 8]), np.array([0, 4, 7])
    batch = gather(tokens, pack(begins, 8, True, gap=1), np.array([0]), 8)
    assert batch['tokens'].tolist() == [[9, 1, 2, 9, 3, 0, 0, 0]]
    assert batch['targets'].tolist() == [[1, 2, 8, 3, 8, 0, 0, 0]]
    assert batch['segment_ids'].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    whole = gather(tokens, pack(begins, 8, False, gap=1), np.array([0]), 8)
    assert whole['tokens'].tolist() == [[9, 1, 2, 8, 9, 3, 0, 0]] and whole['loss_mask'].sum() == 6
