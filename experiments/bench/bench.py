"""lmtrain beside PyTorch: tokens per second, seconds to compile, FLOPs compiled over FLOPs counted.

Every side is a process of its own that sleeps while the other works, and answers requests of one JSON line each. Both
take the batches and the first parameters of the same lmtrain run; lmtrain's are those of `lmtrain train` itself.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from experiments import record
from experiments.record import ROOT
from launch import process_setup

THREADS = len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()
CHECKED = 20  # steps whose losses are compared; they also warm up
BATCHES = 4  # taken in turn
SMALL = {'num_layers': 4, 'num_heads': 4, 'width': 128, 'seq_len': 64, 'batch_size': 12, 'vocab_size': 65}
LARGE = {'num_layers': 6, 'num_heads': 6, 'width': 384, 'seq_len': 256, 'batch_size': 12, 'vocab_size': 65}
DEEP = {'num_heads': 4, 'width': 256, 'seq_len': 256, 'batch_size': 8, 'vocab_size': 4096}
GPT2 = {'num_layers': 12, 'num_heads': 12, 'width': 768, 'seq_len': 1024, 'vocab_size': 50304}
TOY = {'num_layers': 2, 'num_heads': 2, 'width': 32, 'seq_len': 32, 'batch_size': 4, 'vocab_size': 65}
TOLERANCE = {'float32': 1e-3, 'bfloat16': 1e-2}  # nats


# The pure parts.


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Our speed over theirs from seconds per token of paired blocks: the median of the pairs, and best against best."""
    pairs = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {'median': statistics.median(pairs), 'best': min(theirs) / min(ours)}


def verdict(value: float, least: float | None = None, most: float | None = None) -> bool | None:
    """Whether a figure reaches its target; None without a target."""
    if least is None and most is None:
        return None
    return (least is None or value >= least) and (most is None or value <= most)


def row(what: str, figure: str, target: str = '', reached: bool | None = None) -> dict:
    return {'what': what, 'figure': figure, 'target': target, 'reached': reached}


def named(shape: dict) -> str:
    return '{num_layers} layers, {width} wide, T {seq_len}, B {batch_size}'.format(**shape)


# Workers.


class Died(RuntimeError):
    """A worker ended before it answered; its last words are on stderr."""


class Worker:
    """One side, 'lmtrain' or 'torch', on 'cpu' or 'gpu'; `python -m module` serves it."""

    def __init__(self, side: str, platform: str, cache: str = '', module: str = 'experiments.bench'):
        environment = os.environ | {
            'JAX_PLATFORMS': {'cpu': 'cpu', 'gpu': 'cuda'}[platform],
            'JAX_ENABLE_COMPILATION_CACHE': 'true' if cache else 'false',
            'JAX_COMPILATION_CACHE_DIR': cache,
            'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # two processes share the GPU
            'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0],
            'OMP_NUM_THREADS': str(THREADS),
            'TF_CPP_MIN_LOG_LEVEL': '2',
        }
        command = (sys.executable, '-m', module, '--worker', side, platform)
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding='utf-8', env=environment
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, do: str, **arguments):
        """The answer of the method `do` of the worker's side; raises Died where there is none."""
        try:
            self.process.stdin.write(json.dumps({'do': do} | arguments) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, and says so by saying nothing
        answer = self.process.stdout.readline()
        if not answer:
            raise Died(f'{" ".join(self.process.args[3:])} ended with {self.process.wait()} when asked to {do}')
        return json.loads(answer)


def serve(side) -> None:
    """Answers until the driver hangs up. What libraries print goes to stderr."""
    if not process_setup.accelerated():
        process_setup.keep_memory()  # as lmtrain does; PyTorch, which asks the same allocator, gets the same
    answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(side, request.pop('do'))(**request)), file=answers, flush=True)


