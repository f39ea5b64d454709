"""The folder of a run: its lock, its free space, the config that it belongs to, and a record of each start.

config.json        the resolved config           fingerprints.json  hashes of data, base, reward
lineage.jsonl      one line for each start       .lock              locked while a process trains there
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax

from lmtrain.checkpoint import SaveFailed
from lmtrain.errors import InputError
from lmtrain.files import flatten_fields, read_json_lines, read_json_object, write_json
from lmtrain.report.run_config import VERSION, WrongRun, upgrade
from lmtrain.runtime import lifecycle, multihost
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import has_setting
from lmtrain.training import budget_change

# Which fields a resumed run may change; the first match wins. Every other field is 'fixed': it changes the result.
#   free      does not change the result
#   rounding  the same sums in another order: the run resumes, but is not bitwise equal to the uninterrupted one
#   budget    'free', 'continued', 'extended' or 'fixed' by `budget_change.kind`: the schedule depends on the budget
#   pooled    'fixed' if the saved or the current loss pools the outputs of a row (only these read the field),
#             else 'free'
MAY_CHANGE = (
    (r'log\..*', 'free'),
    (r'evaluate\..*', 'free'),
    (r'checkpoint\..*', 'free'),
    (r'sample\..*', 'free'),
    (r'plan\..*', 'free'),
    (r'watchdog\..*', 'free'),
    (r'policy\.(show_every|evaluate_temperature)', 'free'),
    (r'sdc_check_every', 'free'),
    # Where the data is, and how it is split and written: its fingerprint shows whether it is the same.
    (r'data\.(cache|root|split)|task\.(template|date|labels)', 'free'),
    (r'mesh\..*', 'rounding'),
    (r'model\.(attention|remat|unroll)', 'rounding'),
    (r'optimizer\.accumulate', 'rounding'),
    (r'budget\..*|schedule\.(begin|warmup_budget)', 'budget'),
    (r'objective\.pool', 'pooled'),
)
CONSEQUENCES = {
    'rounding': ' (the same sums in another order: no longer bitwise equal)',
    'continued': ' (the schedule continues from before its decay)',
    'extended': ' (a new schedule begins)',
}
ABSENT = '(absent)'
VISIBLE = 15.0  # seconds after which a file that one process wrote must be visible to the others


class ConfigDifference(NamedTuple):
    """A field whose value in a resumed run differs from the saved one.

    `kind` is 'free', 'rounding', 'continued', 'extended' or 'fixed'.
    """

    field: str
    saved: Any
    current: Any
    kind: str

    def __str__(self) -> str:
        return f'{self.field}: saved {json.dumps(self.saved)}, now {json.dumps(self.current)}'


def check(workdir: str | os.PathLike, state_bytes: int = 0, keep: int = 0) -> None:
    """Creates the folder, and checks that it is writable and has space for `keep` + 1.2 checkpoints of `state_bytes`.

    `keep` is keep_last + keep_best; one more exists while it is written. Existing checkpoints count as free space,
    renamed ones do not.

    Raises NotADirectoryError, PermissionError or OSError (ENOSPC) naming the folder and the way out.
    """
    path = Path(workdir).absolute()
    way_out = 'choose another --workdir'
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f'workdir {path}: {error.filename or path} is not a directory; {way_out}') from error
    except OSError as error:
        raise PermissionError(f'workdir {path} cannot be written: {error.strerror}; {way_out}') from error
    folders = [folder for folder in (path / 'checkpoints').glob('*') if re.fullmatch(r'\d+|tmp\..*', folder.name)]
    existing = sum(file.stat().st_size for folder in folders for file in folder.rglob('*') if file.is_file())
    needed, free = (keep + 1.2) * state_bytes - existing, shutil.disk_usage(path).free
    if state_bytes and needed > free:
        raise OSError(
            errno.ENOSPC,
            f'workdir {path}: {needed / 1e9:.3g} GB needed for {keep} checkpoints of {state_bytes / 1e9:.3g} GB and '
            f'the one being written, {free / 1e9:.3g} GB free; make room, lower checkpoint.keep_last or keep_best, '
            f'or {way_out}',
        )


def check_shared(workdir: str | os.PathLike) -> None:
    """Checks that all processes of the run see one folder: a file that process 0 writes must be visible to all.

    Raises InputError naming a process that does not see it, and the folders.
    """
    mark = Path(workdir).absolute() / multihost.all_gather_object(f'.met-{time.time_ns()}')[0]
    if jax.process_index() == 0:
        mark.touch()
    folders = multihost.all_gather_object(str(mark.parent))
    until = time.monotonic() + VISIBLE
    while not (visible := mark.exists()) and time.monotonic() < until:
        time.sleep(0.2)
    blind = [number for number, sees in enumerate(multihost.all_gather_object(visible)) if not sees]
    if jax.process_index() == 0:
        mark.unlink()
    if blind:
        raise InputError(
            f'--workdir: process {blind[0]} does not see in {folders[blind[0]]} what process 0 writes in {folders[0]}: '
            'name one folder on a file system that all processes share'
        )


@contextlib.contextmanager
def exit_on_disk_full(workdir: str | os.PathLike) -> Iterator[None]:
    """A context in which a failed save or a full disk ends the run with the exit code DISK."""
    try:
        yield
    except SaveFailed as error:
        raise lifecycle.RunEnded(lifecycle.DISK, str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f'workdir {workdir}: {error.strerror}; make room, then run the same command to resume'
        raise lifecycle.RunEnded(lifecycle.DISK, message) from error


def lock(workdir: str | os.PathLike) -> TextIO:
    """Locks the folder until the returned file is closed or the process ends, also if it is killed.

    Raises BlockingIOError naming the process that holds the lock.
    """
    file = open(Path(workdir) / '.lock', 'a+', encoding='utf-8')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or 'unknown'
        file.close()
        raise BlockingIOError(
            error.errno,
            f'workdir {workdir}: process {holder} trains there; wait for it, stop it, or use another --workdir',
        ) from error
    file.truncate(0)
    file.write(f'{os.getpid()}\n')
    file.flush()
    return file


def bind(workdir: str | os.PathLike, config: dict[str, Any], fingerprints: dict[str, str]) -> list[ConfigDifference]:
    """Writes config.json into a new folder, or compares it with the one that is there.

    Args:
      config: the resolved config as a nested dict; tuples equal lists.
      fingerprints: {'data': ..., 'tokenizer': ...}; all of them are fixed that the folder has. An older version did
        not record that of a reward.

    Returns:
      The fields that differ and may. config.json then has the new values.

    Raises WrongRun naming each field that differs and may not, with both values.
    """
    path = Path(workdir)
    if not (path / 'config.json').exists():
        if any((path / 'checkpoints').glob('[0-9]*')):
            raise WrongRun(f'workdir {path} holds checkpoints but no config.json; use another --workdir')
        write_json(path / 'fingerprints.json', fingerprints, indent=1)
        # Last: the folder belongs to a run if it exists.
        write_json(path / 'config.json', {'version': VERSION} | config, indent=1)
        return []
    saved, current = read_config(path), _normal(config)
    differences = compare(saved, current)
    recorded = read(path / 'fingerprints.json')
    fingerprints = {name: value for name, value in fingerprints.items() if name in recorded}
    differences += [
        difference._replace(field=f'fingerprint of {difference.field}', kind='fixed')
        for difference in compare(recorded, _normal(fingerprints))
    ]
    fixed = [difference for difference in differences if difference.kind == 'fixed']
    if fixed:
        fields = '\n  '.join(map(str, fixed))
        if all(difference.field.startswith('budget.') for difference in fixed):
            raise WrongRun(
                f'workdir {path} holds this run with another budget:\n  {fields}\n'
                f'The learning rate of schedule.name={saved["schedule"]["name"]!r} depends on the budget. Take\n'
                '--extend to go on with a new schedule from the newest checkpoint, another\n'
                '--workdir for a new run, or the saved values to resume this one'
            )
        raise WrongRun(
            f'workdir {path} belongs to another run:\n  {fields}\n'
            'Use another --workdir for a new run, or the saved values to resume this one'
        )
    if any(difference.kind == 'continued' for difference in differences):
        _take_back_decay(path, saved, current)  # before config.json has the new budget: a killed start repeats it
    if differences:
        write_json(path / 'config.json', {'version': VERSION} | config, indent=1)
    return differences


def _take_back_decay(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Sets aside the checkpoints after the last one before the decay. Raises WrongRun if there is none."""
    step = budget_change.before_decay(path, saved, current)
    if step < 0 and any((path / 'checkpoints').glob('[0-9]*')):
        before, after = budget_change.amount(saved), budget_change.amount(current)
        way_out = 'Take --extend to go on with a new schedule from the newest checkpoint'
        if before.unit == after.unit and after.value < before.value:
            way_out = 'Use another --workdir for a shorter run, or the saved budget'
        raise WrongRun(
            f'workdir {path} holds this run with another budget:\n'
            f'  budget.{before.unit}: saved {before.value:,}, now budget.{after.unit}: {after.value:,}\n'
            f'No checkpoint from before the decay of its learning rate is left.\n{way_out}'
        )
    budget_change.set_aside(path, step)


