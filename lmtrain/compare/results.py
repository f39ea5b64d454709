"""results.json of a comparison: a function of what the trials wrote, and its table for a terminal."""

from typing import Any

import numpy as np

from lmtrain import tree
from lmtrain.compare import testing
from lmtrain.compare.arms import Arm
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.files import read_json_lines
from lmtrain.report import terminal

Finished = list[tuple[Trial, dict[str, Any]]]  # trials with the content of their trial.json


def collect(comparison: Comparison, arms: list[Arm], finished: Finished) -> dict[str, Any]:
    """The content of results.json."""
    trials = [record | {'test': testing.read(comparison, trial), 'folder': trial.folder} for trial, record in finished]
    compare, model = comparison.config.compare, comparison.model
    return {
        'task': _task(comparison, finished),
        'base': {
            'directory': comparison.config.init.base,
            'parameters': tree.count(model.params),
            'context': model.model.max_len,
            'causal': model.model.causal,
        },
        'arms': {arm.name: _arm(arm, [record for record in trials if record['arm'] == arm.name]) for arm in arms},
        'trials': trials,
        'summary': _summary(arms, trials),
        'prices': {name: compare[name] for name in ('currency', 'device_hour', 'kwh', 'watts')},
    }


def _task(comparison: Comparison, finished: Finished) -> dict[str, Any]:
    facts = comparison.task.facts
    about = {'name': comparison.config.task.name, 'text': facts['text'], 'label': facts['label']}
    about |= {'classes': facts['classes'], 'rows': facts['rows'], 'notes': facts['notes']}
    about |= {'template': facts['template'], 'chance': 1 / len(facts['classes']), 'majority': None}
    paths = [comparison.folder / trial.folder / 'predictions.jsonl' for trial, _ in finished]
    answers = next(([line['answer'] for line in read_json_lines(path)] for path in paths if path.exists()), [])
    if answers:
        labels = [row.fields['label'] for row in comparison.task.train]
        frequent = max(facts['classes'], key=labels.count)
        about['majority'] = answers.count(frequent) / len(answers)
    return about


def _arm(arm: Arm, records: list[dict[str, Any]]) -> dict[str, Any]:
    failed = [record for record in records if record['status'] != 'done']
    status = 'done' if not failed else 'failed' if len(failed) == len(records) else 'partial'
    return {
        'kind': arm.kind,
        'description': arm.description,
        'overrides': dict(arm.settings.get('overrides', ())),
        'status': status,
        'reason': failed[0]['reason'] if failed else '',
    }


def _summary(arms: list[Arm], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each arm and size: means over the seeds."""
    lines = []
    for arm in arms:
        tested = [record for record in trials if record['arm'] == arm.name and record['test']]
        for size in sorted({record['size'] for record in tested}):
            own = [record['test'] for record in tested if record['size'] == size]
            accuracy = float(np.mean([each['accuracy'] for each in own]))
            loss = float(np.mean([each['loss'] for each in own]))
            lines.append({'arm': arm.name, 'size': size, 'seeds': len(own), 'accuracy': accuracy, 'loss': loss})
    return lines


def table(results: dict[str, Any]) -> str:
    """Accuracy of every arm at every size, in percent."""
    by_cell = {(line['arm'], line['size']): line for line in results['summary']}
    sizes = sorted({size for _, size in by_cell if size})
    rows = [('arm', *(f'{size} rows' for size in sizes))]
    for name, arm in results['arms'].items():
        cells = [by_cell.get((name, size)) or by_cell.get((name, 0)) for size in sizes]
        rows.append((name, *(f'{100 * cell["accuracy"]:.1f}' if cell else arm['status'] for cell in cells)))
    task = results['task']
    title = f'accuracy in % on {task["rows"]["test"]:,} test rows, mean over seeds; chance {100 * task["chance"]:.1f}'
    lines = terminal.table(rows, right=tuple(range(1, len(sizes) + 1)))
    reasons = [terminal.note(name, arm['reason']) for name, arm in results['arms'].items() if arm['reason']]
    return '\n'.join([title, lines[0], '-' * max(map(len, lines)), *lines[1:], *reasons])
