"""A comparison from its config to its report: rows, trials, test stage, results.json."""

import contextlib
import io
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmtrain.compare import (
    arms,
    default,
    forgetting,
    planning,
    predictors,
    progress,
    prompted,
    report,
    results,
    rows,
    testing,
    trained,
    trials,
    updates,
)
from lmtrain.compare.arms import Arm
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.errors import InputError
from lmtrain.files import local_path, write_json
from lmtrain.models import hub
from lmtrain.report import terminal
from lmtrain.runtime import lifecycle
from lmtrain.training import workdir
from lmtrain.training.choose import check_is_one_model
from lmtrain.training.init_from import open_base

EXECUTE = {'train': trained.run, 'prompt': prompted.run}


def run(config, directory) -> dict[str, Any]:
    """Runs a comparison in the folder `directory`, or what is missing of one that was stopped.

    Every arm is tried with every number of rows and every seed. What a trial leaves open, such as the learning rate, is
    chosen on the selection rows. When all trials have chosen, the test stage reads the test rows.

    Args:
      config: ConfigDict, from `get_config()` of configs/compare.py or of a file that starts from it.

    Returns:
      The content of results.json.

    Raises:
      InputError, OSError: config, rows, base or folder are wrong; nothing was trained.
      lifecycle.RunEnded: a signal requested a stop; finished trials are saved. Has the exit code.
    """
    directory = local_path(directory, '--workdir')
    selected = arms.read(config.compare)
    workdir.check(directory)
    known = arms.read(config.compare, [name for name in config.compare.arms if (directory / 'trials' / name).is_dir()])
    with workdir.lock(directory), stop_on_signal():
        config = default.fill_in(config, directory)
        comparison, notes = assemble(config, directory, selected)
        # First: other settings are refused before config.json has them.
        listed = _listed(comparison, selected)
        earlier = trials.earlier(comparison, [arm for arm in known if arm not in selected])
        write_json(directory / 'config.json', comparison.config.to_dict(), indent=1)
        finished = [*_run_trials(comparison, selected, listed, notes), *_updated(comparison, earlier)]
        shown = [arm for arm in known if arm in [*selected, *(trial.arm for trial, _ in earlier)]]
        finished = testing.run(comparison, finished)
        content = results.collect(comparison, shown, finished, notes)
        write_json(directory / 'results.json', content, indent=1)
        page = report.write(directory)
    print('\n' + report.ending(content, directory, page))
    return content


def dry_run(config, directory) -> str:
    """The page of `--dry_run`: what every arm would need. Divides the rows; trains nothing.

    If the base is to be pretrained first, a base of one step in a temporary folder has its shapes.
    """
    directory = local_path(directory, '--workdir')
    selected = arms.read(config.compare)
    with contextlib.ExitStack() as stack:
        notes = []
        if default.lacks_base(config, directory):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            notes.append('a base is pretrained first; its time is not part of the total')
        with contextlib.redirect_stdout(io.StringIO()):
            config = default.fill_in(config, directory, steps=1)
        comparison, others = assemble(config, directory, selected)
        lines = [terminal.remark(note) for note in (*notes, *others)]
        return '\n'.join([*lines, planning.page(comparison, selected)])


def assemble(config, directory: Path, selected: Sequence[Arm]) -> tuple[Comparison, list[str]]:
    """(rows, base and plans of a comparison; notes about rows and sizes that are left out)."""
    if not config.init.base:
        raise InputError(
            'config.init.base is empty: name a Hugging Face directory or the folder of a run, such as '
            '`lmtrain train --config=configs/compare_base.py --workdir=runs/base` writes'
        )
    config.init.base = hub.local_directory(config.init.base)
    check_is_one_model(config.init.base, 'config.init.base')
    for section, field in (('compare', 'seeds'), ('evaluate', 'every_steps')):
        if config[section][field] < 1:
            raise InputError(f'config.{section}.{field} = {config[section][field]}: it must be at least 1')
    if not 0 < config.compare.margin < 1:
        raise InputError(f'config.compare.margin = {config.compare.margin}: a difference of accuracies between 0 and 1')
    rows.check_templates(config.compare.templates)
    task = rows.divide(config, directory / 'rows')
    sizes, notes = rows.sizes(config, len(task.train), task.facts['notes'])
    notes = [*task.facts['notes'], *notes]
    rows.write_subsets(task, sizes, config.compare.seeds)
    base = open_base(config.init.base, config.init.adapter, config.init.ignore)
    comparison = Comparison(config, directory, task, base, predictors.base(config), sizes)
    cut = sum(length > config.data.seq_len for length in trained.lengths(comparison, trained.HEAD))
    notes += (
        [f'{cut} training and selection rows have more than data.seq_len = {config.data.seq_len} tokens'] if cut else []
    )
    text = forgetting.own_text(comparison)
    notes += [f'forgetting is not measured: {text.reason}'] if text.reason else []
    comparison = comparison._replace(own_text=text.batches, text_digest=text.digest, programs={})
    return comparison._replace(plans={arm.name: planning.plan(comparison, arm) for arm in selected}), notes


def _listed(comparison: Comparison, selected: Sequence[Arm]) -> list[tuple[Trial, dict[str, Any] | None]]:
    """The trials of the arms that can run, each with what `trials.finished` returns; raises what it raises."""
    able = [arm for arm in selected if not comparison.plans[arm.name].reason]
    return [(trial, trials.finished(comparison, trial)) for trial in trials.listed(comparison, able)]


def _run_trials(
    comparison: Comparison,
    selected: Sequence[Arm],
    listed: Sequence[tuple[Trial, dict[str, Any] | None]],
    notes: Sequence[str],
) -> trials.Finished:
    """All trials of `_listed` with their trial.json; those that are finished are not run again."""
    display, finished = progress.Display(comparison, selected, len(listed), notes), []
    for trial, record in listed:
        if record is None:
            display.begin(trial)
            record = trials.run(comparison, trial, EXECUTE[trial.arm.kind])
        [(trial, record)] = _updated(comparison, [(trial, record)])
        if trial.arm.kind == 'train' and record['status'] == 'done':
            trained.remove_others(comparison.folder / trial.folder, record['chosen'])
        finished.append((trial, record))
        display.end(trial, record)
    display.close()
    return finished


def _updated(comparison: Comparison, finished: trials.Finished) -> trials.Finished:
    """Trials of this call or an earlier one, with the measurements that other sizes, seeds or draws ask for."""
    return [
        (trial, trials.update(comparison, trial, record, updates.measure))
        if record['status'] == 'done' and updates.outdated(comparison, trial, record)
        else (trial, record)
        for trial, record in finished
    ]


class Stopped(BaseException):
    """A signal arrived. It may arrive anywhere, so it is no Exception: nothing takes it for an error of a trial."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[None]:
    """A context in which SIGTERM and SIGINT raise RunEnded(REQUEUE). A training run has its own handlers: it saves."""

    def stop(number, frame):
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Stopped as stopped:
        message = f'{stopped}: finished trials are saved, run the same command to continue'
        raise lifecycle.RunEnded(lifecycle.REQUEUE, message) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
