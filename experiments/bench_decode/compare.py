"""Generation of lmtrain beside transformers: tokens per second in turn, equal texts, and seconds until the first token.

Every side is a process of its own that sleeps while the other works (experiments/bench). Both read the same Hugging
Face directory and continue the same prompts greedily by the same number of tokens.
"""

import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np

from experiments import cli, record
from experiments.bench.bench import Died, Worker, ratios, row, verdict

MODULE = 'experiments.bench_decode'
GPT2 = {'n_layer': 4, 'n_embd': 128, 'n_head': 4, 'n_positions': 512, 'vocab_size': 8192}
WIDE = {'n_layer': 4}  # GPT-2's own width and vocabulary
GPT2_124M = {}
SHAPE = {'vocab_size': 50257, 'max_len': 1024, 'num_layers': 12, 'width': 768, 'mlp_dim': 3072}  # of GPT-2 124M
SHAPE |= {'num_heads': 12, 'num_kv_heads': 12, 'head_dim': 64}
SHAPE |= {'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu', 'qk_norm': False}
TOY = {'n_layer': 2, 'n_embd': 32, 'n_head': 2, 'n_positions': 128, 'vocab_size': 512}
TEXT = (
    'The history of the city begins at the river, where traders from the north met the fishermen of the coast. In the '
    'spring the water was high, and the boats could reach the market without being carried over the stones.'
)
PROMPT = 32  # tokens


class Pair:
    """Both sides, as a context manager."""

    def __init__(self, platform: str):
        self.workers = {side: Worker(side, platform, module=MODULE) for side in ('lmtrain', 'transformers')}

    def __enter__(self) -> dict:
        return self.workers

    def __exit__(self, *error):
        for worker in self.workers.values():
            worker.__exit__(*error)


def equal_part(ours: list, theirs: list) -> float:
    """The share of tokens before the first difference of each pair of texts.

    >>> equal_part([[1, 2, 3, 4]], [[1, 2, 5, 4]])
    0.5
    """
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    equal = [next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), len(pair[0])) for pair in pairs]
    return sum(equal) / sum(len(mine) for mine, _ in pairs)


def in_turn(workers: dict, prompts: list, max_tokens: int, blocks: int) -> tuple[dict, dict, dict]:
    """({side: seconds of its first call}, {side: seconds per token of each block}, {side: texts})."""
    first, texts, seconds = {}, {}, {side: [] for side in workers}
    for side, worker in workers.items():
        answer = worker.ask('generate', prompts=prompts, max_tokens=max_tokens)
        first[side], texts[side] = answer['seconds'][0], answer['texts']
    tokens = len(prompts) * max_tokens
    for _ in range(blocks):
        for side, worker in workers.items():
            answer = worker.ask('generate', prompts=prompts, max_tokens=max_tokens)
            seconds[side].append(answer['seconds'][0] / tokens)
    return first, seconds, texts


def speed(what: str, seconds: dict, least: float | None) -> dict:
    """The row of a ratio of tokens per second, the median of neighbouring blocks."""
    ratio = ratios(seconds['lmtrain'], seconds['transformers'])
    ours, theirs = (1 / statistics.median(seconds[side]) for side in ('lmtrain', 'transformers'))
    figure = f'{ratio["median"]:.2f} (best calls {ratio["best"]:.2f}; {ours:,.1f} against {theirs:,.1f} tokens/s)'
    target = f'at least {least}' if least else ''
    return row(f'{what}: tokens/s over transformers', figure, target, verdict(ratio['median'], least=least))


def pair_rows(workers: dict, what: str, case: dict, blocks: int) -> tuple[list, list]:
    """(figures, trials) of one model, dtype and batch."""
    first, seconds, texts = in_turn(workers, case['prompts'], case['max_tokens'], blocks)
    equal = equal_part(texts['lmtrain'], texts['transformers'])
    exact = case['dtype'] == 'float32'
    figures = [
        speed(what, seconds, case.get('least')),
        row(
            f'{what}: greedy tokens before the first difference',
            f'{equal:.1%}',
            'all' if exact else '',
            equal == 1 if exact else None,
        ),
    ]
    trial = {'what': what, 'dtype': case['dtype'], 'rows': len(case['prompts']), 'prompt': PROMPT}
    trial |= {'max_tokens': case['max_tokens'], 'seconds_per_token': seconds, 'first_call_seconds': first}
    print(json.dumps(figures, indent=1, ensure_ascii=False), flush=True)
    return figures, [trial | {'equal_tokens': equal}]


def random_prompts(rows: int, vocabulary: int) -> list:
    """[rows, PROMPT] ids."""
    return np.random.default_rng(0).integers(0, vocabulary, (rows, PROMPT)).tolist()


def text_prompts(ids: list, rows: int) -> list:
    """Parts of a text, each beginning at another token."""
    return [ids[first : first + PROMPT] for first in range(rows)]


