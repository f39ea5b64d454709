"""How fast is LoRA compared with PEFT, and a step of a soft prompt compared with one of LoRA?

    bash experiments/bench_adapters/run.sh [--dry]

Every side is a process of its own, as in experiments/bench. All start from the same GPT-2 directory, which transformers
wrote, and take the same batches.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile

from experiments import record
from experiments.bench import bench

RANK, ALPHA, PROMPT = 8, 16.0, 20
SHAPE = bench.LARGE
LORA = {
    'method': 'lora',
    'lora': {'rank': (('.*/(attention|mlp)/.*/kernel', RANK),), 'alpha': (('.*', ALPHA),)},
}
QUERY_VALUE = {'method': 'lora', 'lora': {'rank': (('.*/attention/(query|value)/kernel', RANK),)}}
SOFT = {'method': 'prompt', 'prompt': {'length': PROMPT}}
SIDES = {'lmtrain': LORA, 'query_value': QUERY_VALUE, 'prompt': SOFT}
FIRST = 1e-4  # nats that the first losses may differ


def measured(folder: str, dry: bool) -> tuple[list, list]:
    """Blocks of all sides in turn: (figures, trials)."""
    shape, blocks, steps = (bench.TOY, 2, 2) if dry else (SHAPE, 9, 4)
    where, base = bench.place(folder, shape), str(pathlib.Path(folder) / 'gpt2')
    sides = (*SIDES, 'peft')
    workers = {side: bench.Worker(side, 'cpu', module='experiments.bench_adapters') for side in sides}
    try:
        peft = workers['peft']
        peft.ask('write', shape=shape, directory=base, room=PROMPT)
        built = {
            side: workers[side].ask('build', shape=shape, dtype='float32', folder=where, base_model=base, adapt=adapt)
            for side, adapt in SIDES.items()
        }
        options = {'optimizer': built['lmtrain']['optimizer'], 'rank': RANK, 'alpha': ALPHA}
        built['peft'] = peft.ask('build', directory=base, folder=where, **options)
        losses = {side: workers[side].ask('steps', count=bench.CHECKED)['losses'] for side in sides}
        seconds = {side: [] for side in sides}
        for _ in range(blocks):
            for side in sides:
                answer = workers[side].ask('steps', count=steps)
                seconds[side].append(answer['seconds'] / (steps * shape['batch_size'] * shape['seq_len']))
    finally:
        for worker in workers.values():
            worker.__exit__()
    speed = bench.ratios(seconds['lmtrain'], seconds['peft'])
    over = {side: bench.ratios(seconds[side], seconds['prompt']) for side in ('lmtrain', 'query_value')}
    trial = {'shape': shape, 'adapters': SIDES, 'steps_per_block': steps, 'sides': built, 'losses': losses}
    trial |= {'seconds_per_token': seconds, 'lora_over_peft': speed, 'prompt_over_lora': over}
    rate = {side: 1 / statistics.median(seconds[side]) for side in sides}
    apart = abs(losses['lmtrain'][0] - losses['peft'][0])
    name = bench.named(shape)
    figures = [
        bench.row(
            f'{name}: tokens/s of LoRA over PEFT, rank {RANK} on every linear layer',
            f'{speed["median"]:.2f} (best blocks {speed["best"]:.2f}; {rate["lmtrain"]:,.0f} against '
            f'{rate["peft"]:,.0f} tokens/s)',
            'at least 0.7; the aim is 1.0',
            bench.verdict(speed['median'], least=0.7),
        ),
        bench.row(
            f'{name}: loss of the first step, difference in nats',
            f'{apart:.1e}',
            f'at most {FIRST}',
            bench.verdict(apart, most=FIRST),
        ),
    ]
    for side, layers in (('lmtrain', 'every linear layer'), ('query_value', 'query and value')):
        figures.append(
            bench.row(
                f'{name}: seconds of a step with {PROMPT} prompt embeddings over LoRA, rank {RANK} on {layers}',
                f'{over[side]["median"]:.2f} (best blocks {over[side]["best"]:.2f})',
                'at most 1.05',
                bench.verdict(over[side]['median'], most=1.05),
            )
        )
    return figures, [trial]


def main(dry: bool) -> None:
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        figures, trials = measured(folder, dry)
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    if not dry:
        missing = ['a GPU, bfloat16, and PEFT under torch.compile']
        command = 'bash experiments/bench_adapters/run.sh'
        record.write(
            'bench_adapters', command=command, figures=figures, trials=trials, not_shown=missing, load_before=load
        )


if __name__ == '__main__':
    match sys.argv[1:]:
        case ['--worker', 'peft', _]:
            from experiments.bench_adapters import peft_gpt

            bench.serve(peft_gpt.Side(bench.THREADS))
        case ['--worker', _, platform]:
            bench.serve(bench.Ours(platform, bench.THREADS))
        case [] | ['--dry'] as flags:
            main(dry=bool(flags))
        case _:
            sys.exit('usage: bash experiments/bench_adapters/run.sh [--dry]')
