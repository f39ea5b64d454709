"""How many functions of lmtrain does a fresh run of 4 steps enter, and how often does a call lead into another file?

python -m experiments.call_path [--files]

Both are what a reader of `train` has to follow. They are counted on the main thread with sys.setprofile, from the call
of `train` to its return, for the tiny recipe on a small text and one device. --files lists them by file.
"""

import collections
import contextlib
import io
import os
import pathlib
import sys
import tempfile
from typing import NamedTuple

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from configs import tiny  # noqa: E402
from experiments.record import ROOT  # noqa: E402
from lmtrain.training.train import train  # noqa: E402

PACKAGE = ROOT / 'lmtrain'


class CallPath(NamedTuple):
    """Attributes:
    functions: {file: number of its functions that were entered, each counted once}.
    changes: {file: number of calls into it from another file of the package}.
    """

    functions: collections.Counter
    changes: collections.Counter


def measure(function) -> CallPath:
    """The call path of function(). Comprehensions, lambdas and modules are no functions here."""
    functions, changes, last = set(), collections.Counter(), ''

    def on_event(frame, event, _):
        nonlocal last
        code = frame.f_code
        if event != 'call' or not code.co_filename.startswith(f'{PACKAGE}{os.sep}') or code.co_name.startswith('<'):
            return
        file = str(pathlib.Path(code.co_filename).relative_to(PACKAGE))
        functions.add((file, code.co_firstlineno))
        changes[file] += file != last
        last = file

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return CallPath(collections.Counter(file for file, _ in functions), changes)


def tiny_run(folder: pathlib.Path) -> None:
    """A fresh run of 4 steps on a small text."""
    text = folder / 'text' / 'text.txt'
    text.parent.mkdir()
    text.write_text(''.join(f'{i} cats sat on {i * i} mats. ' * (i % 7 + 3) for i in range(40)), encoding='utf-8')
    config = tiny.get_config()
    config.budget.steps = 4
    config.data.source, config.data.cache = str(text.parent / '*.txt'), str(folder / 'cache')
    train(config, folder / 'run')


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = measure(lambda: tiny_run(pathlib.Path(folder)))
    if '--files' in sys.argv[1:]:
        for file, count in path.changes.most_common():
            print(f'{count:5} changes {path.functions[file]:5} functions  {file}')
    print(f'functions entered {path.functions.total()}, changes of file {path.changes.total()}')


if __name__ == '__main__':
    main()
