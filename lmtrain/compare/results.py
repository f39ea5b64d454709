"""results.json of a comparison: a function of what the trials wrote."""

import statistics
from collections.abc import Sequence
from typing import Any

import jax

from lmtrain import tree
from lmtrain.compare import analysis, measures, testing
from lmtrain.compare.arms import Arm
from lmtrain.compare.trials import Comparison, Finished
from lmtrain.cost import ledger
from lmtrain.files import read_json_lines
from lmtrain.report.provenance import provenance


def collect(comparison: Comparison, arms: Sequence[Arm], finished: Finished, notes: Sequence[str]) -> dict[str, Any]:
    """The content of results.json."""
    records = [record | {'test': testing.read(comparison, trial), 'folder': trial.folder} for trial, record in finished]
    compare, model, prices = comparison.config.compare, comparison.model, measures.prices(comparison)
    for record in records:
        if 'ledger' in record:  # at the prices of this call, which may have changed since the trial
            record['ledger'] = record['ledger'] | ledger.money(record['ledger']['device_seconds'], prices)
    hits = analysis.Hits(comparison.folder, records)
    kinds = {arm.name: arm.kind for arm in arms}
    largest = [record for record in records if record['size'] == comparison.sizes[-1]]
    return {
        'task': _task(comparison, records, notes),
        'base': {
            'directory': comparison.config.init.base,
            'text': compare.base_text,
            'parameters': tree.count(model.params),
            'context': model.model.max_len,
            'causal': model.model.causal,
        },
        'arms': {arm.name: _arm(comparison, arm, records) for arm in arms},
        'trials': records,
        'summary': analysis.summary(hits),
        'margin': compare.margin,
        'pairs': analysis.pairs(hits, list(kinds), compare.margin),
        'description_length': analysis.code_lengths(records, comparison.sizes, len(comparison.task.classes)),
        'sensitivity': analysis.sensitivity(largest, 'draws'),
        'order_sensitivity': analysis.sensitivity(largest, 'orders'),
        'template_sensitivity': analysis.sensitivity(records, 'templates'),
        'forgetting': analysis.forgetting(largest, comparison.text_digest),
        'break_even': analysis.break_even(records, kinds, comparison.sizes[-1]),
        'prices': {name: compare[name] for name in ('currency', 'device_hour', 'kwh', 'watts')},
        'provenance': provenance(jax.local_devices()),
    }


def _task(comparison: Comparison, records: Sequence[dict[str, Any]], notes: Sequence[str]) -> dict[str, Any]:
    facts = comparison.task.facts
    about = {'name': comparison.config.task.name, 'text': facts['text'], 'label': facts['label']}
    about |= {'classes': facts['classes'], 'rows': facts['rows'], 'notes': list(notes)}
    about |= {'template': facts['template'], 'chance': 1 / len(facts['classes']), 'majority': None}
    used: dict[tuple[str, int], list[int]] = {}  # [rows of each seed]
    for record in records:
        used.setdefault((record['arm'], record['size']), []).append(record.get('rows_used', record['size']))
    for (arm, size), counts in used.items():
        if min(counts) < size:
            number = f'{min(counts)} to {max(counts)}' if min(counts) < max(counts) else f'{min(counts)}'
            about['notes'].append(
                f'{arm}: of {size} training rows, {number} are used: the others are longer than data.seq_len'
            )
    about['notes'] += _dropped(records)
    if tested := [record for record in records if record['test']]:
        lines = read_json_lines(comparison.folder / tested[0]['folder'] / 'predictions.jsonl')
        labels = [row.fields['label'] for row in comparison.task.train]
        frequent = max(facts['classes'], key=labels.count)
        about['majority'] = sum(line['answer'] == frequent for line in lines) / len(lines)
    return about


def _dropped(records: Sequence[dict[str, Any]]) -> list[str]:
    """Notes about demonstrations that do not fit into the context, from the prompts of the selection rows."""
    means: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for record in records:
        selected = record.get('selection') or {}
        if selected.get('dropped'):
            asked_for = selected['shots_mean'] + selected['dropped'] / selected['rows']
            means.setdefault((record['arm'], record['size']), []).append((selected['shots_mean'], asked_for))
    notes = []
    for (arm, size), counts in means.items():
        held, asked_for = (statistics.fmean(each) for each in zip(*counts, strict=True))
        text = f'{arm}: with {size} training rows, a prompt holds {held:.1f} of {asked_for:.1f} demonstrations'
        notes.append(f'{text}; the others do not fit into the context')
    return notes


def _arm(comparison: Comparison, arm: Arm, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [record for record in records if record['arm'] == arm.name]
    failed = [record for record in own if record['status'] != 'done']
    plan = comparison.plans.get(arm.name)  # None of an arm that only an earlier call has run
    reason = plan.reason if plan else ''
    if not own:
        status = 'skipped'
    else:
        status = 'done' if not failed else 'failed' if len(failed) == len(own) else 'partial'
    return {
        'kind': arm.kind,
        'description': arm.description,
        'overrides': dict(arm.settings.get('overrides', ())),
        'learning_rates': list(arm.settings.get('learning_rates', ())),
        'status': status,
        'reason': reason or (failed[0]['reason'] if failed else ''),
    }
