"""Does the crammed recipe beat plain BERT's at the same budget, after fine-tuning?

python -m experiments.cramming [--flops=4e12 | --hours=H]
    # a day on a GPU: --hours=24 --layers=0 --source='fineweb/*.parquet' --root=DIR --vocab=32768 --length=128
    #                 --batch_size=8192 --accumulate=16 --dtype=bfloat16 --rates=1e-3
"""

import argparse
import pathlib
import tempfile

from experiments import cli, record
from experiments.cramming import docstrings
from lmtrain.models.families import bert

# What the arms change of configs/cramming_bert.py, which is the crammed recipe. BERT's values: arXiv 1810.04805.
PLAIN = {name: value for name, value in bert.BERT.items() if name not in ('vocab_size', 'max_len')}
ARMS = {
    'crammed': {},
    'bert': {f'model.{name}': value for name, value in PLAIN.items()}
    | {
        'model.dropout': 0.1,
        'data.mask_rate': 0.15,
        'optimizer.b2': 0.999,
        'optimizer.eps': 1e-6,
        'optimizer.clip': 1.0,
        'schedule.warmup': 0.01,
        'schedule.start': 0.0,
    },
}
PILOT = 0.25  # share of the budget that each learning rate is tried with


def flags(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--flops', type=float, default=4e12, help='FLOPs of a pretraining')
    parser.add_argument('--hours', type=float, default=0.0, help='wall clock of a pretraining instead; 0 is --flops')
    parser.add_argument('--rates', default='3e-4,1e-3,3e-3', help='learning rates of the pretraining')
    parser.add_argument('--finetune_rates', default='3e-4,1e-3,3e-3')
    parser.add_argument('--seeds', type=int, default=3, help='of the fine-tuning')
    parser.add_argument('--epochs', type=int, default=12, help='of the fine-tuning')
    parser.add_argument('--source', default='python', help='text of the pretraining')
    parser.add_argument('--root', default='', help='folder of --source')
    parser.add_argument('--cache', default='', help='folder of tokenised text')
    parser.add_argument('--tokenizer', default='bpe')
    parser.add_argument('--vocab', type=int, default=2048)
    parser.add_argument('--length', type=int, default=64, help='tokens of a row')
    parser.add_argument('--layers', type=int, default=2, help="0: the published sizes (16 x 768; BERT's 12 x 768)")
    parser.add_argument('--width', type=int, default=96)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--accumulate', type=int, default=1)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--classes', type=int, default=12, help='packages')
    parser.add_argument('--per_class', type=int, default=60, help='docstrings of a package, at most')
    parser.add_argument('--test', type=int, default=240, help='rows')
    return parser.parse_args(words)


def common(options) -> dict:
    """Overrides of every run."""
    return {
        'data.cache': options.cache,
        'data.seq_len': options.length,
        'evaluate.every_steps': 10**9,
        'checkpoint.every_steps': 10**9,
        'log.tensorboard': False,
    }


