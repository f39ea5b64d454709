"""Trackers beside the files of a run (`report/writers.py`): Weights & Biases, MLflow.

A tracker is started with the run, takes `log(step, {name: value})` and ends with `finish()`. A value is a number, or
for the members of a sweep a list, whose name ends in '_members'. Both are optional packages. They write into the folder
of the run unless the environment names a server: neither a network nor an account is needed. A resumed run continues
the same run of the tracker, whose id is in trackers.json.
"""

import contextlib
import importlib
import os
import pathlib
import secrets
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

from lmtrain.errors import InputError, MissingPackage, did_you_mean
from lmtrain.files import flatten_fields, read_json_object, write_json
from lmtrain.report.writers import MEMBERS, Tracker, of_member

PROJECT = 'lmtrain'  # of Weights & Biases and of MLflow, where it is called an experiment
BATCH = 100  # parameters in a request to MLflow


class WeightsAndBiases:
    """A run of Weights & Biases; offline unless WANDB_MODE says otherwise, then `wandb sync FOLDER` uploads it."""

    def __init__(self, folder: pathlib.Path, config: Mapping[str, Any], members: Sequence[str]):
        wandb = _package('wandb')
        self.errors, self._members = (wandb.errors.Error, OSError), members
        mode = os.environ.get('WANDB_MODE', 'offline')
        with _as_input_error('wandb', self.errors):
            self._run = wandb.init(
                project=os.environ.get('WANDB_PROJECT', PROJECT),
                name=folder.name,
                id=_run_id(folder, 'wandb', lambda: secrets.token_hex(4)),
                resume=None if mode == 'offline' else 'allow',
                dir=str(folder),
                mode=mode,
                config=dict(config),
                settings=wandb.Settings(silent=True, console='off'),
            )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(numbers(values, self._members), step=step)

    def finish(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, in the folder `mlruns` of the run unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, folder: pathlib.Path, config: Mapping[str, Any], members: Sequence[str]):
        mlflow = _package('mlflow')
        self._entities, self._members = mlflow.entities, members
        self.errors = (mlflow.exceptions.MlflowException, OSError)
        uri = os.environ.get('MLFLOW_TRACKING_URI') or (folder / 'mlruns').absolute().as_uri()
        os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')  # MLflow 3 else asks for a database
        with _as_input_error('mlflow', self.errors):
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._id = _run_id(folder, 'mlflow', lambda: self._create(folder.name, config))
            self._client.update_run(self._id, status='RUNNING')

    def _create(self, name: str, config: Mapping[str, Any]) -> str:
        """A new run with the fields of the config as parameters; returns its id."""
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        run_id = self._client.create_run(number, run_name=name).info.run_id
        params = [self._entities.Param(field, str(value)[:500]) for field, value in config.items()]
        for begin in range(0, len(params), BATCH):
            self._client.log_batch(run_id, params=params[begin : begin + BATCH])
        return run_id

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        named = numbers(values, self._members).items()
        metrics = [self._entities.Metric(name, float(value), now, step) for name, value in named]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self) -> None:
        self._client.set_terminated(self._id)


OPTIONAL = types.MappingProxyType({'wandb': WeightsAndBiases, 'mlflow': MLflow})


def check(names: Sequence[str]) -> None:
    """Raises InputError if a tracker of config.log.trackers is unknown, MissingPackage if it is not installed."""
    for name in names:
        if name not in OPTIONAL:
            known = ', '.join(map(repr, OPTIONAL))
            raise InputError(f'log.trackers has {name!r}, which is none of {known}{did_you_mean(str(name), OPTIONAL)}')
        _package(name)


def start(
    names: Sequence[str], folder: pathlib.Path, config: Mapping[str, Any], members: Sequence[str] = ()
) -> dict[str, Tracker]:
    """{name: the started tracker}, those of config.log.trackers; only one process of a run may call it.

    Args:
      folder: of the run.
      config: nested, the resolved config.
      members: labels of the members of a sweep, see `label`.

    Raises MissingPackage naming the extra, InputError with the tracker's message if it cannot start.
    """
    flat = flatten_fields(config)
    return {name: OPTIONAL[name](folder, flat, members) for name in names}


def label(seed: int, learning_rate: float, order: int) -> str:
    """The name of a member of a sweep in a tracker.

    >>> label(4, 0.001, 4)
    'rate_0.001_seed_4'
    """
    return f'rate_{learning_rate:g}_seed_{seed}' + (f'_order_{order}' if order != seed else '')


def numbers(values: Mapping[str, Any], members: Sequence[str]) -> dict[str, float]:
    """{name: number} for a tracker without lists; the mean over members gives way to each of them.

    >>> numbers({'loss': 2.0, 'loss_members': [1.0, 3.0], 'mfu': 0.4, 'batch': 'c0ffee'}, ('a', 'b'))
    {'mfu': 0.4, 'loss/a': 1.0, 'loss/b': 3.0}
    """
    flat = {name: value for name, value in values.items() if name + MEMBERS not in values}
    for index, member in enumerate(members):
        flat |= {f'{name}/{member}': value for name, value in of_member(values, index).items()}
    return {name: value for name, value in flat.items() if isinstance(value, int | float)}


def _package(name: str) -> Any:
    """The module of an optional tracker. Raises MissingPackage with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackage(f'log.trackers has {name!r}, which is not installed: pip install -e ".[{name}]"') from None


def _run_id(folder: pathlib.Path, name: str, create) -> str:
    """The id of the run in a tracker: that of the first start, from trackers.json in the folder of the run."""
    path = folder / 'trackers.json'
    ids = read_json_object(path) if path.exists() else {}
    if name not in ids:
        ids[name] = create()
        write_json(path, ids)
    return ids[name]


@contextlib.contextmanager
def _as_input_error(name: str, errors: tuple[type[Exception], ...]):
    """A context in which an error of a tracker becomes an InputError that names it."""
    try:
        yield
    except errors as error:
        raise InputError(f'log.trackers: {name} cannot start: {" ".join(str(error).split())}') from error