def compare(saved: dict[str, Any], current: dict[str, Any]) -> list[ConfigDifference]:
    """The fields (dotted paths) in which two nested configs differ, each with its kind from MAY_CHANGE."""
    before, after = flatten_fields(_normal(saved)), flatten_fields(_normal(current))
    pooled = _pools(before) or _pools(after)
    differences = []
    for field in sorted(before.keys() | after.keys()):
        one, other = before.get(field, ABSENT), after.get(field, ABSENT)
        if json.dumps(one) != json.dumps(other):  # 1 and True are not equal there
            kind = next((kind for pattern, kind in MAY_CHANGE if re.fullmatch(pattern, field)), 'fixed')
            if kind == 'budget':
                kind = budget_change.kind(saved, current)
            elif kind == 'pooled':
                kind = 'fixed' if pooled else 'free'
            differences.append(ConfigDifference(field, one, other, kind))
    return differences


def _pools(config: dict[str, Any]) -> bool:
    """Whether the loss of a run reads config.objective.pool; `config` is flat."""
    task = TASKS.get(config.get('task.name'))
    loss = task and task.losses.get(config.get('objective.name') or next(iter(task.losses)))
    return loss is not None and has_setting(loss, 'pool')


def record(workdir: str | os.PathLike, resumed_from: int | None, changed: list[ConfigDifference], **facts: Any) -> None:
    """Appends this start to lineage.jsonl: time (UTC), the step that it resumed from, changed fields, `facts`."""
    line = {
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'resumed_from': resumed_from,
        'changed': [difference._asdict() for difference in changed],
        **facts,
    }
    with open(Path(workdir) / 'lineage.jsonl', 'ab+') as file:
        file.seek(0)
        file.truncate(file.read().rfind(b'\n') + 1)  # an incomplete line of a start that was killed
        file.write(json.dumps(line).encode() + b'\n')