def pretraining(options, arm: str, budget: float) -> dict:
    """Overrides of a pretraining with a share of the budget."""
    settings = ARMS[arm] | common(options)
    settings |= {'data.source': options.source, 'data.root': options.root, 'data.tokenizer': options.tokenizer}
    settings |= {'data.vocab_size': options.vocab, 'data.batch_size': options.batch_size, 'data.validation': 0.05}
    settings |= {'data.test': 0.0, 'optimizer.accumulate': options.accumulate, 'model.dtype': options.dtype}
    if options.layers:
        size = {'num_layers': options.layers, 'width': options.width, 'num_heads': max(1, options.width // 64)}
        size['mlp_dim'] = (4 if arm == 'bert' else 2) * options.width
        settings |= {f'model.{name}': value for name, value in size.items()}
        settings['model.unroll'] = 1  # compiles fastest
    elif arm == 'bert':
        settings |= {f'model.{name}': bert.SIZES['base'][name] for name in ('num_layers', 'width', 'num_heads')}
        settings['model.mlp_dim'] = 3072
    hours = options.hours * budget if options.hours else None
    return settings | {'budget.hours': hours, 'budget.flops': None if hours else options.flops * budget}


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(','))


def pretrained(options, arm: str, folder: pathlib.Path) -> dict:
    """Pretrains one arm in folder/run; each rate is tried with PILOT of the budget first, on the validation text."""
    rates, pilot = numbers(options.rates), {}
    if len(rates) > 1:
        # A sweep is one program, whose budget is that of all its members.
        settings = pretraining(options, arm, PILOT * len(rates)) | {'sweep.learning_rates': rates}
        members = cli.train_here('cramming_bert', folder / 'pilot', settings)['sweep']['members']
        pilot = {rate: member['loss'] for rate, member in zip(rates, members, strict=True)}
    rate = min(pilot, key=pilot.get) if pilot else rates[0]
    settings = pretraining(options, arm, 1.0) | {'optimizer.learning_rate': rate}
    results = cli.train_here('cramming_bert', folder / 'run', settings)
    tried = {str(rate): loss for rate, loss in pilot.items()}
    return {'learning_rate': rate, 'pilot': tried, 'validation': results['validation'], 'cost': results['cost']}


def untrained(options, folder: pathlib.Path) -> dict:
    """The crammed model before its first step: one step with learning rate 0."""
    settings = pretraining(options, 'crammed', 1.0) | {'budget.hours': None, 'budget.flops': None, 'budget.steps': 1}
    results = cli.train_here('cramming_bert', folder / 'run', settings | {'optimizer.learning_rate': 0.0})
    return {'learning_rate': 0.0, 'pilot': {}, 'validation': results['validation'], 'cost': results['cost']}


def finetuned(options, base: pathlib.Path, rows: pathlib.Path, folder: pathlib.Path, train_rows: int) -> dict:
    """Fine-tunes all parameters: chooses the rate on a fifth of the training rows, then runs `seeds` on all of them."""
    settings = common(options) | {
        'init.base': str(base),
        'task.train': (str(rows / 'train.jsonl'),),
        'task.text': ('text',),
        'task.label': 'package',
        'objective.pool': 'mean',
        'optimizer.learning_rates': (('heads/.*', 3.0),),
        'budget.steps': max(1, options.epochs * train_rows // 32),
    }
    rates = numbers(options.finetune_rates)
    held_out = {'data.validation': 0.2, 'data.test': 0.0, 'sweep.learning_rates': rates}
    members = cli.train_here('classify', folder / 'rates', settings | held_out)['sweep']['members']
    scores = {rate: member['accuracy'] for rate, member in zip(rates, members, strict=True)}
    rate = max(scores, key=scores.get)
    test = {'task.validation': (str(rows / 'test.jsonl'),), 'task.test': (str(rows / 'test.jsonl'),)}
    test |= {'optimizer.learning_rate': rate, 'sweep.seeds': tuple(range(options.seeds))}
    results = cli.train_here('classify', folder / 'test', settings | test)
    return {
        'learning_rate': rate,
        'rates': {str(rate): score for rate, score in scores.items()},
        'members': results['sweep']['members'],
        'accuracy': results['sweep']['intervals'][0]['accuracy'],
        'cost': results['cost'],
    }


def figures(trials: list[dict], task: dict) -> list[dict]:
    rows = []
    for trial in trials:
        pre, tuned, arm = trial['pretraining'], trial['finetuning'], trial['arm']
        if arm != 'untrained':
            cost = pre['cost']
            size = f'{cost["parameters"]:,} parameters, {cost["steps"]:,} steps, {cost["tokens"]:,.0f} tokens'
            rows.append(
                record.row(f'{arm}: pretraining', f'{size}, {cost["seconds"]:.0f} s, rate {pre["learning_rate"]:g}')
            )
            masked = f'{pre["validation"]["loss"]:.3f} nats'
            rows.append(record.row(f'{arm}: masked loss of the validation text, at its own mask rate', masked))
        mean, low, high = (100 * x for x in tuned['accuracy'])
        what = f'{arm}: accuracy after fine-tuning, {len(tuned["members"])} seeds (95 % interval)'
        rows.append(record.row(what, f'{mean:.1f} % ({low:.1f} to {high:.1f}), rate {tuned["learning_rate"]:g}'))
    crammed, plain = (
        next(trial['finetuning']['accuracy'][0] for trial in trials if trial['arm'] == arm) for arm in ARMS
    )
    rows.append(record.row('crammed - bert', f'{100 * (crammed - plain):+.1f} points', '> 0', crammed > plain))
    sizes = f'{task["train"]:,} and {task["test"]:,}; {len(task["classes"])} classes, the largest has'
    rows.append(record.row('rows of training and test', f'{sizes} {100 * task["majority"]:.1f} % of the test rows'))
    return rows


def experiment(options, folder: pathlib.Path, arms=(*ARMS, 'untrained')) -> tuple[list[dict], dict]:
    """(trials, the task): each arm, pretrained and fine-tuned."""
    task = docstrings.write(folder, classes=options.classes, per_class=options.per_class, test=options.test, seed=0)
    trials = []
    for arm in arms:
        own = folder / arm
        own.mkdir()
        pre = untrained(options, own) if arm == 'untrained' else pretrained(options, arm, own)
        tuned = finetuned(options, own / 'run', folder, own / 'finetune', task['train'])
        trials.append({'arm': arm, 'pretraining': pre, 'finetuning': tuned})
    return trials, task


def main() -> None:
    options = flags()
    with tempfile.TemporaryDirectory() as folder:
        trials, task = experiment(options, pathlib.Path(folder))
    record.write(
        'cramming',
        command='python -m experiments.cramming',
        figures=figures(trials, task),
        trials=trials,
        options=vars(options),
        task=task,
        not_shown=[
            'a day on a GPU, the published sizes, GLUE: the flags set them, nothing of it was run here.',
            "the crammed recipe's batch ramp and its order of sentences by length.",
            'several seeds of the pretraining.',
        ],
    )


if __name__ == '__main__':
    main()
