"""The process that calls the function of a reward file: `python worker.py FILE`. It imports nothing of lmtrain.

One JSON line in, {"prompts", "completions", "rows"}, one out: {"values"} or {"error"}. The first line out is
{"function"} or {"error"}. What the function prints is dropped; it runs in an empty folder; the process ends when its
parent does.
"""

import importlib.machinery
import importlib.util
import inspect
import json
import os
import pathlib
import queue
import sys
import threading
import traceback

# How names of parameters begin that are clearly completions, and clearly prompts.
WRITTEN, READ = ('completion', 'response', 'output', 'generat', 'answer'), ('prompt', 'question', 'quer', 'input')


def main(file: str) -> None:
    requests, replies = os.fdopen(os.dup(0), encoding='utf-8'), os.fdopen(os.dup(1), 'w', encoding='utf-8')
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the function can neither read requests nor write into replies
        os.dup2(nothing, descriptor)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()

    def reply(message):
        replies.write(json.dumps(message) + '\n')
        replies.flush()

    try:
        name, call = load(file)
    except BaseException as error:  # also SystemExit of the file
        reply({'error': str(error) if isinstance(error, LookupError) else describe(error, file)})
        return
    reply({'function': name})
    while True:
        request = json.loads(lines.get())
        try:
            prompts, completions, rows = request['prompts'], request['completions'], request['rows']
            reply(check(call(prompts, completions, rows), len(completions)))
        except BaseException as error:
            reply({'error': describe(error, file)})


def _read(requests, lines) -> None:
    """Hands requests over. A thread of its own notices the end of the parent while the function runs."""
    for line in requests:
        lines.put(line)
    os._exit(0)


def load(file: str):
    """(the name of the function of a reward file, (prompts, completions, rows) -> what it returns).

    Raises LookupError if there is no function, or one of another signature.
    """
    sys.dont_write_bytecode = True  # beside the user's file
    sys.path.insert(0, str(pathlib.Path(file).parent))
    loader = importlib.machinery.SourceFileLoader('reward_file', file)  # whatever the ending of its name
    spec = importlib.util.spec_from_file_location('reward_file', file, loader=loader)
    assert spec and spec.loader  # the one above
    module = importlib.util.module_from_spec(spec)
    sys.modules['reward_file'] = module
    spec.loader.exec_module(module)
    own = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == 'reward_file' and not name.startswith('_')
    }
    if 'reward' not in own and len(own) != 1:
        names = ', '.join(own) or 'none'
        raise LookupError(
            f'expected one function (prompts, completions) -> rewards, or one called reward; there are: {names}'
        )
    function = own['reward'] if 'reward' in own else next(iter(own.values()))
    return function.__name__, _caller(function)


def _caller(function):
    """(prompts, completions, rows) -> what the function returns, with `rows` if it takes them. Raises LookupError."""
    signature = inspect.signature(function)
    expected = (
        f'{function.__name__}{signature} must take (prompts, completions), or (prompts, completions, rows): lists of '
        'texts, and the fields of their rows'
    )
    parameters = list(signature.parameters.values())
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if _swapped([each.name for each in places[:2]]):
        raise LookupError(f'{expected}; the names of its parameters say that completions come first')
    by_name = [each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    options = {'rows'} & set(by_name)
    third = places[2] if len(places) > 2 else None  # with a default, such as scale=0.5, it is a setting
    count = 3 if third and third.name not in options and third.default is third.empty else 2
    try:
        signature.bind(*[()] * count, **dict.fromkeys(options))
    except TypeError:
        raise LookupError(expected) from None
    return lambda prompts, completions, rows: function(
        *(prompts, completions, rows)[:count], **dict.fromkeys(options, rows)
    )


def _swapped(names) -> bool:
    """Whether the names of the first two parameters say that completions come first. Other names say nothing.

    >>> _swapped(['completions', 'answer']), _swapped(['answers', 'questions']), _swapped(['x', 'y'])
    (True, True, False)
    """
    first, second = ([*(name.strip('_').lower() for name in names), '', ''])[:2]
    swapped = first.startswith(WRITTEN) and second.startswith(READ)
    return swapped or first.startswith('completion') or second.startswith('prompt')


def check(values, count: int):
    """The reply for what a function returned: numbers, and texts or null for what has no number."""
    try:
        values = list(values.tolist() if hasattr(values, 'tolist') else values)
    except TypeError:
        return {'error': f'returned {type(values).__name__} and not a list of {count} numbers'}
    if len(values) != count:
        return {'error': f'returned {len(values)} rewards for {count} completions'}
    return {'values': [value if isinstance(value, str) else _number(value) for value in values]}


def _number(value):
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return f'{type(value).__name__} is not a number'


def describe(error: BaseException, file: str) -> str:
    """The type, message and line of an error in the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f'{type(error).__name__}: {error}' + (f' (line {lines[-1]})' if lines else '')


if __name__ == '__main__':
    main(sys.argv[1])
