"""Shared by the launchers: parses the command after a bare `--`, and quotes commands for a shell."""

import os
import pathlib
import shlex
import shutil
import sys

from absl import flags

from lmtrain.errors import InputError
from lmtrain.files import local_path
from lmtrain.runtime import lifecycle

ROOT = pathlib.Path(__file__).resolve().parents[1]
AGAIN = (lifecycle.REQUEUE, lifecycle.STALLED)  # exit codes after which the same command resumes the run
OWN = ('coordinator', 'num_processes', 'process_id', 'distributed')


def define(flag_values: flags.FlagValues, retries: int) -> None:
    """The flags of every launcher: --print_only, --retries, and `command`, the words after `--`."""
    flags.DEFINE_multi_string('command', [], 'the command of every process', flag_values=flag_values)
    flags.DEFINE_bool('print_only', False, 'prints the exact commands and starts nothing', flag_values=flag_values)
    text = f'restarts of a run that ended with {" or ".join(map(str, AGAIN))}'
    flags.DEFINE_integer('retries', retries, text, lower_bound=0, flag_values=flag_values)


def train(flag_values: flags.FlagValues, verb: str) -> list[str]:
    """The words after `--`: ['train', '--config=...', ...]. Raises InputError if there are none."""
    words = flag_values.command
    if words[:1] != ['train']:
        first = f'{words[0]!r}' if words else 'nothing'
        raise InputError(f'{first} after --; expected: lmtrain {verb} [flags] -- train --config=configs/NAME.py')
    for word in words[1:]:
        name = word.lstrip('-').partition('=')[0]
        if word.startswith('-') and name in OWN:
            raise InputError(f'--{name} is set by the launcher; leave it out after --')
    local_path(value(words, 'workdir') or '', '--workdir')  # raises for a URL, before the machines cost money
    return words


def value(words: list[str], name: str) -> str | None:
    """The value of a flag in a command line, as `--name=value` or `--name value`; None if it is absent."""
    result = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        flag, equals, text = word.lstrip('-').partition('=')
        if word.startswith('-') and flag == name:
            result = text if equals else following
    return result


def path() -> str:
    """PYTHONPATH with this tree first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


def python(words: list[str], interpreter: str = sys.executable) -> list[str]:
    """argv of `lmtrain WORDS` from the tree in PYTHONPATH; -P excludes the current directory."""
    return [interpreter, '-P', '-m', 'launch.cli', *words]


def line(argv: list[str], environment: dict[str, str] | None = None) -> str:
    """A command quoted for a shell."""
    words = [f'{name}={shlex.quote(text)}' for name, text in (environment or {}).items()]
    return ' '.join([*words, shlex.join(argv)])


def need(program: str, hint: str) -> None:
    """Raises InputError if a program is not on PATH."""
    if not shutil.which(program):
        raise InputError(f'{program} is not on PATH: {hint}; --print_only shows the commands without it')
