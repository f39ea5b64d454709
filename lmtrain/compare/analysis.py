"""What follows from the trials: accuracies with intervals, differences between arms, code lengths, break-even."""

import itertools
import statistics as python_statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.compare import description_length
from lmtrain.cost import ledger
from lmtrain.evaluation import statistics
from lmtrain.evaluation.equivalence import equivalence
from lmtrain.files import read_json_lines

Records = Sequence[dict[str, Any]]  # of trials, as in results.json


class Hits:
    """Which test rows each arm has right at each size: {(arm, size): float64 [W, N]}, seeds in their order."""

    def __init__(self, folder: Path, records: Records):
        self.of, self.losses = {}, {}
        tested = sorted((each for each in records if each['test']), key=lambda each: each['seed'])
        for record in tested:
            lines = read_json_lines(folder / record['folder'] / 'predictions.jsonl')
            cell = record['arm'], record['size']
            self.of.setdefault(cell, {})[record['seed']] = np.array([line['right'] for line in lines], np.float64)
            self.losses.setdefault(cell, []).append(record['test']['loss'])

    def sizes(self) -> list[int]:
        """The sizes with trials, ascending, without 0 unless there is no other."""
        sizes = sorted({size for _, size in self.of})
        return [size for size in sizes if size] or sizes

    def at(self, arm: str, size: int) -> dict[int, np.ndarray]:
        """{seed: hits [N]} of an arm; those of size 0 hold for every size, under seed 0."""
        if (arm, size) in self.of:
            return self.of[arm, size]
        return dict(enumerate(self.of.get((arm, 0), {}).values()))  # it has one seed


def summary(hits: Hits) -> list[dict[str, Any]]:
    """The accuracy of every arm and size over rows and seeds, with its interval (`statistics.proportion`)."""
    lines = []
    for (arm, size), by_seed in hits.of.items():
        estimate = statistics.proportion(np.stack(list(by_seed.values())))
        lines.append(
            {
                'arm': arm,
                'size': size,
                'seeds': len(by_seed),
                'accuracy': estimate.mean,
                'interval': [estimate.low, estimate.high],
                'stderr': estimate.stderr,
                'loss': float(np.mean(hits.losses[arm, size])),
            }
        )
    return lines


def pairs(hits: Hits, arms: Sequence[str], margin: float) -> list[dict[str, Any]]:
    """The difference of every two arms at every size, over common seeds, and whether it is within the margin.

    Holm's correction is over the pairs of a size, of each of both tests; intervals are not corrected.
    """
    lines = []
    for size in hits.sizes():
        common = {
            pair: values
            for pair in itertools.combinations(arms, 2)
            if (values := _common(*(hits.at(arm, size) for arm in pair)))
        }
        tested = []
        for pair, values in common.items():
            difference = statistics.compare(*values)
            interval = None if difference.low is None else [difference.low, difference.high]
            about = {'size': size, 'arms': list(pair), 'difference': difference.mean, 'interval': interval}
            about |= {'p': difference.p, 'detectable': difference.detectable}
            within = equivalence(*values, margin, alpha=statistics.LEVEL / len(common))
            tested.append(about | {'p_equivalent': within.p, 'rows_to_decide': within.rows})
        for name in ('p', 'p_equivalent'):
            usable = [each for each in tested if each[name] is not None]
            adjusted = statistics.holm([each[name] for each in usable]) if usable else []
            for each, p in zip(usable, adjusted, strict=True):
                each[f'{name}_holm'] = p
        lines += tested
    return lines