def rollout_rows(worker: Worker, what: str, **case) -> tuple[list, list]:
    """(figures, trials) of rollouts from the live stacks, as multiples of one with a copy of the layers.

    Args:
      case: the arguments of `stacks.measure`.
    """
    trial = worker.ask('rollouts', **case)
    seconds, temporary = trial['seconds'], trial['temporary_bytes']
    speeds = {form: trial['tokens'] / statistics.median(each) for form, each in seconds.items()}
    sizes = {form: f'{size / 1e6:,.2f} MB' for form, size in temporary.items()}
    what, figures = f'{what}, {case["rows"]} rows', []
    for form in ('unrolled', 'scanned'):
        ratio = ratios(seconds[form], seconds['copy'])['median']
        figure = f'{ratio:.2f} ({speeds[form]:,.0f} against {speeds["copy"]:,.0f} tokens/s; temporaries {sizes[form]} '
        figure += f'against {sizes["copy"]} and a copy of {trial["layer_bytes"] / 1e6:,.2f} MB)'
        figures.append(row(f'{what}: {form} live stacks, tokens/s over a copy of the layers', figure))
    print(json.dumps(figures, indent=1), flush=True)
    return figures, [{'what': what} | trial]


def first_text(folder: str, quick: bool) -> tuple[list, list]:
    """Seconds of `lmtrain generate` until its first token, with an empty compilation cache and with a filled one."""
    trials, prompt = [], 'Once upon a time'
    words = ['generate', f'--base={folder}', f'--prompt={prompt}', '--max_tokens=32', '--temperature=0']
    with tempfile.TemporaryDirectory() as home:
        for cache in ('cold', *['warm'] * (1 if quick else 3)):
            start, environment = time.monotonic(), os.environ | {'HOME': home, 'XDG_CACHE_HOME': f'{home}/cache'}
            environment.pop('JAX_COMPILATION_CACHE_DIR', None)
            options = {'env': environment, 'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL}
            with cli.start(*words, **options) as process:
                process.stdout.read(len(prompt) + 1)
                first = time.monotonic() - start
                process.stdout.read()
            trials.append({'what': 'first text', 'cache': cache, 'first': first, 'all': time.monotonic() - start})
    figures = []
    for cache, most in (('cold', 15), ('warm', 4)):
        own = [trial for trial in trials if trial['cache'] == cache]
        seconds, whole = (statistics.median(trial[name] for trial in own) for name in ('first', 'all'))
        figure = f'{seconds:.1f} s ({whole:.1f} s for 32 tokens)'
        what = f'SmolLM2-135M, `lmtrain generate`, {cache} cache: process start to the first token'
        figures.append(row(what, figure, f'at most {most} s', verdict(seconds, most=most)))
    print(json.dumps(figures, indent=1), flush=True)
    return figures, trials


def cpu(smollm2: str, quick: bool) -> None:
    """All rows on the CPU; writes results.json unless `quick`."""
    start, load, blocks = time.monotonic(), os.getloadavg(), 3 if quick else 9
    figures, trials, missing = [], [], ['GPU: `--gpu FILE` on a machine that has one']
    with tempfile.TemporaryDirectory() as folder, Pair('cpu') as workers:
        for name, settings, targets in (('128 wide', GPT2, (3, 2)), ('768 wide', WIDE, (None, None))):
            place = f'{folder}/{name.replace(" ", "_")}'
            workers['transformers'].ask('create', folder=place, settings=settings)
            build(workers, place, 'float32')
            for rows, least in zip((1, 32), targets, strict=True):
                prompts = random_prompts(rows, settings.get('vocab_size', 50257))
                case = {'dtype': 'float32', 'prompts': prompts, 'max_tokens': 64, 'least': least}
                what = f'GPT-2 of 4 layers, {name}, float32, B {rows}'
                more, tried = pair_rows(workers, what, case, blocks)
                figures, trials = figures + more, trials + tried
        for rows, samples in ((64, 8), (1, 1)):
            case = {'rows': rows, 'samples': samples, 'blocks': 2 * blocks}
            more, tried = rollout_rows(workers['lmtrain'], 'Rollout by the quickstart model', **case)
            assert set(tried[0]['equal'].values()) == {1}, 'the forms draw different texts'
            figures, trials = figures + more, trials + tried
        if smollm2:
            ids = workers['lmtrain'].ask('encode', folder=smollm2, text=TEXT)['ids']
            for dtype in ('float32', 'bfloat16'):
                build(workers, smollm2, dtype)
                for rows in (1, 8):
                    case = {'dtype': dtype, 'prompts': text_prompts(ids, rows), 'max_tokens': 48, 'least': 1.3}
                    more, tried = pair_rows(workers, f'SmolLM2-135M, {dtype}, B {rows}', case, min(blocks, 5))
                    figures, trials = figures + more, trials + tried
    if smollm2:
        more, tried = first_text(smollm2, quick)
        figures, trials = figures + more, trials + tried
    else:
        missing.append('SmolLM2-135M: it needs the directory of the model, --smollm2=DIR')
    minutes = round((time.monotonic() - start) / 60, 1)
    print(record.table([record.cells(each) for each in figures]), f'{minutes} minutes', sep='\n')
    if not quick:
        command = 'python -m experiments.bench_decode' + (' --smollm2=DIR' if smollm2 else '')
        about = {'minutes': minutes, 'load_before': load}
        record.write('bench_decode', command=command, figures=figures, trials=trials, not_shown=missing, **about)


def build(workers: dict, folder: str, dtype: str) -> dict:
    """Loads the model on both sides; what lmtrain's side says of it."""
    built = {side: worker.ask('build', folder=folder, dtype=dtype) for side, worker in workers.items()}
    assert built['lmtrain']['parameters'] == built['transformers']['parameters'], built
    return built['lmtrain']


def bandwidth(device: str) -> float | None:
    """Bytes/s of the memory of a device, by its data sheet; None if it is not in the table."""
    from lmtrain.cost.hardware import CHIPS

    return next((chip.bandwidth for name, chip in CHIPS.items() if name in device.lower()), None)


def gpu_rollouts(worker: Worker, device: str, dry: bool, ends: float):
    """Yields (figures, trials, what was not possible) of each case, until time.monotonic() is `ends`."""
    tokens = 16 if dry else 256
    for dtype, rows, samples in (('bfloat16', 64, 8), ('bfloat16', 1, 1), ('float32', 64, 8)):
        what = f'{device}, rollout of {tokens} tokens by {"quickstart" if dry else "GPT-2 124M"}, {dtype}'
        left = ends - time.monotonic()
        if left < 40:
            yield [], [], [f'{what}, {rows} rows: {left:.0f} s were left']
            continue
        case = {'rows': rows, 'samples': samples, 'blocks': 5, 'tokens': tokens}
        case['settings'] = {'dtype': dtype} | ({} if dry else SHAPE)
        try:
            more, tried = rollout_rows(worker, what, **case)
            yield more, tried, []
        except Died as error:
            yield [], [], [f'{what}, {rows} rows: {error}']


def gpu(file: str, dry: bool, seconds: float = 260) -> None:
    """GPT-2 124M with random weights into a JSON file that grows, one row as soon as it is measured."""
    start, about = time.monotonic(), {'machine': record.machine(), 'versions': record.versions()}
    figures, trials, missing = [], [], []

    def write() -> None:
        results = about | {'figures': figures, 'not_shown': missing, 'trials': trials}
        results['minutes'] = round((time.monotonic() - start) / 60, 1)
        pathlib.Path(f'{file}.new').write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
        os.replace(f'{file}.new', file)

    settings, tokens = (TOY, 16) if dry else (GPT2_124M, 256)
    with tempfile.TemporaryDirectory() as folder, Pair('cpu' if dry else 'gpu') as workers:
        workers['transformers'].ask('create', folder=folder, settings=settings)
        built = build(workers, folder, 'bfloat16')
        rate = bandwidth(built['device'])
        for rows in (1, 64):
            left = seconds - (time.monotonic() - start)
            if left < 40:
                missing.append(f'{built["device"]}: batches of {rows} rows: {left:.0f} s were left')
                write()
                continue
            name = f'{built["device"]}, {"toy" if dry else "GPT-2 124M"}, bfloat16'
            what = f'{name}, B {rows}, prompt {PROMPT} and {tokens} tokens'
            try:
                prompts = random_prompts(rows, settings.get('vocab_size', 50257))
                case = {'dtype': 'bfloat16', 'prompts': prompts, 'max_tokens': tokens}
                more, (trial,) = pair_rows(workers, what, case, 3)
                figures += more
                step = statistics.median(trial['seconds_per_token']['lmtrain']) * rows
                read = built['weight_bytes'] + rows * (PROMPT + tokens / 2) * built['cache_bytes_per_token']
                trial |= {'bytes_per_step': read, 'device': built['device']}
                if rate:
                    share = f'{read / step / rate:.1%} of {rate / 1e12:.2f} TB/s'
                    figures.append(
                        row(f'{what}: weights and mean cache read once a step, share of the bandwidth', share)
                    )
                cold = '{lmtrain:.1f} s against {transformers:.1f} s'.format(**trial['first_call_seconds'])
                figures.append(row(f'{what}: the first call', cold))
                trials.append(trial)
            except Died as error:
                missing.append(f'{what}: {error}')
            write()
        for more, tried, reasons in gpu_rollouts(workers['lmtrain'], built['device'], dry, start + seconds):
            figures, trials, missing = figures + more, trials + tried, missing + reasons
            write()
    print(record.table([record.cells(each) for each in figures]))
