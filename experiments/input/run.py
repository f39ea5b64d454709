"""What share of its time a run waits for data.

python experiments/input/run.py
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import record

# recipe: what differs from it here, log points left out at the beginning
RUNS = {
    'tiny': (
        {
            'budget.steps': 4000,
            'log.every_steps': 200,
            'evaluate.every_steps': 4000,
            'checkpoint.every_steps': 4000,
        },
        1,
    ),
    'pretrain_gpt2': (
        {
            'data.tokenizer': 'bytes',
            'data.batch_size': 1,
            'model.dtype': 'float32',
            'optimizer.accumulate': 1,
            'budget.tokens': 6 * 1024,
            'log.every_steps': 1,
            'evaluate.max_batches': 1,
        },
        1,
    ),
}


def main() -> None:
    figures, trials = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        record.write_text(folder, 200, 500)
        for recipe, (changes, left_out) in RUNS.items():
            workdir = folder / recipe
            more = {'data.source': folder / 'text', 'data.cache': folder / 'cache', 'data.validation': 0.2}
            more |= {'data.test': 0.1, 'sample.max_tokens': 1, 'log.tensorboard': False} | changes
            command = [sys.executable, '-m', 'launch.cli', 'train', f'--config=configs/{recipe}.py']
            command += [f'--workdir={workdir}', *(f'--config.{name}={value}' for name, value in more.items())]
            subprocess.run(command, cwd=record.ROOT, check=True)
            lines = [json.loads(line) for line in (workdir / 'timings.jsonl').read_text(encoding='utf-8').splitlines()]
            trials += [{'recipe': recipe, 'changes': changes, **line} for line in lines]
            # The first points hold the wait for the first batch, which nothing was computed beside.
            share = statistics.mean(line['data_wait'] for line in lines[left_out:])
            seconds = statistics.median(line['seconds_per_step'] for line in lines[left_out:])
            figures.append(
                {
                    'what': f'{recipe}: share of its time that the loop waits for data, '
                    f'{lines[-1]["step"]} steps of {seconds:.2g} s',
                    'figure': f'{share:.2%} (at most {max(line["data_wait"] for line in lines[left_out:]):.2%} '
                    f'between two log points; {lines[0]["data_wait"]:.2%} up to the first)',
                    'target': '<= 1 %',
                    'reached': share <= 0.01,
                }
            )
            print(figures[-1], flush=True)
    record.write(
        'input',
        command='python experiments/input/run.py',
        figures=figures,
        trials=trials,
        not_shown=['the 124M recipe at its own batch (512 rows), tokenizer and text, and on an accelerator'],
    )


if __name__ == '__main__':
    main()
