"""A candidate of the search has the arithmetic of the run that it describes."""

import contextlib
from types import SimpleNamespace

import pytest

from configs import tiny
from lmtrain.cost import hardware
from lmtrain.plan import compiled, search
from lmtrain.training.build import build

H100 = hardware.Target('h100:8', hardware.CHIPS['h100'], 8)
CASES = {
    'text': {},
    'masked': {'data.mask_rate': 0.15, 'model.causal': False},
    'a sweep of adapters': {'adapt.method': 'lora', 'sweep.seeds': (1, 2, 3)},
    'muon on a mesh': {'optimizer.name': 'muon', 'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.sequence': 2},
}


@pytest.mark.slow
@pytest.mark.parametrize('more', CASES.values(), ids=CASES)
def test_candidate_has_the_arithmetic_of_its_run(text, more):
    config = tiny.get_config()
    wanted = {'data.source': str(text), 'data.cache': str(text.parent / 'cache'), 'data.validation': 0.2}
    config.update_from_flattened_dict(wanted | {'model.vocab_size': 258} | more)
    run = build(config)
    same = search._changed(run, config.model.remat, config.optimizer.accumulate)
    assert same.flops_per_step == run.flops_per_step
    assert same.memory == run.memory
    other = search._changed(run, 'full', 1)
    again = config.copy_and_resolve_references()
    again.model.remat, again.optimizer.accumulate = 'full', 1
    assert other.flops_per_step == build(again).flops_per_step
    assert other.memory == build(again).memory


def test_the_fastest_comes_first_and_the_batch_is_kept():
    config = tiny.get_config()
    config.data.batch_size = 64
    ranked = search.candidates(config, H100)
    speeds = [one.speed for one in ranked]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[-1]
    assert {one.accumulate for one in ranked} == {1, 2, 4, 8, 16}  # two heads: at least 4 devices share the rows
    for one in ranked:
        rows = 64 // (one.mesh[0] * one.mesh[1] * one.accumulate)
        assert rows >= 1 and one.of(config).data.batch_size == 64 == rows * one.mesh[0] * one.mesh[1] * one.accumulate


def candidate(speed, number):
    """A candidate of this speed, told apart from others by its number of micro-batches."""
    return search.Candidate((8, 1, 1), 'none', number, speed, 0, compiled.Bound(1.0, 0.0, 0.0))


def in_order(*plans):
    """The shares of memory of plans (speed, share) in the order in which they are shown."""
    fitting = {candidate(speed, i): (share * H100.chip.memory, 1.0) for i, (speed, share) in enumerate(plans)}
    shown = search.roomy_first(fitting, H100)
    return [round(memory / H100.chip.memory, 2) for memory, _ in shown.values()]


def test_tight_plan_is_first_only_if_it_is_clearly_faster():
    assert in_order((100, 0.95), (100, 0.67), (96, 0.5)) == [0.67, 0.5, 0.95]
    assert in_order((100, 0.95), (90, 0.67), (80, 0.5)) == [0.95, 0.67, 0.5]
    assert in_order((100, 0.89), (100, 0.6)) == [0.89, 0.6]
    assert in_order((100, 0.95), (99, 0.93), (98, 0.92), (97, 0.5)) == [0.5, 0.95, 0.93]
    assert in_order() == []


def test_search_goes_on_while_all_plans_are_tight(monkeypatch):
    """The fifth is the first with room; the sixth is not compiled."""
    shares = (0.95, 0.94, 0.93, 0.92, 0.7, 0.6)
    run = SimpleNamespace(total_steps=10, tokens_per_step=100)
    monkeypatch.setattr(compiled, 'planned', lambda config, target: contextlib.nullcontext(run))
    monkeypatch.setattr(compiled, 'compiled', lambda run: None)
    sizes = iter(shares)
    monkeypatch.setattr(compiled, 'needed', lambda *_: next(sizes) * H100.chip.memory)
    ranked = [candidate(100 - number, number) for number in range(6)]
    fitting, tried = search.compile_best(tiny.get_config(), H100, ranked)
    assert tried == 5 and len(fitting) == 5
    lines = search._table(tiny.get_config(), H100, search.roomy_first(fitting, H100))
    assert ['70%' in lines[1], '95%!' in lines[2], '94%!' in lines[3]] == [True] * 3 and len(lines) == 4
    sizes = iter(shares)
    ranked = [candidate(100 - 3 * number, number) for number in range(6)]  # from the third on, slower than 95 %
    assert search.compile_best(tiny.get_config(), H100, ranked)[1] == 3