def _common(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Hits [W, N] of both arms under the seeds that both have; an arm without seeds [N] is compared with every seed."""
    if not one or not other:
        return None
    if 0 in one and 0 in other:
        return one[0][None], other[0][None]
    if 0 in one or 0 in other:
        own = other if 0 in one else one
        stacked = np.stack(list(own.values()))
        single = np.broadcast_to((one if 0 in one else other)[0], stacked.shape)
        return (single, stacked) if 0 in one else (stacked, single)
    seeds = sorted(one.keys() & other.keys())
    return (np.stack([one[seed] for seed in seeds]), np.stack([other[seed] for seed in seeds])) if seeds else None


def code_lengths(records: Records, sizes: Sequence[int], num_classes: int) -> dict[str, dict[str, Any]]:
    """{arm: its prequential code length, the mean over seeds}, of the arms that have scored every block."""
    nats: dict[str, dict[int, dict[int, float]]] = {}
    for record in records:
        for block in record.get('blocks') or ():
            nats.setdefault(record['arm'], {}).setdefault(block['seed'], {})[block['begin']] = block['nats']
    lengths = {}
    for arm, by_seed in nats.items():
        complete = [own for own in by_seed.values() if all(size in own for size in sizes[:-1])]
        if not complete or len(sizes) < 2:
            continue
        codes = [description_length.code_length(sizes, [own[n] for n in sizes[:-1]], num_classes) for own in complete]
        blocks = [[end, python_statistics.fmean(code.blocks[i][1] for code in codes)] for i, end in enumerate(sizes)]
        bits = python_statistics.fmean(code.bits for code in codes)
        lengths[arm] = {'bits': bits, 'uniform_bits': codes[0].uniform_bits, 'blocks': blocks, 'seeds': len(codes)}
    return lengths


def sensitivity(records: Records, field: str) -> dict[str, dict[str, Any]]:
    """{arm: how its accuracy on the selection rows varies over other prompts}, of all seeds together.

    It is `statistics.spread`, whose intervals are over prompts: the rows are the same for all of them, and are not
    resampled. 'stdev_within' is the standard deviation within a seed, where the demonstrations of 'orders' are the
    same. 'worst_interval' and 'best_interval' are Wilson intervals over the selection rows, for this one prompt: the
    best of several is an optimistic choice.

    Args:
      field: of trial.json, 'draws' (sets and orders of demonstrations), 'orders' (of the same ones) or 'templates'.
    """
    measured: dict[str, list[list[float]]] = {}
    rows = {}
    for record in records:
        if own := [accuracy for accuracy in record.get(field) or () if accuracy is not None]:
            measured.setdefault(record['arm'], []).append(own)
            rows[record['arm']] = record['selection']['rows']
    return {arm: _spread(groups, rows[arm]) for arm, groups in measured.items()}


def _spread(groups: Sequence[Sequence[float]], rows: int) -> dict[str, Any]:
    """`statistics.spread` of accuracies on `rows` rows, and what `sensitivity` adds.

    Args:
      groups: the accuracies of each seed.
    """
    result = statistics.spread([accuracy for own in groups for accuracy in own])
    for name in ('worst', 'best'):
        hits = np.arange(rows) < round(result[name] * rows)
        result[f'{name}_interval'] = list(statistics.proportion(hits)[2:])
    freedom = result['n'] - len(groups)
    squares = sum((accuracy - python_statistics.fmean(own)) ** 2 for own in groups for accuracy in own)
    return result | {'stdev_within': (squares / freedom) ** 0.5 if freedom else None}


def forgetting(records: Records, text_digest: str) -> dict[str, dict[str, float]]:
    """{arm: the means over seeds of what its trials measured on the base's own text}.

    Args:
      text_digest: of compare.base_text, '' is the text of the base's run. Trials measured on another text are left out.
    """
    measured: dict[str, list[dict[str, float]]] = {}
    for record in records:
        if record.get('forgetting') and record.get('forgetting_text', '') == text_digest:
            measured.setdefault(record['arm'], []).append(record['forgetting'])
    return {
        arm: {name: python_statistics.fmean(each[name] for each in own) for name in own[0]}
        for arm, own in measured.items()
    }


def break_even(records: Records, kinds: dict[str, str], size: int) -> list[dict[str, Any]]:
    """The queries after which each trained arm has cost less than each prompt, at a size."""
    ledgers = {arm: _mean_ledger(records, arm, size) for arm in kinds}
    lines = []
    for prompt, trained in itertools.product(kinds, kinds):
        own, other = ledgers[prompt], ledgers[trained]
        if kinds[prompt] != 'train' and kinds[trained] == 'train' and own and other:
            queries = ledger.break_even(own, other)
            about = {'prompt': prompt, 'trained': trained, 'size': size, 'queries': queries}
            about['queries_cached'] = ledger.break_even(own, other, cached=True)
            lines.append(about | {'curve': ledger.curve(own, other)})
    return lines


def _mean_ledger(records: Records, arm: str, size: int) -> dict[str, float] | None:
    """The means over the seeds of the fields that `break_even` reads; None without a finished trial."""
    own = [
        each['ledger']
        for each in records
        if each['arm'] == arm and each['status'] == 'done' and each['size'] in (size, 0)
    ]
    fields = ('train_flops', 'selection_flops', 'query_flops', 'query_flops_cached')
    return {field: python_statistics.fmean(each[field] for each in own) for field in fields} if own else None
