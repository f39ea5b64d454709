"""The command line: quick help, user errors in one line, and flags that reach the verb."""

import os
import pathlib
import subprocess
import sys

import pytest

from launch import cli, evaluate, process_setup, train
from lmtrain.errors import InputError
from lmtrain.runtime import lifecycle

HEAVY = ('jax', 'numpy', 'flax', 'optax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'torch', 'matplotlib', 'rich')


def imported(*argv, watched):
    """Which of the watched modules a command line imports, in a process of its own."""
    code = (
        f'import sys\nfrom launch import cli\ncli.main({list(argv)!r})\n'
        f'print("|", *(name for name in {watched!r} if name in sys.modules))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return done.stdout.rpartition('|')[2].split()


def test_help_imports_no_library():
    assert imported('--help', watched=(*HEAVY, 'absl', 'ml_collections', 'configs')) == []


@pytest.mark.parametrize('argv', [('configs',), ('train', '--help'), ('show', '--help'), ('runs', '--help')])
def test_quick_verbs_do_not_import_jax(argv):
    assert imported(*argv, watched=HEAVY) == []


def test_recipe_that_imports_models_uses_the_compilation_cache():
    """jax reads its variables once, where it is first imported."""
    code = (
        'from launch import cli; cli.main(["train", "--config=pretrain_gpt2", "--process_id=0"]); '
        'import jax; print(jax.config.jax_compilation_cache_dir)'
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith('JAX')}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment)
    assert '--coordinator' in done.stderr and done.stdout.strip().startswith('/')


def test_help_names_every_verb(capsys):
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert all(f'\n  {verb} ' in said for verb in cli.VERBS)
    assert max(map(len, said.splitlines())) <= 80
    assert cli.main(['configs']) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert cli.main(['help']) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize('verb', cli.VERBS)
def test_help_of_a_verb_has_an_example_and_only_its_flags(verb, capsys):
    assert cli.main([verb, '--help']) == 0
    said = capsys.readouterr().out
    assert f'\n  lmtrain {verb}' in said
    assert '--override' not in said
    assert not any(line != line.rstrip() or len(line) > 80 for line in said.splitlines())
    broken = (
        'train',
        'plan',
        'cost',
        'compare',
        'evaluate',
        'predict',
        'runs',
        'pipeline',
        'generate',
        'local',
        'slurm',
        'tpu',
        'gke',
    )  # its examples are longer
    assert (' \\\n      --' in said) == (verb in broken)


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (['trian'], ["unknown verb 'trian'", "'train'"]),
        (['train', '--wrokdir=x'], ['unknown flag --wrokdir', '--workdir']),
        (['train', '--task.train=x.csv'], ['unknown flag --task.train', "did you mean '--config.task.train'?"]),
        (['train', '--batch_size=8'], ['unknown flag --batch_size', "did you mean '--config.data.batch_size'?"]),
        (['show', '--workdir=X'], ['unknown flag --workdir: `lmtrain show --help` lists the flags\n']),
        (['cache', '--clear'], ['unknown flag --clear: `lmtrain cache --help` lists the flags\n']),
        (['cache', '--prun'], ["unknown flag --prun, did you mean '--prune'?"]),
        (['train', '--learning-rat=1'], ["did you mean '--config.optimizer.learning_rate'?"]),
        (['train'], ['--config is missing', 'lmtrain configs']),
        (['train', 'quickstart'], ["'quickstart'", '--config=quickstart']),
        (['generate', '--workdir=x', '--ignore=a'], ['--ignore without --base', 'config']),
        (['show', '--config=quikstart'], ["'quikstart'", "did you mean 'quickstart'?"]),
        (['show', '--config=configs/nothing_like_it.py'], ['nothing_like_it', 'no Python file', 'lmtrain configs']),
        (['train', '--config=tiny', '--steps=60'], ['unknown flag --steps,', "'--config.budget.steps'?"]),
        (['train', '--config=tiny', '--batch-size=2'], ["'--config.data.batch_size'?"]),
        (['show', '--temperature=0'], ["'--config.policy.temperature' or '--config.sample.temperature'?"]),
        (['train', '--config=tiny', 'tests/launch'], ['--config.data.source=tests/launch?', 'quotes']),
        (['generate', '--workdir=x', '--prompt=My', 'lord'], ["'lord'", 'quotes', '--prompt="..."']),
        (['generate', '--workdir=x', '--prompt', 'My', 'lord'], ["'lord'", 'quotes', '--prompt="..."']),
        (['generate', 'runs/book'], ['--workdir=runs/book?']),
        (
            ['show', '--config=tiny', '--config.model.num_layer=3'],
            ['config.model.num_layer,', 'config.model.num_layers'],
        ),
        (['show', '--config=tiny', '--config.learning_rate=3'], ['config.optimizer.learning_rate']),
        (['show', '--config=tiny', '--config.model.num_layers'], ['--config.model.num_layers has no value']),
        (['show', '--config=tiny', '--config.model.num_layers=True'], ['model.num_layers', 'an integer', "'True'"]),
        (['show', '--config=tiny', '--config.optimizer.learning_rate=nan'], ['learning_rate', 'finite', "'nan'"]),
        (['show', '--config=tiny', '--config.model=3'], ['config.model is a section', 'model.num_layers']),
        (['train', '--config=tiny', '--config.model.tied=yes'], ['model.tied', 'true or false', "'yes'"]),
        (['evaluate', '--split=trian', '--workdir=x'], ['split', 'train']),
        (['evaluate'], ['--workdir is missing']),
    ],
)
def test_user_error_is_one_line(argv, parts, capsys):
    assert cli.main(argv) == 2
    out, said = capsys.readouterr()
    assert out == ''
    assert said.count('\n') == 1
    assert said.startswith('lmtrain')
    for part in parts:
        assert part in said


