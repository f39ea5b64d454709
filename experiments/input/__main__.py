"""What share of its time does a run wait for data?

python -m experiments.input
"""

import pathlib
import statistics
import tempfile

from experiments import cli, record

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
            more = cli.small_text(folder) | {'data.test': 0.1, 'sample.max_tokens': 1} | changes
            cli.train(recipe, workdir, more)
            lines = cli.json_lines(workdir / 'timings.jsonl')
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
        command='python -m experiments.input',
        figures=figures,
        trials=trials,
        not_shown=['the 124M recipe at its own batch (512 rows), tokenizer and text, and on an accelerator'],
    )


if __name__ == '__main__':
    main()
