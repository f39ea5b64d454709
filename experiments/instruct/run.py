"""Instruction tuning of a small story teller, all of it beside LoRA: what the answers cost before and after.

python experiments/instruct/run.py --root=DIR
    # DIR holds models/stories260K/hf and instruct/dolly_hhrlhf_train_small.jsonl
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import record

ROWS = 'instruct/dolly_hhrlhf_train_small.jsonl'
LORA = [
    '--config.adapt.method=lora',
    "--config.adapt.lora.rank=(('.*/kernel', 16),)",
    '--config.adapt.lora.alpha=((".*", 32.0),)',
    '--config.optimizer.learning_rate=5e-3',
]
RUNS = {'full': [], 'LoRA': LORA}


def trial(name: str, root: pathlib.Path, changes: list[str]) -> dict:
    """One run of the recipe: its curve, its last evaluation, its cost."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, '-m', 'launch.cli', 'train', '--config=configs/instruct.py']
        command += [f'--config.init.base={root}/models/stories260K/hf', f'--config.data.root={root}']
        command += [f"--config.task.train=('{ROWS}',)", "--config.task.text=('prompt',)"]
        command += ['--config.task.label=response', f'--workdir={workdir}']
        command += ['--config.data.seq_len=512', '--config.budget.steps=80', '--config.evaluate.every_steps=20']
        subprocess.run(command + changes, cwd=record.ROOT, check=True)
        lines = [
            json.loads(line)
            for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
        ]
        results = json.loads((pathlib.Path(workdir) / 'results.json').read_text(encoding='utf-8'))
    curve = {line['step']: line['validation_loss'] for line in lines if 'validation_loss' in line}
    return {'name': name, 'first_loss': lines[0]['loss'], 'curve': curve} | results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', required=True, help='the folder of models and rows')
    root = pathlib.Path(parser.parse_args().root).resolve()
    start = trial('before', root, ['--config.budget.steps=1', '--config.optimizer.learning_rate=0.0'])
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
        command='python experiments/instruct/run.py --root=DIR',
        figures=figures,
        trials=[start, *trials],
        not_shown=[
            'one seed each: no interval',
            'that packing and accumulation leave the loss of the first step is a test of its own (tests/data)',
        ],
    )


if __name__ == '__main__':
    main()
