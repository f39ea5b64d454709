"""`lmtrain train --dry_run`: all that a run would be, and no run. Without it, what is set up before the run."""

import atexit
import pathlib
import signal
import sys

import pytest

from launch import cli, process_setup
from lmtrain.plan import dry_run
from lmtrain.runtime import lifecycle
from lmtrain.training import train


@pytest.fixture
def dry(tmp_path, monkeypatch):
    """A function from flags to (exit code, whether a folder of a run was made)."""
    monkeypatch.setattr(process_setup, 'configure', lambda: None)  # the test has its own devices, no compilation cache
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text').mkdir()
    for number in range(30):
        (tmp_path / 'text' / f'{number}.txt').write_text(f'{number} the cat sat on the mat and saw ' * 8)

    def run(*words):
        data = ['--config.data.source=text', '--config.data.cache=cache', '--config.data.validation=0.2']
        code = cli.main(['train', '--config=tiny', '--dry_run', '--workdir=run', *data, *words])
        return code, (tmp_path / 'run').exists()

    return run


def test_page_of_a_dry_run_has_every_part(dry, capsys):
    assert dry('--config.trainable=.*kernel', '--config.mesh.fsdp=2') == (0, False)
    page = capsys.readouterr().out
    order = [
        'tiny  The smallest run',
        '\n  parameters ',
        '\n  plan ',
        '\n  memory ',
        '\n  exportable yes, as llama',
        'the compiled step',
        'first batch',
        'the cat sat',
        '\nlayers/',
        'what this command line changes in the recipe',
        '\n  mesh.fsdp = 2 (recipe 1)\n',
        "\n  trainable = '.*kernel' (recipe '')\n",
        'show --config=tiny` prints every value',
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    rows = {line.split()[0]: line for line in page.splitlines() if line.startswith(('layers/', 'embed/'))}
    assert rows['layers/mlp/up/kernel'].split()[-2:] == ['yes', '8,192']
    assert 'float32' in rows['layers/mlp/up/kernel'] and 'fsdp' in rows['layers/mlp/up/kernel']
    assert rows['embed/embedding'].split()[-2] == 'no'
    assert '20 steps' in page and 'by arithmetic' in page
    assert max(map(len, page.splitlines())) <= 80 and 'learning_rate' not in page  # which is as in the recipe


@pytest.mark.parametrize(('evaluated', 'meet'), [(4, True), (6, True), (7, False), (20, False)])
def test_checkpoints_without_evaluation_are_noted(dry, capsys, monkeypatch, evaluated, meet):
    monkeypatch.setattr(dry_run, 'compiled_figures', lambda run: '')
    assert dry('--config.checkpoint.every_steps=4', f'--config.evaluate.every_steps={evaluated}')[0] == 0
    said = 'best       is the last one' in capsys.readouterr().out
    assert said is not meet


def test_the_folder_of_a_run_is_not_asked_for_settings_that_its_objective_does_not_read(
    dry, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(dry_run, 'compiled_figures', lambda run: '')
    assert dry('--config.objective.aggregation=grpo')[0] == 2
    assert 'objective.aggregation' in ''.join(capsys.readouterr())
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}', encoding='utf-8')
    assert dry('--config.objective.aggregation=grpo')[0] == 0


def test_masked_tokens_are_shown_with_their_targets(dry, capsys):
    encoder = ['--config.model.causal=false', '--config.data.mask_rate=0.2', '--config.data.vocab_size=258']
    assert dry(*encoder) == (0, False)
    page = capsys.readouterr().out
    assert '<|mask|>>' in page.partition('first batch')[2]


def test_the_first_batch_of_a_task_is_shown_with_its_labels(dry, tmp_path, capsys):
    (tmp_path / 'rows.csv').write_text('text,label\n' + ''.join(f'{n} the cat,{"ab"[n % 2]}\n' for n in range(40)))
    task = {'name': 'classify', 'train': "('rows.csv',)", 'text': "('text',)", 'label': 'label'}
    words = [f'--config.task.{key}={value}' for key, value in task.items()]
    data = ['--config.data.tokenizer=bytes', '--config.data.cache=cache', '--config.data.validation=0.2']
    assert cli.main(['show', '--config=tiny', '--batch', '--config.objective.pool=last', *words, *data]) == 0
    page = capsys.readouterr().out
    assert 'the first batch' in page and '=> a' in page and '=> b' in page and ' the cat<|endoftext|>~' in page


def test_missing_data_is_replaced_by_a_placeholder(dry, capsys):
    """The recipe of GPT-2 names a text and a tokenizer that must be downloaded first."""
    assert dry('--config.data.source=fineweb/*.parquet', '--config.data.tokenizer=gpt2/tokenizer.json') == (0, False)
    page = ' '.join(capsys.readouterr().out.split())
    assert 'Placeholder data of the same shape replaces the data: fineweb/*.parquet' in page
    assert ' epochs), ' not in page and 'is held out' not in page and 'tokens, 1 document' not in page
    assert 'a text of no matter' in page and '256 tokens per step' in page
    assert dry('--config.task.name=chat', "--config.task.train=('gone.jsonl',)") == (2, False)
    assert 'gone.jsonl' in ''.join(capsys.readouterr())


@pytest.mark.parametrize(('words', 'folder'), [([], 'runs/tiny'), (['--workdir=a/b'], 'a/b')])
def test_folder_and_handlers_of_a_run(monkeypatch, words, folder):
    """Its folder has the recipe's name; exceptions and SIGTERM end it with survive's exit codes from the beginning."""
    seen = []
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.setattr(atexit, 'register', lambda *call: None)
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    before = signal.getsignal(signal.SIGTERM)
    now = lambda: (sys.excepthook, signal.getsignal(signal.SIGTERM))  # noqa: E731
    monkeypatch.setattr(
        train, 'train', lambda config, workdir, extend: seen.append((config.model.width, workdir, *now()))
    )
    try:
        assert cli.main(['train', '--config=tiny', '--config.model.width=48', *words]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [(48, pathlib.Path(folder), lifecycle.exit_on_exception, lifecycle.exit_requeue)]
