"""Trials: one arm, a number of rows, a seed. A finished trial is never run twice; a failed one stops no other."""

import contextlib
import hashlib
import itertools
import json
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmtrain.compare import rows
from lmtrain.compare.arms import Arm
from lmtrain.compare.rows import TaskRows
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.files import read_json_object, write_atomic, write_json
from lmtrain.runtime import lifecycle
from lmtrain.training.init_from import Base
from lmtrain.training.load import LoadedModel

UNREAD = ('compare', 'log', 'watchdog', 'plan', 'sample', 'mesh')  # sections that change no result of a trial
STARTED = 'digest.txt'  # the digest of a trial, written before it runs
STAGE = 'stage.txt'  # the test stage of a trial, written before its test (testing.py)


class Trial(NamedTuple):
    """One arm, the number of its rows, and its seed.

    Attributes:
      next_size: the next larger size: the rows in between are scored, for the description length; 0 if there is none.
    """

    arm: Arm
    size: int
    seed: int
    next_size: int

    @property
    def folder(self) -> str:
        """Its folder, from that of the comparison."""
        return f'trials/{self.arm.name}/{rows.name(self.size, self.seed)}'


class Comparison(NamedTuple):
    """What all trials share.

    Attributes:
      config: of the comparison.
      model: the base, loaded once.
      sizes: of the subsets, ascending.
      own_text: batches of the text that the base was pretrained on, or of one like it; [] if it is not known.
      text_digest: identifies it; '' is the text of the run that pretrained the base.
      plans: {arm: what is known of its trials before they run}.
      programs: compiled functions of the trials so far (`Run.programs`).
    """

    config: Any
    folder: Path
    task: TaskRows
    base: Base
    model: LoadedModel
    sizes: list[int]
    own_text: list[dict[str, np.ndarray]] = []
    text_digest: str = ''
    plans: dict[str, Any] = {}
    programs: dict[Any, Any] | None = None

    def subset(self, size: int, seed: int) -> list[Row]:
        """The rows of a subset; [] of size 0."""
        return rows.read(self.subset_path(size, seed)) if size else []

    def subset_path(self, size: int, seed: int) -> Path:
        """The file of a subset."""
        return (self.task.folder / f'{rows.name(size, seed)}.jsonl').absolute()

    def spans(self, trial: Trial) -> list[tuple[int, int, int]]:
        """[(seed, begin, end)] of the blocks of rows that a trial scores; one of size 0 scores all of all seeds."""
        if trial.size:
            return [(trial.seed, trial.size, trial.next_size)] if trial.next_size else []
        seeds = range(1, self.config.compare.seeds + 1)
        return [(seed, *pair) for seed in seeds for pair in itertools.pairwise(self.sizes)]


Finished = Sequence[tuple[Trial, dict[str, Any]]]  # trials with the content of their trial.json


def listed(comparison: Comparison, arms: list[Arm]) -> list[Trial]:
    """All trials, small sizes first. An arm that reads no rows has one trial, of size 0."""
    sizes = comparison.sizes
    trials = [Trial(arm, 0, 1, sizes[0]) for arm in arms if not arm.uses_rows]
    for size, larger in zip(sizes, [*sizes[1:], 0], strict=True):
        for seed in range(1, comparison.config.compare.seeds + 1):
            trials += [Trial(arm, size, seed, larger) for arm in arms if arm.uses_rows]
    return trials


def finished(comparison: Comparison, trial: Trial) -> dict[str, Any] | None:
    """The content of the trial's trial.json; None if it is to be run.

    A trial that failed is run again, unless its failure was an InputError or diverged training: only other settings
    cure them.

    Raises InputError if the trial has succeeded with other settings.
    """
    folder = comparison.folder / trial.folder
    if not (folder / 'trial.json').exists():
        return None
    record = read_json_object(folder / 'trial.json')
    if record['status'] != 'done':
        return record if record['permanent'] and is_of(comparison, trial, record) else None
    _check_settings(comparison, trial, record)
    return record


def earlier(comparison: Comparison, arms: list[Arm]) -> list[tuple[Trial, dict[str, Any]]]:
    """The trials of these arms that an earlier call has run, with their trial.json.

    Those that failed with other settings are left out. Raises InputError if one has succeeded with other settings: the
    config.json of the folder is that of all its trials.
    """
    paths = [(trial, comparison.folder / trial.folder / 'trial.json') for trial in listed(comparison, arms)]
    records = [(trial, read_json_object(path)) for trial, path in paths if path.exists()]
    for trial, record in records:
        if record['status'] == 'done':
            _check_settings(comparison, trial, record)
    return [(trial, record) for trial, record in records if is_of(comparison, trial, record)]


