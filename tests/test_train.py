"""Whole runs of the tiny recipe: resumed is uninterrupted, sharded is unsharded, and what goes wrong is said."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import metrics, run, sharding, survive, train, trained

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12


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
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.evaluate.every_steps = 5
    config.checkpoint.every_steps = 4
    config.sample.max_tokens = 4
    return config


def lines(workdir, name='metrics.jsonl'):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def final_leaves(workdir):
    """{file: bytes} of the arrays of the last checkpoint, as restored."""
    config = json.loads((workdir / 'config.json').read_text())
    model = trained.restore(workdir)
    assert model.step == config['budget']['steps']
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.params)]


def assert_same_run(workdir, other):
    assert (workdir / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes()
    assert final_leaves(workdir) == final_leaves(other)


def test_stopped_by_sigterm_and_resumed_is_the_uninterrupted_run(config, tmp_path, monkeypatch):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    results = train.train(config, whole)
    written = metrics.Writers.metrics

    def stop_at_six(self, step, *arguments):
        written(self, step, *arguments)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Writers, 'metrics', stop_at_six)
    with pytest.raises(survive.Ended) as ended:
        train.train(config, parts)
    assert ended.value.code == survive.REQUEUE
    monkeypatch.undo()
    again = train.train(config, parts)
    assert_same_run(whole, parts)
    assert [line['step'] for line in lines(parts) if 'loss' in line] == list(range(1, STEPS + 1))
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

    # Another run may not go on there, and is told why.
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match='optimizer.learning_rate: saved 0.001, now 0.5'):
        train.train(config, parts)


def test_killed_at_a_save_and_resumed_is_the_uninterrupted_run(config, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    command = [sys.executable, '-m', 'launch.cli', 'train', '--config=configs/tiny.py']
    command += [f'--config.data.{name}={config.data[name]}' for name in ('source', 'cache', 'validation')]
    command += [f'--config.budget.steps={STEPS}', '--config.log.every_steps=1', '--config.log.tensorboard=false']
    command += ['--config.evaluate.every_steps=5', '--config.checkpoint.every_steps=4', '--config.sample.max_tokens=4']

    def start(workdir, **env):
        environment = os.environ | {
            'PYTHONPATH': str(ROOT),
            'JAX_NUM_CPU_DEVICES': '1',
            'XDG_CACHE_HOME': str(tmp_path),
        }
        ran = subprocess.run(
            [*command, f'--workdir={workdir}'],
            cwd=ROOT,
            env=environment | env,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return ran.returncode, ran.stdout + ran.stderr

    code, said = start(whole)
    assert code == 0, said
    code, said = start(parts, LMTRAIN_FAULT='before_rename@8')
    assert code == -signal.SIGKILL, said
    code, said = start(parts)
    assert code == 0, said
    assert 'resumed' in said and 'after step 4' in said
    assert_same_run(whole, parts)


MESHES = [(8, 1, 1, 1), (2, 2, 2, 1)]


def test_sharded_equals_unsharded(config):
    config.optimizer.accumulate = 1
    config.model.dropout = 0.1  # keyed by the global row

    def losses(devices, mesh):
        for name, size in zip(sharding.AXES, mesh, strict=True):
            config.mesh[name] = size
        config.data.batch_size = 8
        config.model.vocab_size = 264
        parts = run.assemble(config, devices=devices)
        state, step, put = parts.initial_state(), parts.train_step(), sharding.place(parts.mesh)
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


def test_a_run_that_has_gone_wrong_ends_with_a_word(config, tmp_path):
    config.optimizer.learning_rate = 1e37
    with pytest.raises(survive.Ended, match='no finite loss or gradient in 5 steps.*Lower opt') as ended:
        train.train(config, tmp_path / 'run')
    assert ended.value.code == survive.NON_FINITE
    skipped = [line['skipped_in_a_row'] for line in lines(tmp_path / 'run') if 'loss' in line]
    assert skipped[-1] >= 4


def test_a_budget_of_hours_ends_where_its_schedule_does(config, tmp_path):
    config.budget.steps = None
    config.budget.hours = 2 / 3600
    config.evaluate.every_steps = 1000
    config.checkpoint.every_steps = 1000
    config.data.corrupt = 0.2
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
