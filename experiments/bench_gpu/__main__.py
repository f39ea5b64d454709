"""How fast are training, LoRA and decoding on one GPU, compared with PyTorch?

    bash experiments/bench/run.sh --gpu gpu.json            # on the machine with the GPU: 3 minutes, writes one file
    python -m experiments.bench_decode --gpu decode.json    # the same for decoding
    python -m experiments.bench_adapters --gpu lora.json    # the same for LoRA
    python -m experiments.bench_gpu COMMIT:FILE...          # here: records them and renders the README

A machine with a GPU may have neither the history of the repository nor much time, so that measuring and recording are
separate commands. COMMIT is the one that was measured.
"""

import json
import pathlib
import sys

from experiments import record


def main(arguments: list[str]) -> None:
    if not arguments or not all(':' in argument for argument in arguments):
        sys.exit('usage: python -m experiments.bench_gpu COMMIT:FILE...')
    commits, files = zip(*(argument.split(':', 1) for argument in arguments), strict=True)
    commits = [record.git('rev-parse', commit) for commit in commits]
    parts = [json.loads(pathlib.Path(file).read_text(encoding='utf-8')) for file in files]
    if any(part['versions'] != parts[0]['versions'] for part in parts):
        sys.exit('the files were measured with different versions: record those of one machine together')
    record.write(
        'bench_gpu',
        command='bash experiments/bench/run.sh --gpu FILE; python -m experiments.bench_decode --gpu FILE; '
        'python -m experiments.bench_adapters --gpu FILE',
        figures=[row for part in parts for row in part['figures']],
        trials=[
            trial | {'commit': commit} for commit, part in zip(commits, parts, strict=True) for trial in part['trials']
        ],
        not_shown=[line for part in parts for line in part['not_shown']],
        commit=commits[-1],
        machine=parts[0]['machine'],
        versions=parts[0]['versions'],
        minutes=sum(part['minutes'] for part in parts),
    )


if __name__ == '__main__':
    main(sys.argv[1:])
