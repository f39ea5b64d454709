"""The division of rows into batches: the fewest padded tokens for a large model, the fewest shapes for a small one."""

import itertools
import types

import jax
import numpy as np
import pytest

from lmtrain.inference import batches
from lmtrain.inference.batches import BATCH_COST, MAX_LOGITS, MAX_TOKENS, Grid, divide, is_coarse, pack


def cost(division):
    return sum(B * T + BATCH_COST for _, (B, T) in division)


@pytest.mark.parametrize('coarse', [False, True])
def test_no_other_division_of_the_sorted_rows_computes_fewer_tokens(coarse):
    grid, random = Grid(512, 6, coarse=coarse), np.random.default_rng(0)
    for _ in range(20):
        lengths = random.integers(5, 400, 7).tolist()
        division = divide(lengths, grid)
        assert sorted(itertools.chain(*(rows for rows, _ in division))) == list(range(7))
        for rows, (B, T) in division:
            assert len(rows) <= B and T >= max(lengths[row] for row in rows)
        order, least = sorted(map(grid.text, lengths)), np.inf
        for cuts in itertools.product([False, True], repeat=6):
            parts = [part.tolist() for part in np.split(np.array(order), [at + 1 for at in range(6) if cuts[at]])]
            rows = [grid.rows(len(part), max(part)) for part in parts]
            if all(rows):
                least = min(least, sum(B * max(part) + BATCH_COST for B, part in zip(rows, parts, strict=True)))
        assert cost(division) == least


@pytest.mark.parametrize('options', [{}, {'coarse': True}, {'vocabulary': 2**20}, {'alone': True}])
def test_every_prompt_is_in_one_row_that_holds_it(options):
    options = dict(options)
    random, alone = np.random.default_rng(0), options.pop('alone', False)
    grid = Grid(2048, 6, **options)
    for count in (1, 2, 7, 60):
        sizes = [(int(length), int(length) // 3 + 1) for length in random.integers(5, 700, count)]
        packed = pack(sizes, grid, alone)
        assert sorted(prompt for rows, _ in packed for row in rows for prompt in row) == list(range(count))
        for rows, (B, T, M) in packed:
            assert len(rows) <= B <= 6 and (not alone or max(map(len, rows)) == 1)
            for number, limit in ((0, T), (1, M)):
                assert max(sum(sizes[prompt][number] for prompt in row) for row in rows) <= limit
            assert B == 1 or (B * max(T, M) <= MAX_TOKENS and B * M * grid.vocabulary <= MAX_LOGITS)


def test_short_prompts_share_rows_with_little_padding():
    sizes = [(int(length), 4) for length in np.random.default_rng(0).integers(11, 130, 64)]
    together, alone = (sum(B * T for _, (B, T, _) in pack(sizes, Grid(2048, 32), each)) for each in (False, True))
    assert together < 1.15 * sum(length for length, _ in sizes) < alone
    assert [shape for _, shape in pack(sizes[:1], Grid(2048, 1))][0][1] < 2 * sizes[0][0]  # the latency of its length


def test_a_batch_has_few_enough_tokens_and_logits():
    assert [len(rows) for rows, _ in divide([4000] * 5, Grid(4096, 32))] == [2, 2, 1]
    assert [len(rows) for rows, _ in pack([(520, 500)] * 4, Grid(4096, 32, vocabulary=2**16))] == [2, 2]
    assert [len(rows) for rows, _ in pack([(9000, 2)] * 2, Grid(2**14, 32))] == [1, 1]  # a row alone is never refused


def test_a_small_model_has_few_shapes():
    """Calls with other numbers of rows and other lengths: what a comparison makes of its arms, sizes and seeds."""
    random = np.random.default_rng(1)
    calls = [random.normal(200, 60, random.integers(20, 257)).clip(20, 500).astype(int) for _ in range(20)]

    def shapes(grid):
        """(number of shapes, tokens with padding over those without) of texts, and of prompts in rows."""
        divided = [[shape for _, shape in divide(lengths.tolist(), grid)] for lengths in calls]
        packed = [[shape for _, shape in pack([(int(T), 12) for T in lengths], grid)] for lengths in calls]
        for calls_shapes in divided, packed:
            tokens = sum(B * T for call in calls_shapes for B, T, *_ in call)
            yield len({shape for call in calls_shapes for shape in call}), tokens / sum(map(sum, calls))

    (count, padding), (packed_count, packed_padding) = shapes(Grid(512, 32))
    (few, more), (packed_few, packed_more) = shapes(Grid(512, 32, coarse=True))
    assert count > 30 and few <= 6 and packed_few <= 6 < packed_count
    assert padding < 1.25 and more < 1.5 and packed_padding < 1.35 and packed_more < 1.6


def parameters(count):
    return {'kernel': jax.ShapeDtypeStruct((count,), np.float32)}


def test_shapes_are_few_where_a_batch_takes_less_time_than_its_program(monkeypatch):
    model = types.SimpleNamespace(dtype='float32')
    assert is_coarse(model, parameters(1_000_000), 32)
    assert not is_coarse(model, parameters(135_000_000), 32)
    assert not is_coarse(model, parameters(1_000_000), 1)  # the latency of a row is that of its own length
    monkeypatch.setattr(batches.hardware, 'peak_flops', lambda kind, dtype: 1e15)  # an accelerator
    assert is_coarse(model, parameters(135_000_000), 32)
    assert not is_coarse(model, parameters(70_000_000_000), 32)