class Ours:
    """lmtrain's side: the run that `lmtrain train` would build from the same config."""

    def __init__(self, platform: str, threads: int):
        # XLA takes as many threads as there are cores and cannot be told another number; so does the other side.
        import jax

        self.device = jax.devices()[0]

    def assemble(self, shape, dtype, folder, unroll=0, base_model='', adapt=None):
        from configs import base
        from lmtrain.training.build import build
        from lmtrain.training.resolve import resolve

        config = base.get_config()
        config.data.source = f'{folder}/text.txt'
        config.data.cache = folder
        config.data.tokenizer = 'chars'
        config.data.split = 'tail'
        config.data.test = 0.0
        config.data.isolate = False
        for name in ('vocab_size', 'seq_len', 'batch_size'):
            config.data[name] = shape[name]
        for name in ('num_layers', 'num_heads', 'width'):
            config.model[name] = shape[name]
        config.model.update(positions='learned', norm='layernorm', activation='gelu', dtype=dtype)
        if unroll:
            config.model.unroll = unroll
        if base_model:
            config.init.base = base_model
            config.adapt.update(adapt)
        config.schedule.update(name='constant', warmup=0.0)
        config.budget.steps = 1000
        return build(*resolve(config))

    def build(self, shape, dtype, folder, **start):
        """A compiled step and its first state; parameters and batches are left in `folder` for the other side."""
        import jax

        from lmtrain import cost, tree

        run = self.assemble(shape, dtype, folder, **start)
        self.compiled, self.state = run.train_step(), run.initial.on_mesh()
        stream = run.train_stream()
        batches = [stream.batch(step) for step in range(BATCHES)]
        self.batches = [jax.device_put(batch) for batch in batches]
        params = tree.flatten(jax.device_get(self.state.params))
        folder = pathlib.Path(folder)
        np.savez(folder / 'params.npz', **params)
        np.savez(folder / 'batches.npz', **{name: np.stack([b[name] for b in batches]) for name in batches[0]})
        self.done = 0
        count = functools.partial(cost.flops_per_step, run.model, shape['batch_size'], shape['seq_len'])
        self.executed, tokens = count(block=128).executed, shape['batch_size'] * shape['seq_len']
        return {
            'parameters': sum(x.size for x in params.values()),
            'threads': THREADS,
            'optimizer': run.config.optimizer.to_dict(),
            'flops_per_token': {'all keys': count().total / tokens, 'causal': count(block=1).total / tokens},
            'peak_flops': cost.peak_flops(self.device.device_kind, dtype),
            'device': self.device.device_kind,
        }

    def steps(self, count):
        """Takes `count` train steps; seconds until the last has ended, and the loss of each."""
        losses, start = [], time.perf_counter()
        for _ in range(count):
            batch = self.batches[self.done % len(self.batches)]
            self.state, metrics = self.compiled(self.state, batch, np.float32(0))
            losses.append(metrics['loss'])
            self.done += 1
        self.state.step.block_until_ready()
        return {'seconds': time.perf_counter() - start, 'losses': [float(loss) for loss in losses]}

    def compiled_over_counted(self):
        """FLOPs of the compiled step over those of lmtrain.cost."""
        from lmtrain.cost import hlo

        return hlo.compiled_flops(self.compiled) / self.executed

    def compile(self, shape, folder):
        """Seconds from the assembled run to the compiled step, layers scanned one at a time."""
        from lmtrain import cost
        from lmtrain.cost import hlo

        run = self.assemble(shape, 'float32', folder, unroll=1)
        start = time.perf_counter()
        compiled = run.train_step()
        seconds = time.perf_counter() - start
        counted = cost.flops_per_step(run.model, shape['batch_size'], shape['seq_len'], block=128).executed
        return {'seconds': seconds, 'compiled_over_counted': hlo.compiled_flops(compiled) / counted}

    def peak_bytes(self):
        stats = self.device.memory_stats()
        return stats and stats['peak_bytes_in_use']


# The measurements.


