"""Do the 95 % intervals cover, and do the tests detect what their power predicts?

python -m experiments.intervals [--trials=2000] [--comparison=FOLDER]

Every trial draws seeds and test rows anew, and computes the intervals and tests of lmtrain.evaluation.statistics as
`lmtrain compare` does. The true values are known: they are planted.
"""

import argparse
import ast
import collections
import pathlib
import re
import time
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

from experiments import record
from lmtrain.data import python_docs
from lmtrain.evaluation import statistics
from lmtrain.files import read_json_lines

SHORT = 200  # trials of the first figure of a row
ROWS = 200  # of a test set
ACCURACY, ROW_EFFECT = 0.75, 1.5  # of simulated methods; the effect relative to a residual of 1
RESAMPLES = 1000  # of a bootstrap
FEW = 20  # seeds of a comparison
CLASSES, TRAINED, POPULATION = 8, 64, 200  # packages, rows that a classifier learns from, classifiers
NUM_ROWS, NUM_WORDS = 3000, 2000  # of all classifiers: half of the rows are for training

Draw = Callable[[np.random.Generator, int, int], np.ndarray]  # (rng, seeds, rows) -> hits [methods, seeds, rows]


def simulated(seed_effect: float) -> tuple[Draw, float]:
    """(two runs of one method, the standard deviation of its accuracy between seeds).

    A row is right if level + seed + row + residual > 0, all normal: crossed random effects behind a threshold.
    """
    scale = np.sqrt(1 + ROW_EFFECT**2 + seed_effect**2)
    level = scale * 0.6744898  # the normal quantile of ACCURACY
    effects = seed_effect * np.random.default_rng(0).standard_normal(100_000)

    def draw(rng, seeds, rows):
        row_effects = ROW_EFFECT * rng.standard_normal(rows)
        own = seed_effect * rng.standard_normal((2, seeds, 1))
        return level + own + row_effects + rng.standard_normal((2, seeds, rows)) > 0

    return draw, float(np.std(ndtr((level + effects) / np.sqrt(1 + ROW_EFFECT**2))))


def resampled(hits: np.ndarray) -> Draw:
    """Two runs of a method whose predictions are known: seeds and rows are drawn from hits [seeds, rows]."""

    def draw(rng, seeds, rows):
        on = rng.integers(hits.shape[1], size=rows)
        return hits[rng.integers(len(hits), size=(2, seeds, 1)), on]

    return draw


def docstrings() -> tuple[list[str], list[str]]:
    """(texts, labels): docstrings of the standard library, and the packages with the most of them."""
    rows = []
    for module, text in python_docs.documents():
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except SyntaxError:  # a page of the reference
            continue
        documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        texts = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
        rows += [(text, module.partition('.')[0]) for text in texts if text and len(text) > 40]
    common = [name for name, _ in collections.Counter(label for _, label in rows).most_common(CLASSES)]
    unique = list(dict(row for row in rows if row[1] in common).items())
    chosen = np.random.default_rng(0).permutation(len(unique))[:NUM_ROWS]
    return [unique[index][0] for index in chosen], [unique[index][1] for index in chosen]


