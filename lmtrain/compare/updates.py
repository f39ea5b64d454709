"""Adds to a finished trial the measurements that a later call requires, or that an earlier version left out.

A later call may have other sizes, seeds, draws or templates.
"""

from typing import Any

from lmtrain.compare import forgetting, measures, prompted, trained
from lmtrain.compare.trials import Comparison, Trial


def outdated(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> bool:
    """Whether `measure` would change the trial's record."""
    scored = [(block['seed'], block['begin'], block['end']) for block in record['blocks']]
    if scored != comparison.spans(trial):
        return True
    if _lacks_costs(trial, record):
        return True
    if trial.arm.kind == 'train':
        return forgetting.is_missing(comparison, trial, record)
    others = _has_other_draws, _has_other_orders, _has_other_templates
    return any(differs(comparison, trial, record) for differs in others)


def measure(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> dict[str, Any]:
    """The record of a trial with all that this comparison measures of a finished trial; its choice stays.

    The trial itself cannot be repeated for them: only the checkpoint of its choice is left.
    """
    chosen, changed = record['chosen'], {}
    if trial.arm.kind == 'train':
        loaded = trained.load(comparison, trial, chosen)
        predict = trained.predictor(comparison, trial, loaded, chosen)
        if forgetting.is_missing(comparison, trial, record):
            changed |= forgetting.record(comparison, trial, loaded)
        if _lacks_costs(trial, record):
            changed['ledger'] = record['ledger'] | trained.latencies(comparison, trial, loaded, chosen)
    else:
        predict = prompted.predictor(comparison, trial, chosen)
        _, form = prompted.prompt(comparison, trial, chosen)
        if _has_other_draws(comparison, trial, record):
            changed['draws_fitted'] = True
            changed['draws'] = prompted.draws(comparison, trial, form, chosen)
        if _has_other_orders(comparison, trial, record):
            count = prompted.held(trial, form, record['selection'])
            changed['orders'] = prompted.orders(comparison, trial, form, chosen, count)
        if _has_other_templates(comparison, trial, record):
            changed['template_texts'] = prompted.template_texts(comparison, trial)
            changed['templates'] = prompted.templates(comparison, trial, chosen, record['selection'])
        if _lacks_costs(trial, record):
            changed['ledger'] = record['ledger'] | prompted.costs(comparison, trial, record, predict)
    return record | changed | {'blocks': measures.blocks(comparison, trial, predict, record['blocks'])}


def _lacks_costs(trial: Trial, record: dict[str, Any]) -> bool:
    """Whether a cost is missing that trials of earlier versions lack: peak memory of a prompt, a cached latency.

    The latency of adapters was that of unmerged weights in these versions.
    """
    own = record['ledger']
    is_timed = 'query_seconds_cached' in own
    return not is_timed or (trial.arm.kind != 'train' and own.get('peak_bytes') is None)


def _has_other_templates(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> bool:
    """Whether the accuracies of a record are of other templates, or of unknown ones, as in earlier versions."""
    texts = prompted.template_texts(comparison, trial)
    return record.get('template_texts', []) != texts or len(record['templates']) != len(texts)


def _has_other_draws(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> bool:
    """Whether a record has more or fewer draws, or has them with the bias of another draw, as in earlier versions."""
    _, form = prompted.prompt(comparison, trial, record['chosen'])
    if len(record['draws']) != prompted.num_draws(comparison, trial, form):
        return True
    is_earlier = not record.get('draws_fitted', False)
    return is_earlier and bool(record['draws']) and record['chosen']['score'] == 'batch'  # the only one with a bias


def _has_other_orders(comparison: Comparison, trial: Trial, record: dict[str, Any]) -> bool:
    """Whether a record has more or fewer orders, or none, as in earlier versions."""
    _, form = prompted.prompt(comparison, trial, record['chosen'])
    count = prompted.held(trial, form, record['selection'])
    return len(record.get('orders', ())) != prompted.num_orders(comparison, trial, form, count)