def place(folder: str, shape: dict) -> str:
    """A folder for a shape, with a text in it: symbols, each one of four that may follow the one before."""
    path = pathlib.Path(folder) / named(shape).replace(', ', '_').replace(' ', '')
    if not path.exists():
        path.mkdir()
        symbols, text, x = shape['vocab_size'] - 1, [], 0
        length = 2 * BATCHES * shape['batch_size'] * shape['seq_len']
        for noise in np.random.default_rng(0).integers(0, 4, length).tolist():
            x = (3 * x + noise) % symbols
            text.append(chr(0x20000 + x))
        (path / 'text.txt').write_text(''.join(text), encoding='utf-8')
    return str(path)


def build(workers: dict, shapes: dict, dtype: str, folder: str, options: dict) -> dict:
    """Builds lmtrain's side and then, from what that leaves behind, PyTorch's; what each says of itself."""
    where = place(folder, shapes['lmtrain'])
    built = {'lmtrain': workers['lmtrain'].ask('build', shape=shapes['lmtrain'], dtype=dtype, folder=where)}
    if 'torch' in workers:
        options = options | {'optimizer': built['lmtrain']['optimizer'], 'folder': place(folder, shapes['torch'])}
        built['torch'] = workers['torch'].ask('build', shape=shapes['torch'], dtype=dtype, **options)
        assert built['torch']['parameters'] == built['lmtrain']['parameters'], built
        assert built['torch']['threads'] == built['lmtrain']['threads'], built
    return built


def interleave(workers: dict, shapes: dict, blocks: int, steps: int) -> tuple[dict, dict]:
    """Blocks of steps in turn: ({side: seconds per token of each block}, ratios)."""
    seconds = {side: [] for side in workers}
    for _ in range(blocks):
        for side, worker in workers.items():
            tokens = steps * shapes[side]['batch_size'] * shapes[side]['seq_len']
            seconds[side].append(worker.ask('steps', count=steps)['seconds'] / tokens)
    return seconds, ratios(seconds['lmtrain'], seconds['torch'])


def speed_row(what: str, seconds: dict, ratio: dict, least: float | None) -> dict:
    ours, theirs = (1 / statistics.median(seconds[side]) for side in ('lmtrain', 'torch'))
    figure = f'{ratio["median"]:.2f} (best blocks {ratio["best"]:.2f}; {ours:,.0f} against {theirs:,.0f} tokens/s)'
    target = f'at least {least}; the aim is 1.0' if least else ''
    return row(f'{what}: tokens/s of lmtrain over PyTorch', figure, target, verdict(ratio['median'], least=least))


def difference(losses: dict) -> float:
    return max(abs(a - b) for a, b in zip(losses['lmtrain'], losses['torch'], strict=True))


def cpu(folder: str, dry: bool) -> tuple[list, list]:
    """Both shapes in both dtypes, against PyTorch eager: (figures, trials)."""
    figures, trials, flops = [], [], {}
    plan = [(TOY, 2, 2)] if dry else [(SMALL, 12, 40), (LARGE, 7, 4)]
    with Worker('lmtrain', 'cpu') as ours, Worker('torch', 'cpu') as theirs:
        workers = {'lmtrain': ours, 'torch': theirs}
        for dtype in ('float32', 'bfloat16'):
            for shape, blocks, steps in plan:
                shapes = dict.fromkeys(workers, shape)
                built = build(workers, shapes, dtype, folder, {})
                losses = {side: worker.ask('steps', count=CHECKED)['losses'] for side, worker in workers.items()}
                seconds, ratio = interleave(workers, shapes, blocks, steps)
                if dtype == 'float32':
                    flops[named(shape)] = ours.ask('compiled_over_counted')
                trials.append(
                    {'what': 'speed', 'platform': 'cpu', 'shape': shape, 'dtype': dtype, 'steps_per_block': steps}
                    | {'sides': built, 'seconds_per_token': seconds, 'ratio': ratio, 'losses': losses}
                )
                what = f'CPU, {dtype}, {named(shape)}'
                figures.append(speed_row(what, seconds, ratio, 0.6 if dtype == 'float32' else None))
                apart, most = difference(losses), TOLERANCE[dtype]
                what = f'{what}: losses of the first {CHECKED} steps, largest difference in nats'
                figures.append(row(what, f'{apart:.1e}', f'at most {most}', verdict(apart, most=most)))
                print(json.dumps(figures[-2:], indent=1, ensure_ascii=False), flush=True)
        more, trial = compile_time(ours, folder, dry, flops)
    return figures + more, [*trials, trial]


