"""What the launchers share: the command after a bare `--`, and commands as a shell would read them."""

import os
import pathlib
import shlex
import shutil
import sys

from absl import flags

from lmtrain.errors import InputError
from lmtrain.files import reject_url
from lmtrain.runtime import lifecycle

ROOT = pathlib.Path(__file__).resolve().parents[1]
AGAIN = (lifecycle.REQUEUE, lifecycle.STALLED)  # exit codes after which the same command goes on
OWN = ('coordinator', 'num_processes', 'process_id', 'distributed')


def define(flag_values: flags.FlagValues, retries: int) -> None:
    """The flags of every launcher: --print_only, --retries, and `command`, which is what stands after `--`."""
    flags.DEFINE_multi_string('command', [], 'what every process runs', flag_values=flag_values)
    flags.DEFINE_bool('print_only', False, 'shows the exact commands and starts nothing', flag_values=flag_values)
    text = f'how often a run that ended with {" or ".join(map(str, AGAIN))} is started again'
    flags.DEFINE_integer('retries', retries, text, lower_bound=0, flag_values=flag_values)


def train(flag_values: flags.FlagValues, verb: str) -> list[str]:
    """The words after `--`: ['train', '--config=...', ...]. Raises ValueError where there are none."""
    words = flag_values.command
    if words[:1] != ['train']:
        found = f'{words[0]!r} stands' if words else 'nothing stands'
        raise InputError(f'{found} after --; expected: lmtrain {verb} [flags] -- train --config=configs/NAME.py')
    for word in words[1:]:
        name = word.lstrip('-').partition('=')[0]
        if word.startswith('-') and name in OWN:
            raise InputError(f'--{name} is for the launcher to set; leave it out after --')
    reject_url(value(words, 'workdir') or '', '--workdir')  # now, and not when the machines are paid for
    return words


def value(words: list[str], name: str) -> str | None:
    """The value of a flag among the words of a command, given as `--name=value` or `--name value`; else None."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        given, equals, text = word.lstrip('-').partition('=')
        if word.startswith('-') and given == name:
            found = text if equals else following
    return found


def path() -> str:
    """PYTHONPATH with this tree before what the user has there."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


def python(words: list[str], interpreter: str = sys.executable) -> list[str]:
    """`lmtrain WORDS` by an interpreter, from the tree in PYTHONPATH: -P keeps the current folder's out."""
    return [interpreter, '-P', '-m', 'launch.cli', *words]


def line(argv: list[str], environment: dict[str, str] | None = None) -> str:
    """A command as it is typed: every word quoted as the shell needs it."""
    words = [f'{name}={shlex.quote(text)}' for name, text in (environment or {}).items()]
    return ' '.join([*words, shlex.join(argv)])


def need(program: str, hint: str) -> None:
    """Raises ValueError where a program is not on PATH."""
    if not shutil.which(program):
        raise InputError(f'{program} is not on PATH: {hint}; --print_only shows the commands without it')
