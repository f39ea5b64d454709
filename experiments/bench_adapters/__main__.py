"""How fast is LoRA compared with PEFT, and a step of a soft prompt compared with one of LoRA?

    bash experiments/bench_adapters/run.sh [--dry]
    python -m experiments.bench_adapters --gpu FILE [--dry]    # one GPU, 2 minutes; recorded by experiments.bench_gpu

Every side is a process of its own, as in experiments/bench. All start from the same GPT-2 directory, which transformers
wrote, and take the same batches.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

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
FULL = {'method': 'full'}
GPU_SIDES = {'lmtrain': LORA, 'full': FULL}
FIRST = 1e-4  # nats that the first losses may differ


def in_turn(folder: str, platform: str, dtype: str, sides: dict, shape: dict, blocks: int, steps: int) -> dict:
    """Blocks of steps of all sides and of PEFT, in turn.

    Args:
      sides: {name: config.adapt} of lmtrain.
    """
    where, base = bench.place(folder, shape), str(pathlib.Path(folder) / 'gpt2')
    names = (*sides, 'peft')
    workers = {side: bench.Worker(side, platform, module='experiments.bench_adapters') for side in names}
    try:
        peft = workers['peft']
        peft.ask('write', shape=shape, directory=base, room=PROMPT)
        built = {
            side: workers[side].ask('build', shape=shape, dtype=dtype, folder=where, base_model=base, adapt=adapt)
            for side, adapt in sides.items()
        }
        options = {'optimizer': built['lmtrain']['optimizer'], 'rank': RANK, 'alpha': ALPHA, 'dtype': dtype}
        built['peft'] = peft.ask('build', directory=base, folder=where, **options)
        losses = {side: workers[side].ask('steps', count=bench.CHECKED)['losses'] for side in names}
        seconds = {side: [] for side in names}
        for _ in range(blocks):
            for side in names:
                answer = workers[side].ask('steps', count=steps)
                seconds[side].append(answer['seconds'] / (steps * shape['batch_size'] * shape['seq_len']))
        peaks = {side: worker.ask('peak_bytes') for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.__exit__()
    trial = {'shape': shape, 'dtype': dtype, 'adapters': sides, 'steps_per_block': steps, 'sides': built}
    return trial | {'losses': losses, 'seconds_per_token': seconds, 'peak_bytes': peaks}


def measured(folder: str, dry: bool) -> tuple[list, list]:
    """Blocks of all sides in turn on the CPU: (figures, trials)."""
    shape, blocks, steps = (bench.TOY, 2, 2) if dry else (SHAPE, 9, 4)
    trial = in_turn(folder, 'cpu', 'float32', SIDES, shape, blocks, steps)
    seconds, losses = trial['seconds_per_token'], trial['losses']
    speed = bench.ratios(seconds['lmtrain'], seconds['peft'])
    over = {side: bench.ratios(seconds[side], seconds['prompt']) for side in ('lmtrain', 'query_value')}
    trial |= {'lora_over_peft': speed, 'prompt_over_lora': over}
    rate = {side: 1 / statistics.median(own) for side, own in seconds.items()}
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


def gpu(file: str, dry: bool) -> None:
    """LoRA over PEFT and over full fine-tuning, GPT-2 124M in bfloat16, into a JSON file for experiments.bench_gpu."""
    start, about = time.monotonic(), {'machine': record.machine(), 'versions': record.versions()}
    shape, blocks, steps = (bench.TOY, 2, 2) if dry else (bench.GPT2 | {'batch_size': 16}, 5, 10)
    with tempfile.TemporaryDirectory() as folder:
        trial = in_turn(folder, 'cpu' if dry else 'gpu', 'bfloat16', GPU_SIDES, shape, blocks, steps)
    seconds, peaks = trial['seconds_per_token'], trial['peak_bytes']
    rate = {side: 1 / statistics.median(own) for side, own in seconds.items()}
    gigabytes = {side: f', {peak / 2**30:.1f} GiB' if peak else '' for side, peak in peaks.items()}
    what, figures = f'{trial["sides"]["lmtrain"]["device"]}, GPT-2 124M, bfloat16, B {shape["batch_size"]}', []
    for side, name in (('peft', "PEFT's, eager"), ('full', 'a step of full fine-tuning')):
        ratio = bench.ratios(seconds['lmtrain'], seconds[side])
        figure = f'{ratio["median"]:.2f} (best blocks {ratio["best"]:.2f}; {rate["lmtrain"]:,.0f} tokens/s'
        figure += f'{gigabytes["lmtrain"]}, against {rate[side]:,.0f} tokens/s{gigabytes[side]})'
        figures.append(bench.row(f'{what}: tokens/s of LoRA, rank {RANK} on every linear layer, over {name}', figure))
    apart = abs(trial['losses']['lmtrain'][0] - trial['losses']['peft'][0])
    figures.append(bench.row(f'{what}: LoRA and PEFT, loss of the first step, difference in nats', f'{apart:.1e}'))
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    results = about | {'figures': figures, 'not_shown': [], 'trials': [{'what': what} | trial]}
    results['minutes'] = round((time.monotonic() - start) / 60, 1)
    pathlib.Path(file).write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    match sys.argv[1:]:
        case ['--worker', 'peft', platform]:
            from experiments.bench_adapters import peft_gpt

            bench.serve(peft_gpt.Side(platform, bench.THREADS))
        case ['--worker', _, platform]:
            bench.serve(bench.Ours(platform, bench.THREADS))
        case ['--gpu', file] | ['--gpu', file, '--dry']:
            gpu(file, dry='--dry' in sys.argv)
        case [] | ['--dry'] as flags:
            main(dry=bool(flags))
        case _:
            sys.exit('usage: bash experiments/bench_adapters/run.sh [--gpu FILE] [--dry]')
