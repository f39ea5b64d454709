"""How often do a reward model and DPO prefer the chosen side of held-out pairs of hh-rlhf?

The pairs are divided by their first question. The learning rate is that with the lowest loss on the selection rows, for
one seed, if there are several; the test rows are read by the runs that are reported alone. The implicit reward of DPO
is beta log(pi / base) of a completion; that of the base itself is 0.

python -m experiments.preferences --root=DIR --encoder=DIR --base=DIR [--only=reward,dpo] [--quick] [--workdir=DIR]
    # --root holds preference/hh-rlhf/harmless-base.test.jsonl.gz; --encoder and --base are Hugging Face directories;
    # the same command continues in --workdir
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np

from experiments import cli, record
from lmtrain import files
from lmtrain.data.preferences import read_pair
from lmtrain.data.rows import read_rows
from lmtrain.data.splits import hash_unit
from lmtrain.evaluation import statistics
from lmtrain.parallel import sharding
from lmtrain.training import init_from, reference
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

FILE = 'preference/hh-rlhf/harmless-base.test.jsonl.gz'
SHARES = {'test': 0.25, 'validation': 0.1}  # the others are trained on
SEEDS = (0, 1, 2)
EPOCH = 94  # steps; in a second epoch the share of training pairs that DPO has right rises from 0.54 to 0.91: by heart
LAST_LAYERS = {'adapt.method': 'layers', 'adapt.layers.last': 2}  # half of the time of full fine-tuning
COMMON = {
    'task.train': ('train.jsonl',),
    'task.validation': ('validation.jsonl',),
    'task.test': ('test.jsonl',),
    'task.too_long': 'cut',
    'data.tokenizer': 'base',
    'data.batch_size': 16,
    'schedule.name': 'linear',
    'schedule.warmup': 0.1,
    'schedule.final': 0.0,
    'optimizer.b2': 0.999,
    'evaluate.every_steps': 10**6,
    'checkpoint.every_steps': 10**6,
    'log.tensorboard': False,
    'sample.prompts': (),
}
# {part: (recipe, its settings, learning rates, the name of the margin among the values of its objective)}
PARTS = {
    'reward': (
        'reward_model',
        {'data.seq_len': 192, 'objective.pool': 'mean', 'budget.steps': EPOCH, 'task.buckets': 2} | LAST_LAYERS,
        (1e-4, 2e-4, 5e-4),
        'margin',
    ),
    'dpo': (
        'dpo',
        {'data.seq_len': 512, 'budget.steps': EPOCH, 'task.buckets': 2}
        | {'objective.beta': 0.1, 'objective.label_smoothing': 0.1},  # conservative DPO
        (1e-4,),
        'rewards/margins',
    ),
}


def write_splits(root: pathlib.Path, folder: pathlib.Path, count: int | None) -> dict[str, int]:
    """{split: number of rows}, of the first `count`, written as {split}.jsonl; a first question is in one split."""
    lines = {split: [] for split in ('train', *SHARES)}
    for row in read_rows(FILE, str(root))[:count]:
        place = hash_unit('preferences', read_pair(row, None).chosen.texts[0].split('\n\nAssistant:')[0])
        split = 'test' if place < SHARES['test'] else 'validation' if place < sum(SHARES.values()) else 'train'
        lines[split].append(json.dumps(row.fields) + '\n')
    for split, own in lines.items():
        (folder / f'{split}.jsonl').write_text(''.join(own), encoding='utf-8')
    return {split: len(own) for split, own in lines.items()}


def margins(workdir: pathlib.Path, name: str) -> np.ndarray:
    """The margin of each test pair under the last checkpoint of a run, in the order of the pairs."""
    trained = init_from.open_run(workdir)
    run = reference.complete(build(*resolve(trained.config, base=trained.base)))
    params = jax.device_put(trained.load(lambda path, array: array), sharding.shardings(trained.shapes, run.mesh))

    @jax.jit
    def values(params, batch):
        return run.objective(lambda columns: run.model.apply({'params': params}, columns), batch)[0][name]

    stream, place, results = run.stream('test'), sharding.place(run.mesh), {}
    for step in range(stream.steps_per_epoch):
        batch = np.asarray(values(params, place(stream.batch(step))))
        for row, (chosen, _) in enumerate(stream.examples(step)):
            if chosen >= 0:
                results[int(stream.examples_of.source[chosen])] = float(batch[row, 0])
    return np.array([results[source] for source in sorted(results)])


def trial(part: str, base: str, folder: pathlib.Path, rate: float, seed: int, quick: bool) -> dict:
    """One run: its folder, selection loss and cost, from trial.json if it is finished."""
    recipe, settings, *_ = PARTS[part]
    run = folder / f'{part}-{rate:g}-{seed}'
    if (run / 'trial.json').exists():
        return files.read_json_object(run / 'trial.json')
    config = COMMON | settings | {'init.base': base, 'data.root': str(folder), 'data.cache': str(folder / 'cache')}
    config |= {'optimizer.learning_rate': rate, 'seed': seed} | ({'budget.steps': 3} if quick else {})
    begun = time.monotonic()
    results = cli.train_here(recipe, run, config)
    entry = {'part': part, 'learning_rate': rate, 'seed': seed, 'run': run.name, 'seconds': time.monotonic() - begun}
    entry |= {'selection': results['validation'], 'cost': results['cost']}
    files.write_json(run / 'trial.json', entry)
    return entry


def figures(part: str, trials: list[dict]) -> list[dict]:
    """The rows of the table of one part, from its runs on the test pairs."""
    values = np.array([each['test_margins'] for each in trials])
    right = 0.5 * (1 + np.sign(values))  # a pair of equal scores counts as half right
    accuracy = statistics.crossed_mean(right)
    what = {'reward': 'reward model from MiniLM', 'dpo': 'implicit reward of DPO'}[part]
    rows = [
        record.row(
            f'{what}: accuracy on {values.shape[1]} held-out pairs, {len(trials)} seeds',
            f'{100 * accuracy.mean:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})',
            'interval excludes 50 %' + (', aim 60 %' if part == 'reward' else ''),
            accuracy.low > 0.5,
        )
    ]
    each = ', '.join(f'{100 * row.mean():.1f}' for row in right)
    seconds = np.median([each['cost']['seconds'] for each in trials])
    rows.append(record.row(f'{what}: accuracy of each seed; seconds of a training', f'{each} %; {seconds:.0f} s'))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', required=True, help='the folder of the rows')
    parser.add_argument('--encoder', help='base of the reward model')
    parser.add_argument('--base', help='base of DPO')
    parser.add_argument('--only', default='reward,dpo', help='parts')
    parser.add_argument('--quick', action='store_true', help='100 pairs, three steps, two seeds; nothing is written')
    parser.add_argument('--workdir', default='runs/experiment_preferences', type=pathlib.Path)
    arguments = parser.parse_args()
    trials, table = [], []
    folder = arguments.workdir.absolute() / ('quick' if arguments.quick else 'whole')
    folder.mkdir(parents=True, exist_ok=True)
    sizes = write_splits(pathlib.Path(arguments.root).resolve(), folder, 100 if arguments.quick else None)
    for part in arguments.only.split(','):
        base = arguments.encoder if part == 'reward' else arguments.base
        if not base:
            parser.error(f'--only={part} needs --{"encoder" if part == "reward" else "base"}')
        rates = PARTS[part][2][: 1 if arguments.quick else None]
        options = {'base': str(pathlib.Path(base).resolve()), 'folder': folder, 'quick': arguments.quick}
        search = [trial(part, rate=rate, seed=SEEDS[0], **options) for rate in rates]
        best = min(search, key=lambda each: each['selection']['loss'])
        seeds = SEEDS[1 : 2 if arguments.quick else None]
        final = [best, *(trial(part, rate=best['learning_rate'], seed=seed, **options) for seed in seeds)]
        for each in final:
            if 'test_margins' not in each:
                each['test_margins'] = margins(folder / each['run'], PARTS[part][3]).tolist()
                files.write_json(folder / each['run'] / 'trial.json', each)
        trials += [*search, *final[1:]]
        table += figures(part, final)
        print(json.dumps(table[-2:], indent=1), flush=True)
    if not arguments.quick:
        record.write(
            'preferences',
            command='python -m experiments.preferences --root=DIR --encoder=DIR --base=DIR',
            figures=table,
            trials=trials,
            pairs=sizes,
            not_shown=[
                'other splits of hh-rlhf: the test file of harmless-base alone is divided here, so a model reads '
                f'{sizes["train"]:,} pairs.',
                'texts beyond data.seq_len: the beginning of their prompts is cut; pairs whose completions alone are '
                'longer, or of which a completion is empty, are left out.',
                'a search of the learning rate of DPO; training of all layers of the encoder; larger bases.',
                'a run of DPO over two epochs, stopped when its accuracy on training pairs rose to 0.91 in the second.',
            ],
        )


if __name__ == '__main__':
    main()