def test_user_error_has_no_control_characters(capsys):
    cli.report_error('lmtrain', 'a field \x1b[2J of a file')
    assert capsys.readouterr().err == 'lmtrain: a field \ufffd[2J of a file\n'


def test_user_error_fits_80_columns_of_a_terminal(capsys, monkeypatch):
    words = ['show', '--config=configs/a_recipe_that_nobody_has_written.py']
    assert cli.main(words) == 2
    line = capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    monkeypatch.setenv('NO_COLOR', '1')
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(line) > 80 >= max(map(len, lines)) and ' '.join(lines) == line.strip()


def test_debug_keeps_the_traceback():
    with pytest.raises(FileNotFoundError, match='did you mean'):
        cli.main(['show', '--config=quikstart', '--debug'])


@pytest.mark.parametrize(
    ('error', 'code', 'shown'),
    [
        (InputError('the width is odd'), 2, 'the width is odd'),
        (KeyboardInterrupt(), 130, 'interrupted'),
        (lifecycle.RunEnded(lifecycle.REQUEUE, 'step 7 is saved'), lifecycle.REQUEUE, 'step 7 is saved'),
    ],
)
def test_error_of_a_verb_has_message_and_exit_code(error, code, shown, monkeypatch, capsys):
    def run(values):
        raise error

    monkeypatch.setattr(train, 'run', run)
    assert cli.main(['train', '--config=tiny']) == code
    assert capsys.readouterr().err == f'lmtrain train: {shown}\n'


@pytest.mark.parametrize('bug', ['[][1]', '{}["a"]', 'int("a")', 'None.shape', 'import_nothing()'])
def test_a_bug_keeps_its_traceback(bug, monkeypatch):
    scope = {'__package__': 'lmtrain'}
    exec(f'def run(values):\n    {bug}', scope)
    monkeypatch.setattr(train, 'run', scope['run'])
    with pytest.raises((IndexError, KeyError, ValueError, AttributeError, NameError)):
        cli.main(['train', '--config=tiny'])


def test_an_error_of_another_library_keeps_its_traceback(monkeypatch):
    scope = {'__package__': 'jax._src'}
    exec('def run(values):\n    raise ValueError("Incompatible shapes")', scope)
    monkeypatch.setattr(train, 'run', scope['run'])
    with pytest.raises(ValueError, match='Incompatible shapes'):
        cli.main(['train', '--config=tiny'])


def test_os_error_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(train, 'run', lambda values: (tmp_path / 'missing' / 'file').read_text())
    assert cli.main(['train', '--config=tiny']) == 2
    assert str(tmp_path / 'missing' / 'file') in capsys.readouterr().err


def test_closed_pipe_ends_silently():
    command = f'"{sys.executable}" -m launch.cli show --config=tiny | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.stderr == ''
    assert done.stdout == '141\n'


def test_colours_only_on_terminals(monkeypatch):
    class Terminal:
        isatty = staticmethod(lambda: True)

    assert cli.style('red', stream=sys.__stdout__) in ([''], ['\033[31m'])
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert cli.style('red', 'plain', stream=Terminal) == ['\033[31m', '\033[0m']
    monkeypatch.setenv('NO_COLOR', '1')
    assert cli.style('red', 'plain', stream=Terminal) == ['', '']


def test_compilation_cache_is_private_and_user_settings_take_precedence(monkeypatch, tmp_path):
    names = ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', 'TF_CPP_MIN_LOG_LEVEL')
    for name in (*names, 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('GRPC_VERBOSITY', 'INFO')
    environment = process_setup.environment()
    folder = tmp_path / '.cache' / 'lmtrain' / 'xla' / process_setup.processor()
    assert environment['JAX_COMPILATION_CACHE_DIR'] == str(folder)
    assert environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] == '0'
    assert folder.stat().st_mode & 0o777 == 0o700
    assert 'GRPC_VERBOSITY' not in environment


@pytest.mark.parametrize('caches', [None, pathlib.Path('/proc')])
def test_no_compilation_cache_without_a_cache_directory(caches, monkeypatch, capsys):
    for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process_setup, 'user_cache', lambda: caches)
    assert 'JAX_COMPILATION_CACHE_DIR' not in process_setup.environment()
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'no compilation cache' in said and 'set JAX_COMPILATION_CACHE_DIR' in said
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'x')
    process_setup.environment()
    assert capsys.readouterr().err == ''


def test_paths_of_flags_are_expanded_and_urls_rejected(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    values = cli.parse(train, ['--config=tiny', '--workdir=~/runs/a'])
    assert (values.config, values.workdir) == ('tiny', str(tmp_path / 'runs' / 'a'))
    values = cli.parse(evaluate, ['--workdir', '~/a', '--rows=~/b.csv', '--rows=c.csv', '--template=~/{text}'])
    assert values.rows == [str(tmp_path / 'b.csv'), 'c.csv'] and values.template == '~/{text}'
    for url in ('gs://bucket/run', 's3://bucket/run'):
        assert cli.main(['train', '--config=tiny', f'--workdir={url}']) == 2
        said = capsys.readouterr().err
        assert said.count('\n') == 1 and f"--workdir='{url}' is a URL" in said and 'gcsfuse' in said
    assert not list(tmp_path.iterdir())


def test_characters_missing_from_the_encoding_do_not_end_a_run(monkeypatch):
    command = [sys.executable, '-c', 'from launch import cli; cli.main(["configs"]); print("\u2501 \u6f22")']
    environment = os.environ | {'PYTHONIOENCODING': 'ascii', 'PYTHONUTF8': '0'}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, b'? ?')
