"""The header and the plan of a run before its first step."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs import tiny
from lmtrain.cost.flops import Flops
from lmtrain.report import summary, terminal
from lmtrain.training.build import build


def run_of(text, devices=1, **changes):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(text.parent / 'cache'), 0.2
    config.mesh.data = 1
    config.update_from_flattened_dict(changes)
    return build(config, devices=jax.devices()[:devices])


def header_of(run, **figures):
    """The header of `run` with some of its figures replaced, in one line."""
    run = dataclasses.replace(run)
    run.__dict__.update({'total_steps': 5000, 'steps_per_epoch': 2500} | figures)
    text = summary.header(run)
    assert max(map(len, text.splitlines())) <= 80
    return ' '.join(text.split())


def parameters(count):
    return {'kernel': jax.ShapeDtypeStruct((count,), jnp.float32)}


def test_header_states_figures(text):
    changes = {'data.batch_size': 32, 'data.seq_len': 256, 'optimizer.accumulate': 4, 'mesh.fsdp': 8}
    shapes = SimpleNamespace(trainable=parameters(590_000), params=parameters(27_300_000))
    memory = {'parameters': 1e8, 'activations': 2e9, 'total': 2.1e9}
    figures = {'shapes': shapes, 'memory': memory, 'flops_per_step': Flops(4e11, 6e11, 0.0)}
    header = header_of(run_of(text, 8, **changes), **figures)
    assert '27.3M, 590k trainable (2.2%)' in header and '8 x cpu, float32' in header
    assert '32 rows x 256 tokens = 8,192 tokens per step, over 4 micro-batches x 8 devices: 1 row each' in header
    assert '5,000 steps, 41.0M tokens (2 epochs), 5.00 PFLOP' in header
    assert 'about 2.10 GB per device: parameters 100 MB, activations 2.00 GB' in header


def test_header_counts_positions_of_padded_rows(text):
    run = run_of(text, **{'data.seq_len': 64})
    header = header_of(run, tokens_per_step=8 * 40)
    assert '8 rows x 40 tokens (on average; at most 64) = 320 tokens per step, padding included' in header
    assert '5,000 steps, 1.60M tokens (2 epochs)' in header and 'over' not in header and 'all trainable' in header


def test_header_counts_devices_that_share_rows(text):
    run = run_of(text, 4, **{'optimizer.accumulate': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
    header = header_of(run)
    assert 'over 2 micro-batches x 2 devices: 2 rows each' in header and '4 x cpu' in header


def test_header_with_a_budget_that_no_steps_decide(text):
    every = {f'{part}.every_steps': 5 for part in ('evaluate', 'checkpoint')} | {'budget.steps': None}
    figures = {'total_steps': None, 'flops_per_step': Flops(4e11, 6e11, 0.0)}
    hours = header_of(run_of(text, **every, **{'budget.hours': 0.5}), **figures)
    assert '0.5 hours of wall clock (30m 00s); 1.00 TFLOP per step; an epoch is 2,500 steps' in hours
    flops = header_of(run_of(text, **every, **{'budget.flops': 2e15}), **figures)
    assert '2.00 PFLOP, of which a step takes at most 1.00 TFLOP' in flops


@pytest.mark.parametrize(('saved', 'evaluated', 'noted'), [(4, 5, True), (5, 5, False), (4, 6, False), (30, 7, False)])
def test_header_says_if_no_checkpoint_can_be_ranked(text, saved, evaluated, noted):
    run = run_of(text, **{'checkpoint.every_steps': saved, 'evaluate.every_steps': evaluated})
    header = ' '.join(summary.header(run).split())
    message = f'checkpoint.every_steps = {saved} and evaluate.every_steps = {evaluated} never meet'
    assert (message in header) == noted


def test_header_of_a_stand_in_text_has_no_sizes(text):
    run = run_of(text)
    assert 'held out' in summary.header(run) and 'epochs' in summary.header(run)
    assert 'held out' not in summary.header(run, stand_in=True) and 'epochs' not in summary.header(run, stand_in=True)


def test_planned_figures_are_those_of_the_budget(text):
    run = run_of(text, **{'budget.steps': 30})
    figures = summary.planned(run)
    epochs = 30 / run.stream('train', shuffle=True).steps_per_epoch
    assert figures == {  # no peak of a CPU
        'peak_memory': run.memory['total'],
        'steps': 30,
        'tokens': 30 * 8 * 32,
        'epochs': epochs,
    }
    assert f'({epochs:.2g} epochs)' in summary.header(run)
    hours = run_of(
        text,
        **{'budget.steps': None, 'budget.hours': 1.0}
        | {f'{part}.every_steps': 5 for part in ('evaluate', 'checkpoint')},
    )
    assert summary.planned(hours).keys() == {'peak_memory'}
    steps = hours.stream('train', shuffle=True).steps_per_epoch
    assert f'an epoch is {steps} steps' in ' '.join(summary.header(hours).split())


def test_header_and_plan_count_the_same_tokens_of_padded_rows(text, tmp_path):
    rows = ''.join(f'{"x" * (1 + 5 * (i % 4))} {i},{"ab"[i % 2]}\n' for i in range(40))
    (tmp_path / 'rows.csv').write_text(f'text,label\n{rows}')
    changes = {'task.name': 'classify', 'task.train': (str(tmp_path / 'rows.csv'),), 'task.text': ('text',)}
    run = run_of(text, **changes, **{'task.label': 'label', 'data.tokenizer': 'bytes', 'budget.steps': 10})
    tokens, header = run.tokens_per_step, ' '.join(summary.header(run).split())
    splits = run.corpus.rows
    assert f'rows train {len(splits["train"])}, validation {len(splits["validation"])}, test ' in header
    assert f'rows validation has {len(splits["validation"])} rows: its scores are coarse (one row weighs' in header
    assert tokens < 8 * 32 and summary.planned(run)['tokens'] == 10 * tokens
    assert f'8 rows x {round(tokens / 8)} tokens (on average; at most 24) = {tokens} tokens per step' in header
    assert f'10 steps, {terminal.number(10 * tokens)} tokens ({10 / run.steps_per_epoch:.2g} epochs)' in header


def test_header_warns_of_many_epochs_of_text(text):
    run = run_of(text)
    few, many = (dataclasses.replace(run) for _ in range(2))
    few.__dict__['total_steps'], many.__dict__['total_steps'] = (each * run.steps_per_epoch for each in (40, 41))
    assert 'memorises' not in summary.header(few)
    shown = ' '.join(summary.header(many).split())
    assert 'epochs 41 are planned; from about 40 on, a model only memorises its text' in shown
    assert f'budget.steps={40 * run.steps_per_epoch}' in shown
    assert 'memorises' not in summary.header(many, stand_in=True)
