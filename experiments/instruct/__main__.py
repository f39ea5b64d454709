"""Instruction tuning of a small model, fully and by LoRA: how far does the loss of the answers fall?

python -m experiments.instruct --root=DIR
    # DIR holds models/stories260K/hf and instruct/dolly_hhrlhf_train_small.jsonl
"""

import argparse
import pathlib
import tempfile

from experiments import cli, record

ROWS = 'instruct/dolly_hhrlhf_train_small.jsonl'
LORA = {
    'adapt.method': 'lora',
    'adapt.lora.rank': (('.*/kernel', 16),),
    'adapt.lora.alpha': (('.*', 32.0),),
    'optimizer.learning_rate': 5e-3,
}
RUNS = {'full': {}, 'LoRA': LORA}


def trial(name: str, root: pathlib.Path, changes: dict) -> dict:
    """One run of the recipe: its curve, its last evaluation, its cost."""
    with tempfile.TemporaryDirectory() as workdir:
        rows = {'data.root': root, 'task.train': (ROWS,), 'task.text': ('prompt',), 'task.label': 'response'}
        rows |= {'init.base': root / 'models/stories260K/hf', 'data.seq_len': 512}
        rows |= {'budget.steps': 80, 'evaluate.every_steps': 20}
        results = cli.train('instruct', workdir, rows | changes)
        first = cli.json_lines(pathlib.Path(workdir) / 'metrics.jsonl')[0]
        curve = cli.validation_curve(workdir)
    return {'name': name, 'first_loss': first['loss'], 'curve': curve} | results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', required=True, help='the folder of models and rows')
    root = pathlib.Path(parser.parse_args().root).resolve()
    start = trial('before', root, {'budget.steps': 1, 'optimizer.learning_rate': 0.0})
    trials = [trial(name, root, changes) for name, changes in RUNS.items()]
    before = start['validation']['loss']
    figures = [
        {
            'what': f'{each["name"]}: validation loss of the answers, nats a token',
            'figure': f'{before:.4f} to {each["validation"]["loss"]:.4f}; {each["cost"]["trainable"]:,} parameters '
            f'learn, {each["cost"]["seconds"]:.0f} s',
            'target': 'falls',
            'reached': each['validation']['loss'] < before,
        }
        for each in trials
    ]
    record.write(
        'instruct',
        command='python -m experiments.instruct --root=DIR',
        figures=figures,
        trials=[start, *trials],
        not_shown=[
            'one seed each: no interval',
            'that packing and accumulation leave the loss of the first step is a test of its own (tests/data)',
        ],
    )


if __name__ == '__main__':
    main()
