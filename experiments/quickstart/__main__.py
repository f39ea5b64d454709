"""How long does the README's first command take on a new machine, and how good is its model?

python -m experiments.quickstart
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

from experiments import cli, record


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        # A home of its own: no text prepared, nothing compiled.
        workdir = pathlib.Path(home) / 'quickstart'
        environment = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XDG_'))}
        begun = time.monotonic()
        words = ['train', '--config=configs/quickstart.py', f'--workdir={workdir}']
        with cli.start(*words, env=environment | {'HOME': home}) as process:
            first_step = cli.wait_for_first_step(process, workdir, begun)
        total = time.monotonic() - begun
        if process.returncode:
            sys.exit(process.returncode)
        results = json.loads((workdir / 'results.json').read_text(encoding='utf-8'))
        sample = (workdir / 'samples.txt').read_text(encoding='utf-8')
        shutil.copy(workdir / 'loss.png', pathlib.Path(__file__).parent)
    bits, baselines = results['validation']['bits_per_byte'], results['baselines']
    record.write(
        'quickstart',
        command='python -m experiments.quickstart',
        figures=[
            {
                'what': 'from the command to the end, cold',
                'figure': f'{total:.0f} s',
                'target': '<= 300 s',
                'reached': total <= 300,
            },
            {
                'what': 'from the command to the first step',
                'figure': f'{first_step:.1f} s',
                'target': '<= 30 s',
                'reached': first_step <= 30,
            },
            {
                'what': 'validation, bits per byte',
                'figure': f'{bits:.3f}',
                'target': f'< bigram {baselines["bigram"]:.3f}, < `xz -9e` {baselines["xz"]:.3f}, < 1.66',
                'reached': bits < min(baselines['bigram'], baselines['xz'], 1.66),
            },
            {'what': 'parameters', 'figure': f'{results["cost"]["parameters"]:,}', 'target': '', 'reached': None},
            {
                'what': 'steps, tokens',
                'figure': f'{results["cost"]["steps"]:,}, {results["cost"]["tokens"]:,}',
                'target': '',
                'reached': None,
            },
        ],
        trials=[{'total_seconds': total, 'first_step_seconds': first_step, 'sample': sample} | results],
        not_shown=['Creating the virtual environment and installing packages, which the network decides.'],
    )


if __name__ == '__main__':
    main()
