"""Answers, preferences or rewards? Fine-tuning, DPO, REINFORCE, GRPO and PPO on the same rows, in one comparison.

python -m experiments.policy_arms [--workdir=runs/policy_arms]
"""

import argparse
import pathlib
import time

from experiments import record
from experiments.prompt_or_train import comparison

NAME = 'policy_arms'
CONFIG = {
    'compare.only': ('zero_shot', 'lora_text', 'dpo', 'rloo', 'grpo', 'ppo'),
    'compare.sizes': (256,),
    'compare.draws': 0,
    'compare.templates': (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default=f'runs/{NAME}', type=pathlib.Path, help='continued if it exists')
    folder = parser.parse_args().workdir.absolute()
    from_nothing, start = not folder.exists(), time.monotonic()
    results = comparison.run(folder, CONFIG)
    timed = [record.row('the whole command', f'{(time.monotonic() - start) / 60:.1f} min')] if from_nothing else []
    comparison.write(
        NAME,
        f'python -m experiments.{NAME}',
        {'docstrings': results},
        ['larger bases, and rewards that no labelled row could express: experiments/rewards has a verifier'],
        timed,
    )
    page = record.ROOT / 'experiments' / NAME / 'report.html'
    page.write_text(comparison.page(folder, CONFIG), encoding='utf-8')


if __name__ == '__main__':
    main()
