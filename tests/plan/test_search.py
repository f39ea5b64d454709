"""A candidate of the search has the arithmetic of the run that it describes."""

import pytest

from configs import tiny
from lmtrain.cost import hardware
from lmtrain.plan import search
from lmtrain.training.build import build

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
    ranked = search.candidates(config, hardware.Target('h100:8', hardware.CHIPS['h100'], 8))
    speeds = [one.speed for one in ranked]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] > speeds[-1]
    assert {one.accumulate for one in ranked} == {1, 2, 4, 8, 16}  # two heads: at least 4 devices share the rows
    for one in ranked:
        rows = 64 // (one.mesh[0] * one.mesh[1] * one.accumulate)
        assert rows >= 1 and one.of(config).data.batch_size == 64 == rows * one.mesh[0] * one.mesh[1] * one.accumulate
