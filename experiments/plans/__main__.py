"""How long does it take to plan a large run on a small machine, and what do the plans say?

    python -m experiments.plans [--tpu=FOLDER]

Each plan is `lmtrain plan` in a process of its own; FOLDER holds libtpu where it is not installed. Nothing is executed.
"""

import argparse
import os
import re
import subprocess
import sys
import time

from experiments import cli, record

PLANS = (('pretrain_llama_8b', 'v5e:16x16'), ('pretrain_llama_70b', 'v5p:8x8x16'))
MOST = 8 * 2**30  # bytes of this machine's memory


def planned(recipe: str, target: str, tpu: str) -> dict:
    """The page of a plan, and the seconds and bytes it took."""
    words = ['plan', f'--config=configs/{recipe}.py', f'--target={target}']
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(record.ROOT), tpu])}
    begun = time.monotonic()
    with cli.start(*words, env=environment, stdout=subprocess.PIPE, encoding='utf-8') as process:
        page = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{recipe}: exit {process.returncode}\n{page}')
    print(page, flush=True)
    return {
        'recipe': recipe,
        'target': target,
        'seconds': time.monotonic() - begun,
        'processor_seconds': used.ru_utime + used.ru_stime,
        'peak_bytes': used.ru_maxrss * (1 if sys.platform == 'darwin' else 1024),
        'fits': re.search(r'fits +(\w+: .*)', page)[1],
        'arguments': float(re.search(r'state and batch .* (\d\.\d+)\n', page)[1]),
        'exchanged': float(re.search(r'in all +([\d.]+) of the least', page)[1]),
        'page': page.splitlines(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--tpu', default='')
    tpu = parser.parse_args().tpu
    figures, trials = [], [planned(recipe, target, tpu) for recipe, target in PLANS]
    for trial in trials:
        what = f'{trial["recipe"]} on {trial["target"]}'
        rows = (
            ('does it fit', trial['fits'], 'fits', trial['fits'].startswith('yes')),
            ('seconds', f'{trial["seconds"]:.0f}', '<= 300', trial['seconds'] <= 300),
            ('peak memory', f'{trial["peak_bytes"] / 2**30:.2f} GiB', '<= 8 GiB', trial['peak_bytes'] <= MOST),
            ('state and batch, compiler over theory', f'{trial["arguments"]}', '<= 1.02', trial['arguments'] <= 1.02),
            ('bytes exchanged over the least', f'{trial["exchanged"]}', '<= 1.05', trial['exchanged'] <= 1.05),
        )
        figures += [
            {'what': f'{what}: {name}', 'figure': figure, 'target': target, 'reached': reached}
            for name, figure, target, reached in rows
        ]
    record.write(
        'plans',
        command='python -m experiments.plans --tpu=FOLDER',
        figures=figures,
        trials=trials,
        not_shown=['a run of either plan: what a step takes is modelled from data sheets, and was never measured'],
    )


if __name__ == '__main__':
    main()
