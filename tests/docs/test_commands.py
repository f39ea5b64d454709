"""Every command in README.md and docs runs as printed, at a tiny size, on a machine without data or accelerator."""

import importlib.util
import io
import pathlib
import re
import shlex
import sys

import pytest

from launch import recipe

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ['README.md', *(str(file.relative_to(ROOT)) for file in sorted((ROOT / 'docs').rglob('*.md')))]
# Commands that are not run here, by a regex of their beginning, and the reason.
SKIPPED = {
    'bash launch/run.sh': 'installs packages; tests/launch/test_run_sh.py',
    'bash launch/test.sh': 'runs these tests',
    'python -m launch.lm_eval': 'needs the extra lm-eval; tests/launch/test_lm_eval.py',
    'hf download': 'needs a network',
    'pip install': 'needs a network',
    'lmtrain train --config=configs/grpo.py': 'needs rows of the length of its base; tests/training/test_rollouts.py',
    'lmtrain train --config=configs/ppo.py': 'needs rows of the length of its base; tests/training/test_rollouts.py',
    'lmtrain train --config=configs/quickstart.py --config.log.trackers': 'needs extras; tests/report/test_trackers.py',
    'lmtrain pipeline': 'takes minutes; tests/training/test_pipeline.py',
    'lmtrain compare --workdir=runs/which$': 'pretrains a base; tests/compare/test_default.py',
    'lmtrain compare --workdir=runs/mine --report': 'needs a comparison; tests/launch/test_compare.py',
}
if not importlib.util.find_spec('libtpu'):
    SKIPPED['lmtrain plan --config=configs/pretrain_llama.py:8B --target=v5e'] = 'needs the extra plan'
LAUNCHERS = ('local', 'slurm', 'tpu', 'gke')


def executed(words: list[str], small) -> list[str]:
    """The words of a command as it is run here: models are tiny, launchers print what they would start."""
    if words[0] == 'train':
        return small(words)
    if words[0] == 'compare':  # tests/compare runs comparisons
        only = ["--config.compare.only=('few_shot', 'head')", '--config.compare.sizes=(16,)']
        return [*(word for word in words if word != '--dry_run'), *only, '--dry_run']
    if words[0] == 'plan':
        sizes = {'num_layers': 1, 'width': 256, 'mlp_dim': 512, 'vocab_size': 1024}
        return [*words, *(f'--config.model.{name}={size}' for name, size in sizes.items())]
    return [words[0], '--print_only', *words[1:]] if words[0] in LAUNCHERS else words


@pytest.mark.usefixtures('no_compilation_cache')  # `plan` reads what the compiler writes
@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_commands_run_as_printed(page, pages, machine, monkeypatch):
    for command in pages[page]:
        if any(re.match(beginning, command) for beginning in SKIPPED):
            continue
        monkeypatch.setattr(sys, 'stdin', io.StringIO('What did the cat read?\n'))
        words = executed(shlex.split(command)[1:], machine.small)
        code, out, err = machine.run(words)
        assert code == 0, f'{command}\n{out}\n{err}'
        lines = (out + err).replace(str(machine.folder), 'here').replace(str(machine.folder.parent), 'up').splitlines()
        wide = [line for line in lines if len(line) > 80]
        assert not wide or words[0] in LAUNCHERS, f'{command}\n' + '\n'.join(wide)


def test_every_skipped_command_is_printed_somewhere(pages):
    every = [command for own in pages.values() for command in own]
    for beginning in SKIPPED:
        if beginning.split()[0] not in ('hf', 'pip'):
            assert any(re.match(beginning, command) for command in every), beginning
    assert len(every) > 15


def test_no_two_runs_share_a_folder(pages):
    """A command that trains in a folder that another page uses for another run would be refused."""
    runs = {}
    for command in [command for own in pages.values() for command in own]:
        words = [word.partition('=') for word in shlex.split(command)]
        options = {name: value for name, _, value in words}
        if 'train' not in options and 'compare' not in options or '--workdir' not in options or '--report' in options:
            continue
        own = [
            options.get(f'--config{name}')
            for name in ('', '.data.source', '.task.train', '.init.base', '.schedule.name')
        ]
        assert runs.setdefault(options['--workdir'], own) == own, command
    assert len(runs) > 10


NEEDS_A_BASE = 'classify compare compare_base compare_docstrings continual dpo grpo instruct ppo span tag'.split()


@pytest.mark.slow
@pytest.mark.parametrize('name', [path.stem for path in recipe.files() if path.stem not in NEEDS_A_BASE])
def test_dry_run_needs_no_data(name, machine):
    tiny = ['--config.budget.steps=2', '--config.model.num_layers=1', '--config.data.batch_size=16']
    tiny += ['--config.optimizer.accumulate=1', '--config.data.seq_len=32']
    code, out, err = machine.run(['train', f'--config=configs/{name}.py', '--dry_run', *tiny])
    assert code == 0, out + err
    assert not [line for line in (out + err).splitlines() if len(line) > 80]
