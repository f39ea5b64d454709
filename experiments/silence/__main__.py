"""How long is a run on 64 MB of text silent, on a terminal and in a log?

python -m experiments.silence
"""

import itertools
import os
import pathlib
import pty
import random
import re
import subprocess
import sys
import tempfile
import time

from experiments import cli, record

BYTES = 64 << 20
LIMIT = 5.0  # seconds
STEPS = {'budget.steps': 60, 'evaluate.every_steps': 30, 'checkpoint.every_steps': 30, 'data.batch_size': 8}


def write(path: pathlib.Path) -> None:
    """Writes documents of random words, BYTES in all; a seventh of the words are new ones, as in real text."""
    draw = random.Random(0)
    known = [''.join(draw.choices('abcdefghijklmnopqrstuvwxyz', k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(known))]
    path.mkdir()
    size = 0
    for number in itertools.count():
        words = draw.choices(known, weights, k=20_000)
        text = ' '.join(word if i % 7 else f'{word}{draw.randrange(1000)}' for i, word in enumerate(words))
        (path / f'{number}.txt').write_text(text, encoding='utf-8')
        size += len(text)
        if size >= BYTES:
            return


def read(descriptor: int, begun: float) -> list[tuple[float, str]]:
    """[(seconds since the start, text)] of what a process writes, to its end."""
    pieces = []
    while True:
        try:
            text = os.read(descriptor, 1 << 16)
        except OSError:  # a terminal whose process has ended
            text = b''
        if not text:
            return pieces
        pieces.append((time.monotonic() - begun, text.decode('utf-8', 'replace')))


def measure(folder: pathlib.Path, terminal: bool) -> dict:
    """A run with an empty cache: seconds between pieces of output, and the width of the lines."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    name = 'terminal' if terminal else 'log'
    config = STEPS | {'data.source': folder / 'text', 'data.cache': folder / f'cache-{name}'}
    words = ['train', '--config=configs/quickstart.py', f'--workdir={folder / name}']
    environment = os.environ | {'COLUMNS': '80', 'LINES': '24', 'NO_COLOR': '1', 'XDG_CACHE_HOME': str(folder / name)}
    begun = time.monotonic()
    process = cli.start(*words, config=config, stdout=writer, stderr=writer, stdin=subprocess.DEVNULL, env=environment)
    os.close(writer)
    pieces = read(reader, begun)
    os.close(reader)
    if process.wait():
        sys.exit(''.join(text for _, text in pieces))
    times = [0.0, *(seconds for seconds, _ in pieces)]
    gaps = [(after - before, before) for before, after in itertools.pairwise(times)]
    longest, at = max(gaps)
    before = ''.join(text for seconds, text in pieces if seconds <= at)
    lines = re.split(r'[\r\n]+', re.sub(r'\x1b\[K', '', ''.join(text for _, text in pieces)))
    last = [line for line in re.split(r'[\r\n]+', re.sub(r'\x1b\[K', '', before)) if line.strip()][-1:]
    return {
        'output': name,
        'seconds': times[-1],
        'longest': longest,
        'after': ''.join(last).strip(),
        'lines': sum(text.count('\n') for _, text in pieces),
        'widest': max(map(len, lines)),
        'gaps': sorted((gap for gap, _ in gaps), reverse=True)[:5],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write(folder / 'text')
        trials = [measure(folder, terminal) for terminal in (True, False)]
    figures = []
    for trial in trials:
        what = f'{trial["output"]}: longest time without output, of {trial["seconds"]:.0f} s'
        figures.append(record.row(what, f'{trial["longest"]:.1f} s', f'<= {LIMIT:g} s', trial['longest'] <= LIMIT))
        figures.append(
            record.row(f'{trial["output"]}: widest line', f'{trial["widest"]}', '<= 80', trial['widest'] <= 80)
        )
    skipped = ['a log of a run of more than 80 seconds of training: a line at least every 5 % of the time so far']
    record.write('silence', command='python -m experiments.silence', figures=figures, trials=trials, not_shown=skipped)


if __name__ == '__main__':
    main()