def classifiers() -> np.ndarray:
    """Hits [classifiers, rows] of naive Bayes: each learns from TRAINED rows of its own, and predicts the same rows."""
    texts, labels = docstrings()
    words = [re.findall(r'[a-z]{2,}', text.lower()) for text in texts]
    common = collections.Counter(word for row in words for word in row).most_common(NUM_WORDS)
    names = {word: index for index, (word, _) in enumerate(common)}
    counts = np.zeros((len(texts), len(names)), np.float32)
    for index, row in enumerate(words):
        np.add.at(counts[index], [names[word] for word in row if word in names], 1)
    classes = np.unique(labels, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    train, test = np.split(np.arange(len(texts)), 2)
    hits = []
    for _ in range(POPULATION):
        chosen = rng.choice(train, TRAINED, replace=False)
        own = np.eye(CLASSES, dtype=np.float32)[classes[chosen]].T  # [classes, chosen rows]
        words_of = own @ counts[chosen] + 0.1
        scores = np.log(words_of / words_of.sum(1, keepdims=True)) @ counts[test].T + np.log(own.sum(1) + 1)[:, None]
        hits.append(scores.argmax(0) == classes[test])
    return np.array(hits)


def of_comparison(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{arm and size: hits [seeds, rows]} of the predictions in a comparison, of at least FEW seeds.

    Two draws from fewer seeds have seeds in common, and differ less than two runs of a method.
    """
    trials = collections.defaultdict(list)
    for path in sorted(folder.glob('trials/*/*/predictions.jsonl')):
        size = path.parent.name.partition('-')[0]
        trials[f'{path.parent.parent.name}, {size}'].append([row['right'] for row in read_json_lines(path)])
    return {name: np.array(hits) for name, hits in trials.items() if len(hits) >= FEW}


def coverage(name: str, draw: Draw, accuracy: float, seeds: int, trials: int) -> dict:
    """How often the intervals of a method's accuracy, and of its difference to itself, hold the true values."""
    intervals: dict[str, list] = collections.defaultdict(list)
    for trial in range(trials):
        first, second = draw(np.random.default_rng((seeds, trial)), seeds, ROWS)
        intervals['accuracy'].append(statistics.proportion(first))
        if seeds > 1:
            intervals['mixed effects'].append(statistics.crossed_mean(first * 1.0 - second))
        intervals['bootstrap'].append(statistics.bootstrap_difference(first, second, seed=trial, resamples=RESAMPLES))
    result = {'method': name, 'seeds': seeds, 'rows': ROWS, 'trials': trials, 'intervals': {}}
    for what, estimates in intervals.items():
        truth = accuracy if what == 'accuracy' else 0.0
        covers = np.array([estimate.low <= truth <= estimate.high for estimate in estimates])
        width = float(np.mean([estimate.high - estimate.low for estimate in estimates]))
        shares = {'covers': float(covers.mean()), 'covers_first': float(covers[:SHORT].mean())}
        result['intervals'][what] = shares | {'width': width}
    return result


def planted(rows: int, discordance: float, difference: float, hits: np.ndarray, trials: int) -> dict:
    """How often McNemar's test detects a difference that is planted into the predictions `hits` [rows] of one arm."""
    rng = np.random.default_rng(rows)
    other, order = hits.copy(), rng.permutation(len(hits))
    for right, share in ((False, (discordance + difference) / 2), (True, (discordance - difference) / 2)):
        other[order[hits[order] == right][: round(share * len(hits))]] = not right
    drawn = rng.integers(len(hits), size=(trials, rows))
    detected = [statistics.mcnemar(other[on], hits[on]) < 0.05 for on in drawn]
    true = float(np.mean(other != hits)), float(other.mean() - hits.mean())
    power = statistics.mcnemar_power(rows, *true)
    about = {'test': 'McNemar', 'rows': rows, 'discordance': true[0], 'difference': true[1], 'trials': trials}
    return about | {'power': power, 'detected': float(np.mean(detected))}


def family(trials: int, arms: int = 6) -> dict:
    """How often at least one of all pairs of equal arms is claimed to differ, with and without Holm's correction."""
    claimed = np.zeros(2)
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        hits = 0.7 * np.sqrt(1 + ROW_EFFECT**2) + ROW_EFFECT * rng.standard_normal(ROWS) > rng.standard_normal(
            (arms, ROWS)
        )
        p = [statistics.mcnemar(hits[i], hits[j]) for i in range(arms) for j in range(i)]
        claimed += min(p) < 0.05, min(statistics.holm(p)) < 0.05
    return {
        'test': 'Holm',
        'arms': arms,
        'trials': trials,
        'uncorrected': float(claimed[0] / trials),
        'holm': float(claimed[1] / trials),
    }


def covered(trial: dict) -> dict:
    """A row of figures of coverage. One seed cannot show the variance between seeds, so it has no target."""
    parts = [
        f'{name} {100 * own["covers"]:.1f} ({100 * own["covers_first"]:.1f})'
        for name, own in trial['intervals'].items()
    ]
    row = {'what': f'{trial["method"]}: {trial["seeds"]} x {trial["rows"]}', 'figure': f'{", ".join(parts)} %'}
    if trial['seeds'] == 1:
        return row | {'target': '', 'reached': None}
    reached = all(0.93 <= own['covers'] <= 0.97 for own in trial['intervals'].values())
    return row | {'target': '93 to 97 %', 'reached': reached}


def detected(trial: dict) -> dict:
    what = f'McNemar, {trial["rows"]} rows, {100 * trial["discordance"]:.0f} % discordant'
    error = np.sqrt(trial['power'] * (1 - trial['power']) / trial['trials'])
    return {
        'what': f'{what}: {100 * trial["difference"]:.1f} points are detected',
        'figure': f'{100 * trial["detected"]:.1f} %',
        'target': f'the power, {100 * trial["power"]:.1f} % (+- {300 * error:.1f})',
        'reached': bool(abs(trial['detected'] - trial['power']) <= 3 * error),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--trials', type=int, default=2000)
    parser.add_argument(
        '--comparison', type=pathlib.Path, help='folder of a comparison whose predictions are resampled'
    )
    flags, begun = parser.parse_args(), time.monotonic()
    methods = {}
    for effect in (0.0, 0.1, 0.3):
        draw, deviation = simulated(effect)
        methods[f'simulated, seeds differ by {100 * deviation:.1f} points'] = draw, ACCURACY
    hits = classifiers()
    deviation = 100 * hits.mean(1).std()
    methods[f'naive Bayes, seeds differ by {deviation:.1f} points'] = resampled(hits), hits.mean()
    if flags.comparison:
        for name, own in of_comparison(flags.comparison).items():
            methods[f'{flags.comparison.name}, {name}'] = resampled(own), own.mean()
    intervals = [
        coverage(name, draw, float(accuracy), seeds, flags.trials)
        for name, (draw, accuracy) in methods.items()
        for seeds in (5, 3, 1)
    ]
    plans = [(500, 0.16, 0.05), (1000, 0.16, 0.05), (200, 0.3, 0.05), (500, 0.16, 0.0)]
    plans.append((ROWS, 0.2, statistics.detectable_difference(ROWS, 0.2)))
    tests = [planted(*plan, hits[0], flags.trials) for plan in plans]
    errors = family(flags.trials // 4)
    pairs = errors['arms'] * (errors['arms'] - 1) // 2
    claimed = {
        'what': f'{pairs} pairs of {errors["arms"]} equal arms: a difference is claimed',
        'figure': f'{100 * errors["holm"]:.1f} % with Holm, {100 * errors["uncorrected"]:.1f} % without',
        'target': '<= 5 %',
        'reached': bool(errors['holm'] <= 0.05),
    }
    record.write(
        'intervals',
        command='python -m experiments.intervals',
        figures=[*map(covered, intervals), *map(detected, tests), claimed],
        trials=[*intervals, *tests, errors],
        not_shown=[] if flags.comparison else [f'predictions of a comparison (--comparison=FOLDER), with {FEW} seeds'],
        seconds=round(time.monotonic() - begun),
    )


if __name__ == '__main__':
    main()
