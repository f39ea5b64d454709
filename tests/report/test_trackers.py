"""Weights & Biases and MLflow behind one interface, by modules that record their calls: neither is installed."""

import contextlib
import json
import sys
import types

import pytest

from lmtrain.errors import InputError, MissingPackage
from lmtrain.report import trackers
from lmtrain.report.writers import Writers

CONFIG = {'seed': 3, 'model': {'width': 64}}


class Failure(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb` whose `runs` records {'init', 'logged', 'finished'} of each run."""
    module = types.ModuleType('wandb')
    module.runs, module.broken = [], False
    module.errors = types.SimpleNamespace(Error=Failure)
    module.Settings = dict

    class Run:
        def __init__(self, **init):
            if module.broken:
                raise Failure('no\nserver')
            self.init, self.logged, self.finished = init, [], False
            module.runs.append(self)

        def log(self, values, step):
            if module.broken:
                raise Failure('no server')
            self.logged.append((step, values))

        def finish(self):
            self.finished = True

    module.init = Run
    monkeypatch.setitem(sys.modules, 'wandb', module)
    monkeypatch.delenv('WANDB_MODE', raising=False)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """A module `mlflow` with a client of one server, `module.runs`: {id: {'params', 'metrics', 'status'}}."""
    module = types.ModuleType('mlflow')
    module.runs, module.uris, module.experiments = {}, [], {}
    module.exceptions = types.SimpleNamespace(MlflowException=Failure)
    module.entities = types.SimpleNamespace(
        Param=lambda key, value: (key, value), Metric=lambda key, value, timestamp, step: (key, value, step)
    )

    class Client:
        def __init__(self, tracking_uri):
            module.uris.append(tracking_uri)

        def get_experiment_by_name(self, name):
            number = module.experiments.get(name)
            return number and types.SimpleNamespace(experiment_id=number)

        def create_experiment(self, name):
            module.experiments[name] = '7'
            return '7'

        def create_run(self, experiment_id, run_name):
            run_id = f'{run_name}-{len(module.runs)}'
            module.runs[run_id] = {'params': [], 'metrics': [], 'status': 'RUNNING'}
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        def update_run(self, run_id, status):
            module.runs[run_id]['status'] = status

        def log_batch(self, run_id, params=(), metrics=()):
            assert len(params) <= 100
            module.runs[run_id]['params'] += params
            module.runs[run_id]['metrics'] += metrics

        def set_terminated(self, run_id):
            module.runs[run_id]['status'] = 'FINISHED'

    module.MlflowClient = Client
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    return module


def train(folder, start, steps, names=('wandb', 'mlflow'), members=(), **values):
    """One start of a run that logs the loss of `steps`."""
    started = trackers.start(names, folder, CONFIG, members)
    writers = Writers(folder, False, start, pytest.fail, started, members)
    with contextlib.closing(writers) as log:
        for step in steps:
            log.metrics(step, {'loss': step / 2} | values, batch='a')


def test_figures_reach_both_and_a_resumed_run_is_the_same_run(tmp_path, wandb, mlflow):
    train(tmp_path, 0, (1, 2))
    train(tmp_path, 2, (3,))
    first, second = wandb.runs
    assert first.logged == [(1, {'train/loss': 0.5}), (2, {'train/loss': 1.0})] and second.logged[0][0] == 3
    assert first.init['id'] == second.init['id'] and first.finished
    assert first.init['mode'] == 'offline' and first.init['dir'] == str(tmp_path)
    assert first.init['config'] == {'seed': 3, 'model.width': 64}
    ((run_id, run),) = mlflow.runs.items()
    assert run['metrics'] == [('train/loss', 0.5, 1), ('train/loss', 1.0, 2), ('train/loss', 1.5, 3)]
    assert run['params'] == [('seed', '3'), ('model.width', '64')]  # once: they cannot change there
    assert run['status'] == 'FINISHED'
    assert mlflow.uris == [(tmp_path / 'mlruns').as_uri()] * 2
    assert json.loads((tmp_path / 'trackers.json').read_text()) == {'wandb': first.init['id'], 'mlflow': run_id}


def test_environment_names_the_server(tmp_path, wandb, mlflow, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'online')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://tracking:5000')
    train(tmp_path, 0, ())
    assert wandb.runs[0].init['mode'] == 'online' and wandb.runs[0].init['resume'] == 'allow'
    assert mlflow.uris == ['http://tracking:5000']


def test_members_of_a_sweep_have_their_own_figures(tmp_path, wandb):
    members = [trackers.label(seed, 0.01, seed) for seed in (4, 5)]
    train(tmp_path, 0, (1,), ('wandb',), members, loss_members=[2.0, 'nan'], skipped=0)
    assert wandb.runs[0].logged == [(1, {'train/skipped': 0, 'train/loss/rate_0.01_seed_4': 2.0})]


def test_failing_tracker_does_not_end_the_run(tmp_path, wandb):
    warnings = []
    started = trackers.start(('wandb',), tmp_path, CONFIG)
    with contextlib.closing(Writers(tmp_path, False, 0, warnings.append, started)) as log:
        wandb.broken = True
        log.metrics(1, {'loss': 1.0}, batch='a')
        log.metrics(2, {'loss': 1.0}, batch='b')
    assert len(warnings) == 1 and 'wandb' in warnings[0] and 'no server' in warnings[0]
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 2


def test_tracker_that_cannot_start_is_named(tmp_path, wandb):
    wandb.broken = True
    with pytest.raises(InputError, match='log.trackers: wandb cannot start: no server'):
        trackers.start(('wandb',), tmp_path, CONFIG)


def test_missing_package_names_the_extra(monkeypatch):
    for name in trackers.OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackage, match=rf'log.trackers has .{name}.*pip install -e "\.\[{name}\]"'):
            trackers.check((name,))


def test_unknown_tracker_is_named():
    with pytest.raises(InputError, match="log.trackers has 'wandbb', .* did you mean 'wandb'"):
        trackers.check(('wandbb',))
