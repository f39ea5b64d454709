"""a table of runs: config fields that differ, state, scores, FLOPs and time; and a plot of their curves.

lmtrain runs runs
lmtrain runs runs --filter=adapt.method=lora --filter='loss<2' --sort=-bits_per_byte
lmtrain runs runs/which --columns=trial.arm,trial.size,test.accuracy --to=runs.csv
lmtrain runs runs --plot=curves.png --x=flops

A folder contains runs, at any depth, or a comparison with its trials. The fields
are those of the config; name, state, step, loss and the other scores, flops,
seconds; validation.*, test.*, cost.* (results.json); and trial.*, selection.*,
ledger.* (trial.json). The last part of a name is enough if it is unique. A run
is 'running' if a process of this machine trains it.
"""

import os
import pathlib
import sys

from absl import flags

from launch import cli
from lmtrain.errors import InputError
from lmtrain.report import run_curves, run_records, runs, terminal

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string('folders', [], 'folders of runs, or of a comparison', flag_values=FLAGS)
flags.DEFINE_multi_string(
    'filter', [], 'FIELD=VALUE, or one of != < <= > >= in place of =; may be repeated', flag_values=FLAGS
)
flags.DEFINE_string('sort', 'name', 'field of the order; -FIELD is descending', flag_values=FLAGS)
text = "fields to show, separated by commas; 'all' with --to; by default what differs, and the results"
flags.DEFINE_list('columns', [], text, flag_values=FLAGS)
flags.DEFINE_string('to', None, 'a .csv or .json file to write the same columns to', flag_values=FLAGS)
flags.DEFINE_string('plot', None, 'a .png or .svg file for the validation curves', flag_values=FLAGS)
flags.DEFINE_enum('x', 'step', list(run_curves.AXES), "of --plot: 'step', 'seconds' or 'flops'", flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    if not values.folders:
        raise InputError('name a folder of runs: lmtrain runs FOLDER...')
    for name, suffixes in (('to', ('.csv', '.json')), ('plot', ('.png', '.svg'))):
        check_file(name, values[name].value, suffixes)
    records = [run_records.read(folder) for folder in run_records.find(values.folders)]
    if not records:
        raise InputError(f'no run in {", ".join(values.folders)}: a run has config.json and metrics.jsonl')
    name_below(records, values.folders)
    records = runs.select(records, values.filter)
    if not records:
        raise InputError(f'no run fulfils --filter={" --filter=".join(values.filter)}')
    records = runs.order(records, values.sort)
    all_fields = values.columns == ['all']
    columns = [runs.field(name, records) for name in values.columns if name != 'name' and not all_fields]
    head, *lines = runs.table(records, columns)
    print(terminal.style(head, 'bold', terminal.has_colour(sys.stdout)))
    print('\n'.join(lines))
    print(f'\n{runs.counts(records)}')
    if values.to:
        runs.write(records, ('all',) if all_fields else columns, pathlib.Path(values.to))
        print(f'written: {values.to}')
    if values.plot:
        absent = run_curves.plot(records, pathlib.Path(values.plot), values.x)
        print(f'written: {values.plot}')
        if absent:
            print(cli.wrapped(f'without a curve: {", ".join(absent)}', '  ').lstrip())


def check_file(flag: str, path: str | None, suffixes: tuple[str, ...]) -> None:
    """Raises InputError if the file of a flag cannot be written or has another suffix."""
    if path and not path.endswith(suffixes):
        raise InputError(f'--{flag}={path}: the name of the file ends with {" or ".join(suffixes)}')
    if path and not pathlib.Path(path).parent.is_dir():
        raise InputError(f'--{flag}={path}: there is no directory {pathlib.Path(path).parent}: create it first')


def name_below(records: list[run_records.Record], folders: list[str]) -> None:
    """Names each run by its path below the named folders, or below what these have in common."""
    root = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    for record in records:
        *parts, last = os.path.relpath(os.path.abspath(record['folder']), root).split(os.sep)
        if 'trials' in parts:
            parts.remove('trials')
        record['name'] = record['name'] if last == '.' else os.sep.join([*parts, last])
