"""GPT-2 124M in bfloat16 compared with compiled PyTorch, on a GPU that is available for minutes.

Every figure is written as soon as it is measured, 32 rows first. After `SECONDS` the workers are ended, and the rest is
listed as missing, so that the file is complete.
"""

import threading
import time

from experiments.bench.bench import (
    CHECKED,
    GPT2,
    TOLERANCE,
    TOY,
    Died,
    Worker,
    build,
    difference,
    interleave,
    place,
    row,
    speed_row,
    verdict,
)

SIZES, SECONDS = (32, 64, 16), 220  # rows of a batch; of all
BLOCKS, STEPS = 6, 10


def measure(folder: str, dry: bool, write) -> tuple[list, list, list]:
    """(figures, trials, what was not possible); `write` is called with them whenever there is more to say."""
    platform, base, sizes = ('cpu', TOY, (4, 8)) if dry else ('gpu', GPT2, SIZES)
    ends, figures, trials, missing, took = time.monotonic() + SECONDS, [], [], [], 0.0
    for size in sizes:
        left = ends - time.monotonic()
        if left < 1.2 * took:
            missing.append(f'GPU: batches of {size} rows: {left:.0f} s were left')
            write(figures, trials, missing)
            continue
        start = time.monotonic()
        try:
            with Worker('lmtrain', platform, f'{folder}/xla') as ours, Worker('torch', platform) as theirs:
                workers = {'lmtrain': ours, 'torch': theirs}
                with limited(workers, left):
                    shape = base | {'batch_size': size}
                    for more, trial in pair(workers, shape, folder, dry, control=size == sizes[0]):
                        figures += more
                        trials += trial
                        write(figures, trials, missing)
        except Died as error:
            missing.append(f'GPU: batches of {size} rows, the rest of it: {error}')
        took = time.monotonic() - start
        write(figures, trials, missing)
    return figures, trials, missing


class limited:
    """Ends workers after some seconds, so that they answer no more; for a `with`."""

    def __init__(self, workers: dict, seconds: float):
        self.timer = threading.Timer(seconds, lambda: [worker.process.kill() for worker in workers.values()])

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *error):
        self.timer.cancel()


def pair(workers: dict, shape: dict, folder: str, dry: bool, control: bool):
    """Yields (figures, trials) of one shape: of each side alone, then of both in turn.

    Args:
      control: also `controls`.
    """
    steps, shapes = 2 if dry else STEPS, dict.fromkeys(workers, shape)
    losses, built, options = {}, {}, {'attention': 'flash', 'compiled': not dry}
    for side in workers:
        if side == 'lmtrain':
            built |= build({'lmtrain': workers['lmtrain']}, shapes, 'bfloat16', folder, {})
        else:
            built |= {'torch': beside(workers['torch'], built['lmtrain'], shape, folder, options)}
        about = built['lmtrain']
        losses[side] = workers[side].ask('steps', count=CHECKED)['losses']
        per_token = workers[side].ask('steps', count=steps)['seconds'] / (
            steps * shape['batch_size'] * shape['seq_len']
        )
        peak = workers[side].ask('peak_bytes')
        figure = [f'{1 / per_token:,.0f} tokens/s']
        if about['peak_flops']:
            rate = 1 / per_token / about['peak_flops']
            figure += [f'MFU {rate * flops:.1%} ({keys})' for keys, flops in about['flops_per_token'].items()]
        figure += [f'peak memory {peak / 2**30:.1f} GiB'] if peak else []
        what = f'{about["device"]}, GPT-2 124M, bfloat16, B {shape["batch_size"]}'
        trial = {'what': 'alone', 'side': side, 'shape': shape, 'options': options, 'said': built[side]}
        trial |= {'losses': losses[side], 'seconds_per_token': per_token, 'peak_bytes': peak}
        print(what, side, *figure, flush=True)
        yield [row(f'{what}: {side}', ', '.join(figure))], [trial]
    seconds, ratio = interleave(workers, shapes, 2 if dry else BLOCKS, steps)
    apart, most = difference(losses), TOLERANCE['bfloat16']
    first = f'{what}: losses of the first {CHECKED} steps, largest difference in nats'
    figures = [
        speed_row(f'{what}, PyTorch compiled with flash attention', seconds, ratio, None),
        row(first, f'{apart:.1e}', f'at most {most}', verdict(apart, most=most)),
    ]
    trial = {'what': 'speed', 'platform': 'gpu', 'shape': shape, 'dtype': 'bfloat16', 'options': options}
    yield figures, [trial | {'device': about['device'], 'seconds_per_token': seconds, 'ratio': ratio}]
    if control:
        yield controls(workers['torch'], built['lmtrain'], what, shape, folder, losses)


def controls(worker: Worker, ours: dict, what: str, shape: dict, folder: str, losses: dict) -> tuple[list, list]:
    """(figures, trials): how far the losses of PyTorch differ among themselves and with a residual stream in bfloat16.

    Under autocast the residual stream of PyTorch is float32; that of lmtrain has the dtype of the computation.
    """
    options = {'attention': 'flash', 'compiled': False}
    for name, residual in (('eager', ''), ('eager, bfloat16 residual', 'bfloat16')):
        beside(worker, ours, shape, folder, options | {'residual': residual})
        losses = losses | {name: worker.ask('steps', count=CHECKED)['losses']}
    pairs = {
        'PyTorch compiled and eager': ('torch', 'eager'),
        'PyTorch eager, residual stream in float32 and in bfloat16': ('eager', 'eager, bfloat16 residual'),
        'lmtrain and PyTorch eager, both in bfloat16': ('lmtrain', 'eager, bfloat16 residual'),
    }
    figures = []
    for name, pair in pairs.items():
        apart = max(abs(a - b) for a, b in zip(*(losses[side] for side in pair), strict=True))
        figures.append(row(f'{what}: the same, {name}', f'{apart:.1e}'))
    return figures, [{'what': 'controls', 'shape': shape, 'losses': losses}]


def beside(worker: Worker, ours: dict, shape: dict, folder: str, options: dict) -> dict:
    """Builds PyTorch's side from what lmtrain's has left behind; what it says of itself."""
    options = options | {'optimizer': ours['optimizer'], 'folder': place(folder, shape)}
    built = worker.ask('build', shape=shape, dtype='bfloat16', **options)
    assert built['parameters'] == ours['parameters'], (built, ours)
    return built
