"""Memory, time and money of a plan against values computed by hand."""

from types import SimpleNamespace

import jax
import pytest

from configs import tiny
from lmtrain import cost
from lmtrain.cost import hardware
from lmtrain.plan import compiled
from lmtrain.report import terminal

H100 = hardware.Target('h100:8', hardware.CHIPS['h100'], 8)


@pytest.fixture
def config():
    config = tiny.get_config()
    config.plan.price, config.plan.mfu = 2.5, 0.4
    return config


@pytest.mark.usefixtures('no_compilation_cache')
def test_memory_of_a_step_is_the_compilers_total(config):
    config.mesh.data = 1
    with compiled.planned(config, hardware.Target('cpu:1', None, 1)) as run:
        found = compiled.compiled(run)
        (program,) = run.train_steps().values()
    memory = program.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert memory.temp_size_in_bytes > 0
    assert found.total == memory.argument_size_in_bytes + memory.temp_size_in_bytes + new


@pytest.mark.parametrize(('remat', 'accumulate', 'passes'), [('none', 1, 2), ('none', 4, 8), ('full', 4, 12)])
def test_memory_traffic_of_a_step(config, remat, accumulate, passes):
    """Weights are read in every pass of every micro-batch, state is read and written once."""
    config.mesh.data, config.data.batch_size = 1, 8
    config.model.remat, config.optimizer.accumulate = remat, accumulate
    one = H100._replace(name='h100:1', chips=1)
    with compiled.planned(config, one) as run:
        memory, bound = run.memory, compiled.bound(run, one, {('all-reduce', 'data'): 9e6})
        weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(run.shapes.params))
    state = sum(memory[part] for part in ('parameters', 'gradients', 'moments'))
    moved = 2 * state + passes * weights + 2 * accumulate * memory['activations']
    assert bound.memory == pytest.approx(moved / 3350e9)
    assert bound.network == pytest.approx(9e6 / 450e9)


def test_money_is_for_all_chips(config):
    config.mesh.data, config.budget.steps = 8, 10**9
    with compiled.planned(config, H100) as run:
        page = compiled.outlook(run, H100, {})
        peak = 8 * cost.peak_flops('NVIDIA H100', 'float32')
        seconds = 10**9 * run.flops_per_step.total / peak / 0.4
    assert f'{2.5 * 8 * seconds / 3600:,.0f}' in page.splitlines()[-1].split()
    assert terminal.duration(seconds) in page


@pytest.mark.parametrize(('share', 'answer'), [(0.89, 'yes:'), (0.91, 'yes, but tight:'), (1.01, 'no:')])
def test_verdict_says_if_little_memory_is_left(share, answer):
    run = SimpleNamespace(memory={'total': 1e9})
    figures = compiled.Compiled(total=share * H100.chip.memory)
    assert compiled.verdict(run, H100, figures).startswith(f'{answer} ')
