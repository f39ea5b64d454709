"""Whole runs of the tiny recipe: resumed equals uninterrupted, sharded equals unsharded, failures are reported."""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import checkpoint
from lmtrain.models import Transformer
from lmtrain.parallel import sharding
from lmtrain.report.writers import Writers
from lmtrain.runtime import lifecycle
from lmtrain.training import build, evaluate, load, resolve, train
from lmtrain.training.run import Run

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 12
LONG = 250  # seconds that a process may take on the slowest machine


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    """A folder of small documents."""
    folder = tmp_path_factory.mktemp('text')
    words = 'the cat sat on a mat and saw that dog run to his red ball in our park'.split()
    for number in range(60):
        drawn = np.random.default_rng(number).choice(words, 60)
        (folder / f'{number}.txt').write_text(' '.join(drawn))
    return folder


@pytest.fixture
def config(text, tmp_path):
    config = tiny.get_config()
    config.data.source = str(text)
    config.data.cache = str(text.parent / 'cache')
    config.data.validation = 0.2
    config.budget.steps = STEPS
    config.model.num_layers = 1
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.evaluate.every_steps = 5
    config.checkpoint.every_steps = 4
    config.sample.max_tokens = 4
    return config


def lines(workdir, name='metrics.jsonl'):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def final_state(workdir):
    """All that the last checkpoint holds: {path: bytes} of parameters, moments, rng and step, and the counters."""
    config, folder = json.loads((workdir / 'config.json').read_text()), workdir / 'checkpoints'
    step = config['budget']['steps']
    leaves = json.loads((folder / str(step) / 'manifest.json').read_text())['leaves']
    shapes = {path: jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype']) for path, leaf in leaves.items()}
    state, counters = checkpoint.restore(folder, shapes, step)
    del counters['elapsed'], counters['measured']
    return {path: np.asarray(leaf).tobytes() for path, leaf in state.items()}, counters


def assert_same_run(workdir, other, message=''):
    assert (workdir / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes(), message
    assert final_state(workdir) == final_state(other), message


@pytest.mark.slow
def test_run_stopped_by_sigterm_and_resumed_equals_the_uninterrupted_one(config, tmp_path, monkeypatch):
    """With lines that no checkpoint is aligned to: their means are over steps of both starts."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    config.log.every_steps = 3
    results = train.train(config, whole)
    written = Writers.metrics

    def stop_at_six(self, step, *arguments):
        written(self, step, *arguments)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Writers, 'metrics', stop_at_six)
    with pytest.raises(lifecycle.RunEnded) as ended:
        train.train(config, parts)
    assert ended.value.code == lifecycle.REQUEUE
    monkeypatch.undo()
    again = train.train(config, parts)
    assert_same_run(whole, parts)
    assert [line['step'] for line in lines(parts) if 'loss' in line] == [1, 3, 6, 9, 12]
    assert again['validation'] == results['validation']
    assert lines(parts, 'lineage.jsonl')[1]['resumed_from'] in (6, 7)

    # A damaged checkpoint is set aside, and the older one leads to the same end.
    newest = parts / 'checkpoints' / str(STEPS)
    victim = max((newest / 'state').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    train.train(config, parts)
    assert_same_run(whole, parts)
    assert (parts / 'checkpoints' / f'{STEPS}.corrupt').is_dir()

    # A run with another config is refused, and the message names the field.
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match='optimizer.learning_rate: saved 0.001, now 0.5'):
        train.train(config, parts)


@pytest.mark.slow
def test_seconds_of_a_killed_start_are_part_of_the_cost(config, tmp_path, monkeypatch):
    config.log.every_steps = 1
    written = Writers.timings

    class Killed(BaseException):
        pass

    def killed_at_six(self, step, *arguments):
        written(self, step, *arguments)
        if step == 6:  # the last checkpoint is of step 4
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Writers, 'timings', killed_at_six)
        train.train(config, tmp_path / 'run')
    results = train.train(config, tmp_path / 'run')
    first, second = lines(tmp_path / 'run', 'lineage.jsonl')
    assert first['lost_seconds'] == 0 < second['lost_seconds'] == results['cost']['lost_seconds']
    assert results['cost']['device_seconds'] >= results['cost']['seconds'] + second['lost_seconds']


def test_finished_run_is_not_changed(config, tmp_path, monkeypatch, capsys):
    config.log.tensorboard, config.checkpoint.keep_last = True, 9
    first = train.train(config, tmp_path / 'run')
    capsys.readouterr()
    # A checkpoint has the metric of its own state alone: the evaluations of steps 5 and 10 are not those of 8 and 12.
    losses = {line['step']: line['validation_loss'] for line in lines(tmp_path / 'run') if 'validation_loss' in line}
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob('run/checkpoints/*/manifest.json')]
    metrics_of = {manifest['step']: manifest['metric'] for manifest in manifests}
    assert losses.keys() == {5, 10, 12} and metrics_of == {4: None, 8: None, 12: losses[12]}
    contents = {
        path: path.read_bytes()
        for path in (tmp_path / 'run').glob('*')
        if path.name in ('metrics.jsonl', 'samples.txt')
    }
    monkeypatch.setattr(Run, 'train_steps', None)  # nothing is compiled
    assert train.train(config, tmp_path / 'run') == first
    assert f'finished   the budget is spent after step {STEPS}: nothing is left' in capsys.readouterr().out
    assert len(contents) == 2 and all(path.read_bytes() == content for path, content in contents.items())


@pytest.mark.slow
def test_signal_during_evaluation_and_during_compilation(config, tmp_path, monkeypatch):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train.train(config, whole)
    run_evaluation, tried = evaluate.evaluate, []

    def interrupted(*arguments):
        tried.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return run_evaluation(*arguments)

    monkeypatch.setattr(evaluate, 'evaluate', interrupted)
    with pytest.raises(lifecycle.RunEnded, match='SIGTERM: step 5 is saved') as ended:
        train.train(config, parts)
    assert ended.value.code == lifecycle.REQUEUE and len(tried) == 1
    assert not [line for line in lines(parts) if 'validation_loss' in line]
    monkeypatch.undo()

    compiled = Run.train_steps

    def interrupted_compilation(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return compiled(self)

    monkeypatch.setattr(Run, 'train_steps', interrupted_compilation)
    with pytest.raises(lifecycle.RunEnded, match='SIGTERM: step 5 is saved') as ended:
        train.train(config, parts)
    assert ended.value.code == lifecycle.REQUEUE
    monkeypatch.undo()
    train.train(config, parts)
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_checkpoint_gets_the_metric_of_an_interrupted_evaluation(config, tmp_path, monkeypatch):
    config.checkpoint.every_steps, config.checkpoint.keep_last = 5, 5
    train.train(config, tmp_path / 'whole')
    run_evaluation = evaluate.evaluate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return run_evaluation(*arguments)

    monkeypatch.setattr(evaluate, 'evaluate', interrupted)
    with pytest.raises(lifecycle.RunEnded, match='step 5 is saved'):
        train.train(config, tmp_path / 'parts')
    assert checkpoint.ranked(tmp_path / 'parts' / 'checkpoints') == []
    monkeypatch.undo()
    train.train(config, tmp_path / 'parts')
    rankings = [checkpoint.ranked(tmp_path / name / 'checkpoints') for name in ('whole', 'parts')]
    assert rankings[0] == rankings[1] and 5 in rankings[0]
    checkpoint.verify(tmp_path / 'parts' / 'checkpoints' / '5')


@pytest.mark.slow
def test_last_evaluation_is_repeated_until_no_signal_interrupts_it(config, tmp_path, monkeypatch):
    """Else the results of a finished run would be those of an older step, or none."""
    config.checkpoint.keep_last, config.evaluate.every_steps = 5, 1000
    whole = train.train(config, tmp_path / 'whole')
    run_evaluation = evaluate.evaluate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return run_evaluation(*arguments)

    monkeypatch.setattr(evaluate, 'evaluate', interrupted)
    for _ in range(3):
        with pytest.raises(lifecycle.RunEnded) as ended:
            train.train(config, tmp_path / 'parts')
        assert ended.value.code == lifecycle.REQUEUE
        assert not (tmp_path / 'parts' / 'results.json').exists()
    monkeypatch.undo()
    parts = train.train(config, tmp_path / 'parts')
    assert parts['validation'] == whole['validation']
    rankings = [checkpoint.ranked(tmp_path / name / 'checkpoints') for name in ('whole', 'parts')]
    assert rankings[0] == rankings[1] == [parts['cost']['steps']]


@pytest.mark.slow
def test_patience_ends_a_run_at_an_evaluation_that_was_interrupted(config, tmp_path, monkeypatch):
    config.evaluate.patience, config.evaluate.every_steps, config.checkpoint.every_steps = 1, 2, 2
    run_evaluation, count, interrupt = evaluate.evaluate, [], []

    def rising(*arguments):
        if len(count) in interrupt:
            interrupt.remove(len(count))
            os.kill(os.getpid(), signal.SIGTERM)
            return run_evaluation(*arguments)
        count.append(run_evaluation(*arguments))
        return count[-1] | {'loss': 2.0 + len(count)}

    monkeypatch.setattr(evaluate, 'evaluate', rising)
    whole = train.train(config, tmp_path / 'whole')
    assert whole['stopped_early'] and whole['cost']['steps'] == 4
    count.clear()
    interrupt.append(1)
    with pytest.raises(lifecycle.RunEnded, match='step 4 is saved'):
        train.train(config, tmp_path / 'parts')
    parts = train.train(config, tmp_path / 'parts')
    assert parts['stopped_early'] and parts['cost']['steps'] == 4


@pytest.mark.slow
def test_member_that_diverges_ends_no_other(config, tmp_path):
    config.sweep.learning_rates, config.optimizer.clip = (1e-3, 1e10), 0.0
    config.schedule.name, config.schedule.warmup, config.checkpoint.every_steps = 'constant', 0, 2
    config.budget.steps = 4
    train.train(config, tmp_path / 'run')
    config.budget.steps = 6  # continues from a checkpoint whose validation has a loss that is not finite
    results = train.train(config, tmp_path / 'run')
    first, second = (member['loss'] for member in results['sweep']['members'])
    assert results['validation']['loss'] == first < 10 and not math.isfinite(second)
    assert 6 in checkpoint.ranked(tmp_path / 'run' / 'checkpoints')


@pytest.mark.slow
def test_sweep_over_seeds_goes_on_while_a_member_has_a_loss(config, tmp_path, monkeypatch):
    run_evaluation, config.sweep.seeds = evaluate.evaluate, (0, 1)

    def diverged(*arguments):
        result = run_evaluation(*arguments)
        return result | {'loss': math.nan, 'loss_members': [result['loss_members'][0], math.nan]}

    monkeypatch.setattr(evaluate, 'evaluate', diverged)
    results = train.train(config, tmp_path / 'run')
    assert math.isnan(results['validation']['loss']) and results['cost']['steps'] == config.budget.steps
    assert config.budget.steps in checkpoint.ranked(tmp_path / 'run' / 'checkpoints')
    monkeypatch.setattr(evaluate, 'evaluate', lambda *a: diverged(*a) | {'loss_members': [math.inf, math.nan]})
    with pytest.raises(lifecycle.RunEnded, match='the validation loss after step'):
        train.train(config, tmp_path / 'other')


@pytest.mark.slow
def test_mixture_is_ranked_by_its_weighted_loss_on_a_fixed_sample(config, tmp_path):
    """Its validation loss weights the sources as a batch does, whatever their sizes, and is the same after a resume."""
    other = tmp_path / 'other'
    other.mkdir()
    for number in range(300):  # five times the first source, of a fifth of its weight
        (other / f'{number}.txt').write_text(f'{number} ZEBRA QUIZ JUMPS ' * 12)
    config.data.mix = ((str(other), 0.2),)
    config.evaluate.max_batches = 3
    results = train.train(config, tmp_path / 'run')
    validation, sources = results['validation'], results['validation']['sources']
    first, second = (sources[name] for name in (config.data.source, str(other)))
    # Every row of both sources is full, but for the last of a document: targets a row differ by little.
    weighted = (first['loss'] + 0.2 * second['loss']) / 1.2
    assert validation['loss'] == pytest.approx(weighted, rel=0.02) and abs(first['loss'] - second['loss']) > 0.1
    assert validation['targets'] == first['targets'] + second['targets']
    assert first['targets'] > second['targets']  # of three batches two are of the first source, at least one of each
    evaluated = [line for line in lines(tmp_path / 'run') if 'validation_loss' in line]
    assert [line['step'] for line in evaluated] == [5, 10, STEPS]
    assert evaluated[-1][f'validation_loss/{other}'] == second['loss']
    folder = tmp_path / 'run' / 'checkpoints' / str(STEPS)
    assert json.loads((folder / 'manifest.json').read_text())['metric'] == validation['loss']
    whole = load.evaluate_split(tmp_path / 'run', 'validation')
    assert whole['sources'].keys() == sources.keys() and whole['targets'] > validation['targets']
    page = (tmp_path / 'run' / 'report.md').read_text()
    assert f'this model, `{other}` alone (weight 0.2) | {second["bits_per_byte"]:.4f}' in page
    assert 'a random sample of at most 3 batches' in page
    shutil.rmtree(folder)
    assert train.train(config, tmp_path / 'run')['validation'] == validation


@pytest.mark.slow
def test_watchdog_covers_the_last_save(start, tmp_path):
    workdir = tmp_path / 'run'
    stalled = start(workdir, ['--config.watchdog.save=6'], LMTRAIN_FAULT=f'stall_in_save@{STEPS}')
    assert stalled.wait(LONG) == lifecycle.STALLED, words(workdir)
    assert 'config.watchdog.save = 6 s' in words(workdir) and 'in _finish' in words(workdir)


@pytest.mark.slow
def test_padded_vocabulary_resumes_on_another_mesh(config, tmp_path):
    config.evaluate.every_steps = config.checkpoint.every_steps = 4
    config.budget.steps, config.schedule.name = 4, 'constant'
    config.mesh.data, config.mesh.tensor = 4, 2
    train.train(config, tmp_path / 'run')
    config.mesh.data, config.mesh.tensor, config.budget.steps = 8, 1, 8
    train.train(config, tmp_path / 'run')
    assert [line['step'] for line in lines(tmp_path / 'run') if 'loss' in line] == list(range(1, 9))
    config.model.vocab_size = 300
    with pytest.raises(ValueError, match='model.vocab_size: saved 257, now 300'):
        train.train(config, tmp_path / 'run')


@pytest.fixture(scope='module')
def start(text):
    """A function that starts `lmtrain train` on the text in a process of its own; its words go to `<workdir>.txt`."""
    command = [sys.executable, '-m', 'launch.cli', 'train', '--config=configs/tiny.py', f'--config.data.source={text}']
    command += [f'--config.data.cache={text.parent / "cache"}', '--config.data.validation=0.2']
    command += [
        f'--config.budget.steps={STEPS}',
        '--config.model.num_layers=1',
        '--config.log.every_steps=1',
        '--config.log.tensorboard=false',
    ]
    command += ['--config.evaluate.every_steps=5', '--config.checkpoint.every_steps=4', '--config.sample.max_tokens=4']
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '1', 'HOME': str(text.parent)}

    def start(workdir, flags=(), **more):
        with open(f'{workdir}.txt', 'w') as words:
            argv = [*command, f'--workdir={workdir}', *flags]
            return subprocess.Popen(argv, cwd=ROOT, env=environment | more, stdout=words, stderr=subprocess.STDOUT)

    return start


@pytest.fixture(scope='module')
def whole(start, text):
    """The folder of a run that nothing interrupted."""
    workdir = text.parent / 'whole'
    assert start(workdir).wait(LONG) == 0, words(workdir)
    return workdir


def words(workdir):
    return workdir.with_name(f'{workdir.name}.txt').read_text()


@pytest.mark.slow
def test_run_killed_at_a_save_and_resumed_equals_the_uninterrupted_one(start, whole, tmp_path):
    parts = tmp_path / 'parts'
    assert start(parts, LMTRAIN_FAULT='before_rename@8').wait(LONG) == -signal.SIGKILL, words(parts)
    assert start(parts).wait(LONG) == 0, words(parts)
    assert 'resumed' in words(parts) and 'after step 4' in words(parts)
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_locale_without_utf8_and_folder_named_like_a_glob(start, tmp_path):
    """The C locale encodes nothing but ASCII; text, prompts and folder have more."""
    workdir = tmp_path / 'lr[1e-3] é'
    ascii_only = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONWARNDEFAULTENCODING': '1'}
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        'from configs import tiny\n\n\ndef get_config():\n    config = tiny.get_config()\n'
        "    config.sample.prompts = ('é漢',)\n    return config\n",
        encoding='utf-8',
    )
    flags = [f'--config={recipe}', '--config.budget.steps=1']
    assert start(workdir, flags, **ascii_only).wait(LONG) == 0, words(workdir)
    assert (workdir / 'samples.txt').read_text(encoding='utf-8').startswith("--- 'é漢'\n")
    assert 'é漢' in (workdir / 'report.md').read_text(encoding='utf-8')
    ours = [line for line in words(workdir).splitlines() if 'EncodingWarning' in line and str(ROOT / 'lmtrain') in line]
    assert not ours
    assert start(workdir, flags, **ascii_only).wait(LONG) == 0, words(workdir)  # its checkpoint can be read
    assert 'finished' in words(workdir)


@pytest.mark.slow
def test_run_killed_at_any_moment_and_resumed_equals_the_uninterrupted_one(start, whole, tmp_path):
    parts = tmp_path / 'parts'
    draw = random.SystemRandom()  # another moment each time: so many lines of metrics.jsonl, and so many seconds after
    written, later = draw.randrange(len(lines(whole)) + 1), draw.uniform(0, 0.2)
    process = start(parts)
    while process.poll() is None and whole_lines(parts) < written:
        time.sleep(0.001)
    time.sleep(later)
    process.kill()
    moment = f'killed {later:.3f} s after line {written} of metrics.jsonl'
    assert process.wait(LONG) in (-signal.SIGKILL, 0), f'{moment}: {words(parts)}'
    assert start(parts).wait(LONG) == 0, f'{moment}: {words(parts)}'
    assert_same_run(whole, parts, moment)


def whole_lines(workdir):
    path = workdir / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0


MESHES = [(8, 1, 1, 1), (2, 2, 2, 1)]


@pytest.mark.slow
def test_sharded_equals_unsharded(config):
    config.optimizer.accumulate, config.model.num_layers, config.model.unroll = 1, 2, 1
    config.model.dropout = 0.1  # keyed by the global row

    def losses(devices, mesh):
        for name, size in zip(sharding.AXES, mesh, strict=True):
            config.mesh[name] = size
        config.data.batch_size = 8
        config.model.vocab_size = 264
        parts = build.build(config, devices=devices)
        state, step, put = parts.initial.on_mesh(), parts.train_step(), sharding.place(parts.mesh)
        stream, seen = parts.stream('train', shuffle=True), []
        for index in range(20):
            state, measured = step(state, put(stream.batch(index)), np.float32((index + 1) / 20))
            jax.block_until_ready(state)
            seen.append([float(measured[name]) for name in ('loss', 'grad_norm', 'param_norm')])
        return np.array(seen)

    alone = losses(jax.devices()[:1], (1, 1, 1, 1))
    assert alone[-1, 0] < alone[0, 0]
    for mesh in MESHES:
        np.testing.assert_allclose(losses(None, mesh), alone, rtol=1e-5, err_msg=str(mesh))


def test_start_traces_the_model_once_for_its_parameters(config, monkeypatch):
    traced, init = [], Transformer.init
    monkeypatch.setattr(Transformer, 'init', lambda self, *inputs: traced.append(self) or init(self, *inputs))
    config.data.seq_len = 26  # of no other test, whose trace would be cached
    state = build.build(*resolve.resolve(config)).initial.on_mesh()
    assert len(traced) == 1 and int(state.step) == 0


def test_diverged_run_ends_with_a_message(config, tmp_path):
    config.optimizer.learning_rate = 1e37
    with pytest.raises(lifecycle.RunEnded, match='no finite loss or gradient in 5 steps.*Lower opt') as ended:
        train.train(config, tmp_path / 'run')
    assert ended.value.code == lifecycle.NON_FINITE
    skipped = [line['skipped_in_a_row'] for line in lines(tmp_path / 'run') if 'loss' in line]
    assert skipped[-1] >= 4


@pytest.mark.slow
def test_budget_in_hours_ends_with_its_schedule(config, tmp_path):
    config.budget.steps = None
    config.budget.hours = 2 / 3600
    config.evaluate.every_steps = 1000
    config.checkpoint.every_steps = 1000
    config.data.mask_rate = 0.2
    config.model.vocab_size = 258
    config.model.causal = False
    config.model.mlm_head = True
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'
    config.model.unroll = 1
    config.optimizer.name = 'muon'
    results = train.train(config, tmp_path / 'run')
    steps = [line for line in lines(tmp_path / 'run') if 'loss' in line]
    assert steps[-1]['learning_rate'] == pytest.approx(1e-4)  # final is a tenth of the peak
    assert steps[-1]['step'] == results['cost']['steps']
    assert steps[-1]['skipped'] == 0
    assert 'makes no text' in (tmp_path / 'run' / 'samples.txt').read_text()