def compile_time(ours: Worker, folder: str, dry: bool, flops: dict) -> tuple[list, dict]:
    """48 layers against 4, in turn, the first pair not counted; and all FLOPs that were compiled over those counted."""
    shape = TOY if dry else DEEP
    answers = {depth: [] for depth in (4, 48)}
    for _ in range(2 if dry else 6):
        for depth, of_depth in answers.items():
            deep = shape | {'num_layers': depth}
            of_depth.append(ours.ask('compile', shape=deep, folder=place(folder, deep)))
    seconds = {depth: [answer['seconds'] for answer in of_depth[1:]] for depth, of_depth in answers.items()}
    for depth, of_depth in answers.items():
        flops = flops | {named(shape | {'num_layers': depth}): of_depth[0]['compiled_over_counted']}
    four, deep = (statistics.median(seconds[depth]) for depth in (4, 48))
    ratio = ratios(seconds[4], seconds[48])['median']
    furthest = max(flops.values(), key=lambda value: abs(value - 1))
    figures = [
        row(
            f'seconds to compile 48 layers over 4, width {shape["width"]}, scanned, no cache',
            f'{ratio:.2f} ({deep:.1f} s against {four:.1f} s)',
            'at most 1.5',
            verdict(ratio, most=1.5),
        ),
        row(
            f'FLOPs compiled over FLOPs counted, furthest from 1 of {len(flops)} programs',
            f'{furthest:.4f}',
            'within 3 %',
            verdict(furthest, 0.97, 1.03),
        ),
    ]
    return figures, {'what': 'compile', 'shape': shape, 'seconds': seconds, 'compiled_over_counted': flops}


def gpu_seen() -> bool:
    """Whether jax has a GPU, asked in a process that ends."""
    ask = 'import jax; print(jax.default_backend())'
    return subprocess.run((sys.executable, '-c', ask), capture_output=True, encoding='utf-8').stdout.strip() == 'gpu'


def main(dry: bool) -> None:
    start = time.monotonic()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        figures, trials = cpu(folder, dry)
        missing = []
        if dry or gpu_seen():
            from experiments.bench import gpu

            more, tried, missing = gpu.measure(folder, dry, lambda *so_far: None)
            figures, trials = figures + more, trials + tried
        else:
            missing = ['GPU: GPT-2 124M beside PyTorch compiled, its MFU and peak memory; this machine has none']
    minutes = (time.monotonic() - start) / 60
    print(json.dumps({'figures': figures, 'not_shown': missing}, indent=1, ensure_ascii=False))
    print(f'{minutes:.1f} minutes')
    if not dry:
        record.write(
            'bench',
            command='bash experiments/bench/run.sh',
            figures=figures,
            trials=trials,
            not_shown=missing,
            minutes=round(minutes, 1),
            load_before=load,
        )


def gpu_alone(file: str, dry: bool) -> None:
    """What `main` does on a GPU and nothing else, into a JSON file that grows, as the machine is lent."""
    from experiments.bench import gpu

    start, about = time.monotonic(), {'machine': record.machine(), 'versions': record.versions()}

    def write(figures: list, trials: list, missing: list) -> None:
        results = about | {'figures': figures, 'not_shown': missing, 'trials': trials}
        results['minutes'] = round((time.monotonic() - start) / 60, 1)
        new = pathlib.Path(f'{file}.new')
        new.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
        new.replace(file)

    with tempfile.TemporaryDirectory() as folder:
        gpu.measure(folder, dry, write)