def _check_settings(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> None:
    if not is_of(comparison, trial, record):
        folder = comparison.folder / trial.folder
        raise InputError(
            f'{folder} is a trial of other settings of this arm, other rows, another base or an earlier lmtrain: '
            f'delete {folder.parent} to run the arm again, or use another --workdir'
        )


def is_of(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> bool:
    """Whether a trial.json is of the present settings, rows and base."""
    return record['digest'] == _digest(comparison, trial)


def run(comparison: Comparison, trial: Trial, execute) -> dict[str, Any]:
    """Runs a trial and writes its trial.json, whose content it returns.

    Args:
      execute: (comparison, trial, folder) -> what the kind of its arm adds to trial.json.

    Raises what ends a whole comparison: a signal, a full disk.
    """
    folder = comparison.folder / trial.folder
    path, digest = folder / 'trial.json', _digest(comparison, trial)
    if _started(folder) not in (None, digest):
        shutil.rmtree(folder)  # failed or interrupted with other settings: their run cannot be continued
    interrupted = (folder / 'log.txt').exists() and not path.exists()  # the seconds of that start are not all known
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STARTED, digest.encode())
    for name in ('test.json', STAGE):  # of what an earlier trial here has chosen
        (folder / name).unlink(missing_ok=True)
    about = {'arm': trial.arm.name, 'kind': trial.arm.kind, 'size': trial.size, 'seed': trial.seed}
    about |= {'digest': digest, 'interrupted': interrupted}
    try:
        with open(folder / 'log.txt', 'a', encoding='utf-8') as log, contextlib.redirect_stdout(log):
            record = about | {'status': 'done', 'reason': ''} | execute(comparison, trial, folder)
    except Exception as error:
        record = about | failure(error, folder)
    write_json(folder / 'trial.json', record, indent=1)
    return record


def _started(folder: Path) -> str | None:
    """The digest of the trial that was run in a folder or begun; None if there is none, or if it is not known."""
    if (folder / 'trial.json').exists():
        return read_json_object(folder / 'trial.json')['digest']
    path = folder / STARTED  # missing in folders of earlier versions
    return path.read_text(encoding='utf-8') if path.exists() else None


def update(comparison: Comparison, trial: Trial, record: dict[str, Any], measure) -> dict[str, Any]:
    """Writes what `measure` makes of a finished trial's record to its trial.json, and returns it.

    Args:
      measure: (comparison, trial, record) -> the record.

    The file of a trial that cannot be measured stays as it is.
    """
    folder = comparison.folder / trial.folder
    try:
        with open(folder / 'log.txt', 'a', encoding='utf-8') as log, contextlib.redirect_stdout(log):
            record = measure(comparison, trial, record)
    except Exception as error:
        return record | failure(error, folder)
    write_json(folder / 'trial.json', record, indent=1)
    return record


def failure(error: Exception, folder: Path) -> dict[str, Any]:
    """{'status', 'reason', 'permanent'} of an error in a trial, with its traceback in the folder's error.txt.

    Called while the error is handled; raises it again if it ends a whole comparison.
    """
    ended = isinstance(error, lifecycle.RunEnded)
    if isinstance(error, OSError) or ended and error.code != lifecycle.NON_FINITE:
        raise error
    (folder / 'error.txt').write_text(traceback.format_exc(), encoding='utf-8')
    permanent = ended or isinstance(error, InputError)
    reason = str(error) if permanent else f'{type(error).__name__}: {error}'
    return {'status': 'failed', 'reason': reason, 'permanent': permanent}


def _digest(comparison: Comparison, trial: Trial) -> str:
    """Identifies everything that a trial's result depends on."""
    shared = comparison.config.copy_and_resolve_references().to_dict()
    shared = {name: section for name, section in shared.items() if name not in UNREAD}
    shared['init'] = shared['init'] | {'base': comparison.base.hash}  # wherever it is
    shared['data'] = shared['data'] | {'root': '', 'cache': ''}
    shared['task'] = shared['task'] | {'train': (), 'validation': (), 'test': ()}  # their rows are in the facts
    facts = [comparison.task.facts['digest'], shared, trial.arm.kind, trial.arm.settings]
    facts += [trial.size, trial.seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
