"""The division of rows into batches: the fewest padded tokens for a large model, the fewest shapes for a small one."""

import itertools
import types

import jax
import numpy as np
import pytest

from lmtrain.inference import batches
from lmtrain.inference.batches import BATCH_COST, Grid, divide, is_coarse


def cost(division):
    return sum(B * (T + M) + BATCH_COST for _, (B, T, M) in division)


@pytest.mark.parametrize('coarse', [False, True])
def test_no_other_division_of_the_sorted_rows_computes_fewer_tokens(coarse):
    grid, random = Grid(512, 6, coarse=coarse), np.random.default_rng(0)
    for _ in range(20):
        sizes = [tuple(each) for each in random.integers((5, 0), (400, 40), (7, 2)).tolist()]
        division = divide(sizes, grid)
        assert sorted(itertools.chain(*(rows for rows, _ in division))) == list(range(7))
        for rows, (B, T, M) in division:
            assert (
                len(rows) <= B and T >= max(sizes[row][0] for row in rows) and M >= max(sizes[row][1] for row in rows)
            )
        order, least = sorted((grid.text(text), grid.continuations(rest)) for text, rest in sizes), np.inf
        for cuts in itertools.product([False, True], repeat=6):
            parts = [part.tolist() for part in np.split(np.array(order), [at + 1 for at in range(6) if cuts[at]])]
            shapes = [grid.shape(len(part), *(max(column) for column in zip(*part))) for part in parts]
            if all(shapes):
                least = min(least, sum(B * (T + M) + BATCH_COST for B, T, M in shapes))
        assert cost(division) == least


def test_a_batch_has_few_enough_tokens_and_logits():
    assert [len(rows) for rows, _ in divide([(4000, 2)] * 5, Grid(4096, 32))] == [2, 2, 1]
    assert [len(rows) for rows, _ in divide([(20, 500)] * 4, Grid(4096, 32, vocabulary=2**16))] == [2, 2]
    assert [len(rows) for rows, _ in divide([(9000, 2)] * 2, Grid(2**14, 32))] == [1, 1]  # a row alone is never refused


def test_a_small_model_has_few_shapes():
    """Calls with other numbers of rows and other lengths: what a comparison makes of its arms, sizes and seeds."""
    random = np.random.default_rng(1)
    calls = [random.normal(200, 60, random.integers(20, 257)).clip(20, 500).astype(int) for _ in range(20)]

    def shapes(grid):
        divisions = [divide([(int(T), 12) for T in lengths], grid) for lengths in calls]
        tokens = sum(B * T for division in divisions for _, (B, T, _) in division)
        return len({shape for division in divisions for _, shape in division}), tokens / sum(map(sum, calls))

    count, padding = shapes(Grid(512, 32))
    few, more = shapes(Grid(512, 32, coarse=True))
    assert count > 30 and few <= 6
    assert padding < 1.25 and more < 1.5


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
