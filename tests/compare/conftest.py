"""Synthetic results of comparisons for the tests of the report, and a small comparison for those of the trials."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

TEST_ROWS = 200
MARGIN = 0.03
# name: (kind, accuracy at few rows, accuracy at many, trainable parameters, creation FLOPs, FLOPs of a query)
ARMS = {
    'zero-shot': ('prompt', 0.52, 0.52, 0, 0.0, 4e9),
    'k-shot': ('prompt', 0.60, 0.66, 0, 0.0, 9e10),
    'retrieval': ('prompt', 0.64, 0.76, 0, 2e12, 9e10),
    'prompt-search': ('prompt', 0.66, 0.72, 0, 3e15, 8e10),
    'soft-prompt': ('train', 0.45, 0.70, 8_000, 4e15, 5e9),
    'prefix': ('train', 0.44, 0.73, 150_000, 4e15, 4.4e9),
    'lora': ('train', 0.50, 0.84, 600_000, 5e15, 4e9),
    'head': ('train', 0.48, 0.74, 12_000, 1e15, 4e9),
    'last-layers': ('train', 0.49, 0.79, 9_000_000, 3e15, 4e9),
    'full': ('train', 0.47, 0.83, 134_000_000, 7e15, 4e9),
}


def ledger(kind, parameters, creation, query, size, largest):
    share = (size + 8) / (largest + 8)
    trained = creation * share if kind == 'train' else 0.0
    return {
        'trainable_parameters': parameters,
        'stored_parameters': parameters,
        'stored_bytes': 4 * parameters if kind == 'train' else 2_000 + 90 * size,
        'cache_bytes': 2_000 * size if kind == 'prompt' else 0,
        'train_flops': trained,
        'selection_flops': 4 * trained if kind == 'train' else creation,
        'tokens': 2_000 * size,
        'device_seconds': 5e-14 * max(trained, creation),
        'peak_bytes': 6e8 + 16 * parameters,
        'query_tokens': query / 3e8,
        'query_flops': query,
        'query_flops_cached': min(query, 6e9),
        'prefill_flops': 0.9 * query,
        'decode_flops': 0.1 * query,
        'query_seconds': 0.02 + query / 5e11,
        'query_seconds_cached': 0.02 + min(query, 6e9) / 5e11,
        'update_seconds': 5e-14 * trained if kind == 'train' else 0.0,
        'joules': 65 * 5e-14 * max(trained, creation),
        'price': 1e-5 * 5e-14 * max(trained, creation),
    }


def trial(arm, kind, size, seed, accuracy, costs):
    rate = 10.0 ** -(2 + seed % 2)
    chosen = {'learning_rate': rate, 'step': 120} if kind == 'train' else {'demonstrations': 16, 'select': 'bm25'}
    interval = stats.binomtest(round(TEST_ROWS * accuracy), TEST_ROWS).proportion_ci(method='wilson')
    test = {'rows': TEST_ROWS, 'accuracy': accuracy, 'stderr': (accuracy * (1 - accuracy) / TEST_ROWS) ** 0.5}
    test |= {'interval': list(interval), 'loss': 2.0 * (1 - accuracy), 'engine': 'lmtrain', 'dtype': 'float32'}
    test |= {'attention': 'xla', 'batch_size': 32, 'stopped': None}
    candidates = [{'learning_rate': rate, 'accuracy': accuracy, 'loss': 1.0}]
    return {
        'arm': arm,
        'kind': kind,
        'size': size,
        'seed': seed,
        'status': 'done',
        'reason': '',
        'chosen': chosen,
        'selection': {'rows': 64, 'accuracy': accuracy + 0.01, 'loss': 1.0, 'candidates': candidates},
        'ledger': costs,
        'test': test,
        'folder': f'trials/{arm}/n{size}-seed{seed}',
    }


def pair(size, one, other, rows):
    difference = one[1] - other[1]
    spread = (sum(p * (1 - p) for _, p in (one, other)) * 0.6 / (3 * rows)) ** 0.5
    p = float(2 * stats.norm.sf(abs(difference) / spread))
    interval = [difference - 1.96 * spread, difference + 1.96 * spread]
    names = {'size': size, 'arms': [one[0], other[0]]}
    tests = {'p': p, 'p_equivalent': float(stats.norm.cdf((abs(difference) - MARGIN) / spread))}
    needed = max(abs(difference) / 1.96, (MARGIN - abs(difference)) / 1.64)
    tests['rows_to_decide'] = int(np.ceil(rows * (spread / needed) ** 2))
    return names | tests | {'difference': difference, 'interval': interval, 'detectable': 2.8 * spread}


def make(arms=ARMS, sizes=(8, 32, 128, 512), seeds=(1, 2, 3), rows=TEST_ROWS, majority=0.09, seed=0):
    """results.json of a comparison.

    Args:
      arms: {name: (kind, accuracy at 8 rows, at 512 rows, parameters, creation FLOPs, query FLOPs)}.
      rows: of the test split; decides the widths of the intervals.
    """
    random = np.random.default_rng(seed)
    trials, summary, pairs = [], [], []
    for size in sizes:
        scores = {}
        for name, (kind, few, many, *costs) in arms.items():
            accuracy = few + (many - few) * float(np.log2(size / 8)) / 6
            drawn = [float(np.clip(accuracy + random.normal(0, 0.012), 0, 1)) for _ in seeds]
            for number, value in zip(seeds, drawn):
                trials.append(trial(name, kind, size, number, value, ledger(kind, *costs, size, sizes[-1])))
            stderr = (accuracy * (1 - accuracy) / rows) ** 0.5
            scores[name] = accuracy
            entry = {'arm': name, 'size': size, 'seeds': len(seeds), 'accuracy': accuracy, 'stderr': stderr}
            limits = [max(0.0, accuracy - 1.96 * stderr), min(1.0, accuracy + 1.96 * stderr)]
            summary.append(entry | {'interval': limits, 'loss': 2 * (1 - accuracy)})
        own = [pair(size, one, other, rows) for one, other in itertools.combinations(scores.items(), 2)]
        for name in ('p', 'p_equivalent'):
            for rank, item in enumerate(sorted(own, key=lambda item: item[name])):
                item[f'{name}_holm'] = min(1.0, item[name] * (len(own) - rank))
        pairs += own
    classes = ['json', 're', 'asyncio', 'email', 'http', 'logging', 'os', 'unittest']
    split = {'train': max(sizes), 'selection': 64, 'test': rows}
    return {
        'task': {
            'name': 'which package does a docstring belong to',
            'text': 'docstring',
            'label': 'package',
            'classes': classes,
            'rows': split,
            'chance': 1 / len(classes),
            'majority': majority,
        },
        'base': {'directory': 'runs/base', 'parameters': 134_000_000, 'context': 2048, 'causal': True},
        'arms': {
            name: {'kind': kind, 'description': f'The arm {name}.', 'overrides': {}, 'status': 'done', 'reason': ''}
            for name, (kind, *_) in arms.items()
        },
        'trials': trials,
        'summary': summary,
        'margin': MARGIN,
        'pairs': pairs,
        **extras(arms, sizes[-1]),
        'prices': {'currency': 'EUR', 'device_hour': 0.04, 'kwh': 0.3, 'watts': 65},
        'provenance': {
            'command': 'lmtrain compare --config=configs/compare.py --workdir=runs/which',
            'commit': 'b6e9308c0ffee',
            'date': '2026-11-26',
            'machine': {'devices': '1 x cpu', 'cores': 2},
            'versions': {'python': '3.11.2', 'jax': '0.10.2'},
        },
    }


def extras(arms, size):
    """Description length, prompt sensitivity, forgetting and break-even."""
    uniform = float(size * np.log2(8))
    lengths, sensitivity, forgetting, even = {}, {}, {}, []
    for name, (kind, few, many, _, creation, query) in arms.items():
        bits = uniform * (1.35 - (few + many) / 2)
        blocks = [[8, bits * 0.1], [32, bits * 0.2], [128, bits * 0.3], [512, bits * 0.4]]
        lengths[name] = {'bits': bits, 'uniform_bits': uniform, 'blocks': blocks}
        if kind == 'prompt':
            quantiles = {str(q): many + (q - 0.55) * 0.2 for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
            spread = {'n': 24, 'mean': many - 0.01, 'stdev': 0.05, 'quantiles': quantiles, 'worst': many - 0.16}
            bounds = {str(q): [value - 0.02, value + 0.02] for q, value in quantiles.items()} | {'stdev': [0.04, 0.07]}
            spread |= {'interval': [many - 0.03, many + 0.01], 'intervals': bounds}
            limits = {'worst_interval': [many - 0.26, many - 0.06], 'best_interval': [many, many + 0.2]}
            sensitivity[name] = spread | limits | {'best': many + 0.1, 'stdev_within': 0.04}
            forgetting[name] = {'bits_per_byte_before': 0.98, 'bits_per_byte_after': 0.98, 'kl': 0.0}
        else:
            forgetting[name] = {'bits_per_byte_before': 0.98, 'bits_per_byte_after': 0.98 + few / 5, 'kl': few / 2}
            for other, (prompt, _, _, _, creation_other, query_other) in arms.items():
                if prompt == 'prompt' and query_other > query:
                    queries = max(0.0, (5 * creation - creation_other) / (query_other - query))
                    curve = [[ratio, ratio * queries] for ratio in (0.1, 0.3, 1, 3, 10)]
                    about = {'prompt': other, 'trained': name, 'size': size, 'queries': queries}
                    even.append(about | {'queries_cached': 40 * queries, 'curve': curve})
    return {
        'description_length': lengths,
        'sensitivity': sensitivity,
        'forgetting': forgetting,
        'break_even': even,
    }


@pytest.fixture(scope='session')
def comparison():
    """The function that makes the results of a comparison, see `make`."""
    return make


CLASSES = ('cats', 'dogs', 'mice')


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    """make(name, only, **settings of config.compare) -> a prepared comparison on a tiny base, of 4 and 16 rows."""
    import lmtrain
    from configs import compare, tiny
    from lmtrain.compare import arms, comparison

    folder = tmp_path_factory.mktemp('small')
    (folder / 'text').mkdir()
    for i in range(40):
        text = f'{i} cats sat on {i * i} mats. ' * (i % 7 + 3)
        (folder / 'text' / f'{i}.txt').write_text(text, encoding='utf-8')
    base = tiny.get_config()
    base.data.source, base.data.cache = str(folder / 'text'), str(folder / 'cache')
    base.data.validation = base.data.test = 0.2
    base.data.seq_len = 256  # demonstrations need context
    lmtrain.train(base, folder / 'base')
    lines = [{'note': f'{i * i} {CLASSES[i % 3]} sat', 'animal': CLASSES[i % 3]} for i in range(120)]
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')

    def make(name, only, change=lambda config: None, **settings):
        config = compare.get_config()
        config.init.base, config.data.cache = str(folder / 'base'), str(folder / 'cache')
        config.task.train, config.task.text, config.task.label = (str(folder / 'rows.jsonl'),), ('note',), 'animal'
        config.data.seq_len, config.data.batch_size, config.data.test = 32, 8, 0.3
        config.budget.steps, config.evaluate.every_steps = 4, 2
        config.compare.update({'sizes': (4, 16), 'seeds': 1, 'selection': 8, 'draws': 2, 'only': only} | settings)
        change(config)
        selected = arms.read(config.compare)
        return comparison.assemble(config, folder / name, selected)[0], selected

    return make
