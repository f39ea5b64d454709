"""A comparison from its config to results.json: rows, trials, test stage, report."""

from pathlib import Path
from typing import Any

from lmtrain.compare import arms, report, results, rows, testing, trials
from lmtrain.compare.trials import Comparison
from lmtrain.errors import InputError
from lmtrain.files import local_path, write_json
from lmtrain.training import load as loading
from lmtrain.training import workdir
from lmtrain.training.init_from import open_base


def run(config, directory) -> dict[str, Any]:
    """Runs a comparison in the folder `directory`, or what is missing of one that was stopped.

    Returns:
      The content of results.json.

    Raises:
      InputError, OSError: config, rows, base or folder are wrong; nothing was trained.
      lifecycle.RunEnded: a signal requested a stop; has the exit code.
    """
    directory = local_path(directory, '--workdir')
    selected = arms.read(config.compare)
    workdir.check(directory)
    with workdir.lock(directory):
        write_json(directory / 'config.json', config.to_dict(), indent=1)
        comparison = prepare(config, directory)
        finished = []
        for trial in trials.listed(comparison, selected):
            record = trials.run(comparison, trial)
            print(f'{trial.folder}: {record["status"]} {record["reason"]}', record.get('selection', {}).get('accuracy'))
            finished.append((trial, record))
        testing.run(comparison, finished)
        content = results.collect(comparison, selected, finished)
        write_json(directory / 'results.json', content, indent=1)
        page = report.write(directory)
    print(f'{results.table(content)}\n\n{report.terminal_summary(content)}\n\n{page}')
    return content


def prepare(config, directory: Path) -> Comparison:
    """The rows and the base."""
    if not config.init.base:
        raise InputError('config.init.base is empty: name the folder of a run or a Hugging Face directory')
    task = rows.prepare(config, directory / 'rows')
    sizes, _ = rows.sizes(config, len(task.train))
    rows.write_subsets(task, sizes, config.compare.seeds)
    base = open_base(config.init.base, config.init.adapter, config.init.ignore)
    model = loading.load_directory(config.init.base, config.init.adapter, config.init.ignore)
    return Comparison(config, directory, task, base, model, sizes)
