"""Answers, preferences or rewards? Fine-tuning, DPO, REINFORCE, GRPO and PPO on the same rows, in one comparison.

python -m experiments.policy_arms [--workdir=runs/policy_arms]

Twice: from the pretrained base of the default comparison, and from the same base after fine-tuning on 64 of the rows.
"""

import argparse
import pathlib

from configs.compare_docstrings import LEARNING_RATES
from experiments import cli, record
from experiments.prompt_or_train import comparison
from lmtrain.compare.default import TEMPLATE

NAME = 'policy_arms'
ARMS = ('zero_shot', 'lora_text', 'dpo', 'rloo', 'grpo', 'ppo')
CONFIG = {'compare.only': ARMS, 'compare.sizes': (256,), 'compare.draws': 0, 'compare.templates': ()}


def on(base: pathlib.Path, rows: pathlib.Path) -> dict:
    """Settings of a comparison on another base, which are those of the default one."""
    rates = {name: rates for name, rates in LEARNING_RATES.items() if name in (*ARMS, 'full_text')}
    return {
        'init.base': base,
        'task.train': (str(rows),),
        'task.text': ('docstring',),
        'task.label': 'package',
        'compare.template': TEMPLATE,
    } | {f'compare.arms.{name}.learning_rates': grid for name, grid in rates.items()}


def fine_tuned(folder: pathlib.Path, rows: pathlib.Path) -> pathlib.Path:
    """The directory of the pretrained base after fine-tuning of all parameters on 64 rows, with their answers as text.

    Rate and step are chosen on the selection rows.
    """
    tuning, directory = folder / 'fine_tuning', folder / 'fine_tuned'
    if not directory.exists():
        own = {'compare.only': ('full_text',), 'compare.sizes': (64,), 'compare.seeds': 1}
        comparison.run(tuning, CONFIG | on(folder / 'base', rows) | own)
        trial = tuning / 'trials' / 'full_text' / 'n64-seed1'
        cli.run('export', f'--workdir={trial}', '--format=hf', f'--to={directory}')
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default=f'runs/{NAME}', type=pathlib.Path, help='continued if it exists')
    folder = parser.parse_args().workdir.absolute()
    results = {'pretrained base': comparison.run(folder, CONFIG)}
    rows = folder / 'data' / 'docstrings.jsonl'
    base, after = fine_tuned(folder, rows), folder / 'after'
    config = CONFIG | on(base, rows)
    results['fine-tuned base'] = comparison.run(after, config)
    comparison.write(
        NAME,
        f'python -m experiments.{NAME}',
        results,
        ['larger bases, and rewards that no labelled row could express: experiments/rewards has a verifier'],
    )
    page = record.ROOT / 'experiments' / NAME / 'report.html'
    page.write_text(comparison.page(after, config), encoding='utf-8')


if __name__ == '__main__':
    main()
