"""What a model gains on new text and forgets of the old: with and without replay, all of it and by LoRA.

python experiments/continual/run.py --root=DIR
    # DIR holds models/stories260K/hf, corpora/recipes/*.txt and corpora/tinystories/*.txt
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import record

NEW = 'corpora/recipes/based_cooking.txt'
OLD = 'corpora/tinystories/tinystories_sample_2MiB.txt'
ASKED = 0.30  # of the new text's bits per byte, at 10 % replay
REPLAY = f"--config.data.mix=(('{OLD}', {1 / 9:.6f}),)"  # a tenth of all windows
RUNS = {
    'full, no replay': [],
    'full, 10 % replay': [REPLAY],
    'LoRA, 10 % replay': [
        REPLAY,
        '--config.adapt.method=lora',
        "--config.adapt.lora.rank=(('.*/kernel', 16),)",
        '--config.adapt.lora.alpha=((".*", 32.0),)',
        '--config.optimizer.learning_rate=5e-3',
    ],
}


def trial(name: str, root: pathlib.Path) -> dict:
    """One run of the recipe: bits per byte of both texts before and after, and its cost."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, '-m', 'launch.cli', 'train', '--config=configs/continual.py']
        command += [f'--config.init.base={root}/models/stories260K/hf', f'--config.data.root={root}']
        command += [f'--config.data.source={NEW}', f"--config.evaluate.sources=('{OLD}',)", f'--workdir={workdir}']
        subprocess.run(command + RUNS[name], cwd=record.ROOT, check=True)
        results = json.loads((pathlib.Path(workdir) / 'results.json').read_text(encoding='utf-8'))
    return {'name': name} | results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', required=True, help='the folder of models and corpora')
    root = pathlib.Path(parser.parse_args().root).resolve()
    trials = [trial(name, root) for name in RUNS]
    figures = []
    for each in trials:
        change = {}
        for text in (NEW, OLD):
            before, after = (each['domains'][text][when]['bits_per_byte'] for when in ('before', 'after'))
            change[text] = after / before - 1, f'{before:.3f} to {after:.3f} ({100 * (after / before - 1):+.1f} %)'
        asked = each['name'] == 'full, 10 % replay'
        figures += [
            {
                'what': f'{each["name"]}: bits per byte of the new text (recipes)',
                'figure': change[NEW][1],
                'target': f'-{100 * ASKED:.0f} % or more' if asked else '',
                'reached': change[NEW][0] <= -ASKED if asked else None,
            },
            {
                'what': f'{each["name"]}: of the old text (stories)',
                'figure': change[OLD][1],
                'target': '',
                'reached': None,
            },
            {
                'what': f'{each["name"]}: parameters that learn, time',
                'figure': f'{each["cost"]["trainable"]:,} of {each["cost"]["parameters"]:,}, '
                f'{each["cost"]["seconds"]:.0f} s',
                'target': '',
                'reached': None,
            },
        ]
    record.write(
        'continual',
        command='python experiments/continual/run.py --root=DIR',
        figures=figures,
        trials=trials,
        not_shown=['one seed each: no interval'],
    )


if __name__ == '__main__':
    main()