def truncate_jsonl(path: str | os.PathLike, step: int) -> int:
    """Removes lines after `step` and an incomplete last line from a file of JSON lines; returns how many.

    The lines are in the order of their 'step'. Does nothing if there is no file.
    Raises InputError naming a broken line that is not the last one.
    """
    path = Path(path)
    if not path.exists():
        return 0
    end = 0
    with open(path, 'rb+') as file:
        for number, line in enumerate(file, 1):
            try:
                beyond = not line.endswith(b'\n') or json.loads(line)['step'] > step
            except (ValueError, TypeError, KeyError) as error:
                if file.read(1):
                    raise InputError(f'{path}, line {number}: no JSON object with a step: {line[:80]!r}') from error
                beyond = True
            if beyond:
                break
            end += len(line)
        file.seek(end)
        cut = sum(1 for _ in file)
        file.truncate(end)
    return cut


def lost_seconds(workdir: str | os.PathLike, step: int) -> float:
    """Seconds that a start which was killed has spent after `step`, its last checkpoint, as far as timings.jsonl says.

    A lower bound: steps after its last line left no trace.
    """
    seconds, before = 0.0, step
    for line in read_json_lines(Path(workdir) / 'timings.jsonl'):
        if line['step'] > step:
            seconds += line['seconds_per_step'] * (line['step'] - before)
            before = line['step']
    return seconds


def _normal(tree: Any) -> Any:
    """The value after writing and reading it as JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(tree))


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config of the run in a folder, see `run_config.upgrade`. Raises WrongRun."""
    path = Path(workdir) / 'config.json'
    return upgrade(read(path), path)


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run's folder. Raises WrongRun naming the file if it cannot be read."""
    try:
        return read_json_object(path)
    except (OSError, InputError) as error:
        reason = f'{path}: {error.strerror}' if isinstance(error, OSError) else str(error)
        raise WrongRun(f'{reason}. Restore the file, or use another --workdir') from error
