"""How much does a model gain on new text and forget of the old: with and without replay, full and LoRA?

python -m experiments.continual --root=DIR
    # DIR holds models/stories260K/hf, corpora/recipes/*.txt and corpora/tinystories/*.txt
"""

import argparse
import pathlib
import tempfile

from experiments import cli, record

NEW = 'corpora/recipes/based_cooking.txt'
OLD = 'corpora/tinystories/tinystories_sample_2MiB.txt'
TARGET = 0.30  # of the new text's bits per byte, at 10 % replay
REPLAY = {'data.mix': ((OLD, round(1 / 9, 6)),)}  # a tenth of all windows
LORA = {
    'adapt.method': 'lora',
    'adapt.lora.rank': (('.*/kernel', 16),),
    'adapt.lora.alpha': (('.*', 32.0),),
    'optimizer.learning_rate': 5e-3,
}
RUNS = {'full, no replay': {}, 'full, 10 % replay': REPLAY, 'LoRA, 10 % replay': REPLAY | LORA}


def trial(name: str, root: pathlib.Path) -> dict:
    """One run of the recipe: bits per byte of both texts before and after, and its cost."""
    with tempfile.TemporaryDirectory() as workdir:
        texts = {'init.base': root / 'models/stories260K/hf', 'data.root': root, 'data.source': NEW}
        results = cli.train('continual', workdir, texts | {'evaluate.sources': (OLD,)} | RUNS[name])
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
        has_target = each['name'] == 'full, 10 % replay'
        figures += [
            {
                'what': f'{each["name"]}: bits per byte of the new text (recipes)',
                'figure': change[NEW][1],
                'target': f'-{100 * TARGET:.0f} % or more' if has_target else '',
                'reached': change[NEW][0] <= -TARGET if has_target else None,
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
        command='python -m experiments.continual --root=DIR',
        figures=figures,
        trials=trials,
        not_shown=['one seed each: no interval'],
    )


if __name__ == '__main__':
    main()
