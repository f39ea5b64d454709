"""The header and the plan of a run before its first step."""

import dataclasses

import jax
import pytest

from configs import tiny
from lmtrain.report import summary, terminal
from lmtrain.training.build import build


def run_of(text, **changes):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(text.parent / 'cache'), 0.2
    config.mesh.data = 1
    config.update_from_flattened_dict(changes)
    return build(config, devices=jax.devices()[:1])


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
    assert tokens < 8 * 32 and summary.planned(run)['tokens'] == 10 * tokens
    assert f'8 rows x {round(tokens / 8)} tokens (on average; at most 24) = {tokens} tokens per step' in header
    assert f'10 steps, {terminal.number(10 * tokens)} tokens ({10 / run.steps_per_epoch:.2g} epochs)' in header


def test_header_warns_of_many_epochs_of_text(text):
    run = run_of(text)
    few, many = (dataclasses.replace(run) for _ in range(2))
    few.__dict__['total_steps'], many.__dict__['total_steps'] = (each * run.steps_per_epoch for each in (40, 41))
    assert 'by heart' not in summary.header(few)
    shown = ' '.join(summary.header(many).split())
    assert 'epochs 41 are planned; from about 40 on, a model learns nothing more' in shown
    assert f'budget.steps={40 * run.steps_per_epoch}' in shown
    assert 'by heart' not in summary.header(many, stand_in=True)
