"""`lmtrain VERB [flags]`: finds the verb, parses its flags, runs it, and prints user errors as one line.

A verb is a module of this folder: its docstring is its help, FLAGS are its flags, `run(flags)` executes it. Only verbs
that need jax import it.
"""

import importlib
import io
import os
import pathlib
import re
import sys
import textwrap

from lmtrain.errors import InputError, did_you_mean
from lmtrain.report import terminal
from lmtrain.runtime import lifecycle

# Flags of all verbs whose values are local paths.
PATHS = {'config', 'workdir', 'base', 'adapter', 'to', 'prompts_file', 'rows', 'demonstrations', 'results'}
PATHS |= {'task', 'outputs', 'folders', 'plot', 'cache', 'source'}
VERBS = {
    'train': 'train a recipe: --config, --workdir, --dry_run',
    'compare': 'prompting and training on the same rows: --config, --workdir',
    'pipeline': 'fine-tuning, then preferences or a policy: --name, --workdir',
    'plan': 'memory, time and cost of a run on machines that are not present: --config, --target, --search',
    'cost': 'what each way costs, from one text to pretraining: --config, --target',
    'evaluate': 'the loss of a run or of a text, or a score on a task: --workdir, --source, --task',
    'generate': 'text from a trained run: --workdir, --prompt',
    'chat': 'a conversation with a model: --workdir or --base, --adapter, --system',
    'predict': 'classes, numbers, tags or answers for rows: --workdir, --rows, --to',
    'export': 'a trained run as a Hugging Face directory or a PEFT adapter: --workdir, --format, --to',
    'runs': 'a table of runs, and a plot of their validation curves: FOLDER... --sort, --filter, --plot',
    'cache': 'what the caches of texts and compiled programs hold: --prune',
    'configs': 'the recipes, one line each',
    'show': 'every value of a recipe, or its first batch: --config, --batch',
    'local': 'train in several processes on this machine: --processes, --devices -- train ...',
    'slurm': 'train on nodes of a SLURM cluster: --nodes, --time -- train ...',
    'tpu': 'train on a TPU pod slice of Google Cloud: --zone, --accelerator_type -- train ...',
    'gke': 'train on TPUs of a Kubernetes cluster, as a JobSet: --image, --topology -- train ...',
}
HELP = """\
{bold}lmtrain{plain}: language models, trained end to end on real text

{bold}Start here{plain}
  lmtrain train --config=configs/quickstart.py --workdir=runs/quickstart
  lmtrain generate --workdir=runs/quickstart --prompt='def'

{bold}Verbs{plain}
{verbs}

`lmtrain VERB --help` lists the flags of a verb, `lmtrain --version` prints
versions. Any value of a recipe can be changed on the command line:
  lmtrain train --config=configs/quickstart.py --config.model.num_layers=6
"""


def style(*names: str, stream=None) -> list[str]:
    """Escape codes if the stream is a terminal with colours, else empty strings (https://no-color.org)."""
    codes = {'plain': 0, 'bold': 1, 'dim': 2, 'red': 31, 'green': 32, 'cyan': 36}
    on = (stream or sys.stdout).isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'
    return [f'\033[{codes[name]}m' if on else '' for name in names]


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 2 for a user error, 130 if interrupted, or the code of a run that ended early.

    Other exceptions keep their traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caller may have replaced the stream
            stream.reconfigure(errors='replace')  # a character missing from the encoding must not end a run
    if not argv or argv[0] in ('help', '-h', '-help', '--help'):
        bold, plain = style('bold', 'plain')
        verbs = '\n'.join(f'  {bold}{verb:10}{plain}{wrapped(line, " " * 12).lstrip()}' for verb, line in VERBS.items())
        print(HELP.format(verbs=verbs, bold=bold, plain=plain), end='')
        return 0
    if argv[0] in ('--version', '-version', 'version'):
        print(version())
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS) or ':'
        return report_error('lmtrain', f'unknown verb {verb!r}{hint} `lmtrain --help` lists all')
    end = rest.index('--') if '--' in rest else len(rest)  # later words are for another process
    debug = '--debug' in rest[:end]
    try:
        module = importlib.import_module(f'launch.{verb}')
        flags = parse(module, [argument for argument in rest[:end] if argument != '--debug'] + rest[end:])
        if flags is None:
            print(describe(verb, module), end='')
            return 0
        module.run(flags)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return report_error(f'lmtrain {verb}', 'interrupted', code=130)
    except BrokenPipeError:  # `lmtrain show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as in a shell
    except Exception as error:
        if debug or not is_user_error(error):
            raise
        code = error.code if isinstance(error, lifecycle.RunEnded) else 2
        return report_error(f'lmtrain {verb}', message(error), code)


def version() -> str:
    """The versions of lmtrain and of what its results depend on most; no library is imported for them."""
    import importlib.metadata
    import platform

    import lmtrain

    return f'lmtrain {lmtrain.__version__}, Python {platform.python_version()}, jax {importlib.metadata.version("jax")}'


def report_error(who: str, message: str, code: int = 2) -> int:
    """Prints an error on stderr, as one line in a log and in 80 columns on a terminal, and returns the exit code."""
    red, plain = style('red', 'plain', stream=sys.stderr)
    text = f'{who}: {terminal.printable(message)}'  # it may quote a file
    text = '\n'.join(wrapped(line, '') for line in text.splitlines()) if sys.stderr.isatty() else text
    print(f'{red}{who}:{plain}{text.removeprefix(f"{who}:")}', file=sys.stderr)
    return code


def message(error: Exception) -> str:
    """The message of an error; of an OSError the file and the reason, without errno."""
    if isinstance(error, OSError) and error.strerror:
        return f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    return str(error) or type(error).__name__


def is_user_error(error: Exception) -> bool:
    """Whether the user can fix `error`: an InputError, an OSError, or the end of a run."""
    return isinstance(error, (InputError, OSError, lifecycle.RunEnded))


def parse(module, argv: list[str]):
    """The verb's flags with their values; None if help is requested. Raises InputError for an unknown flag.

    `--config.a.b=value` and `--config.a.b value` become `--override=a.b=value` (recipe.py); each word after a bare `--`
    becomes `--command=word` (launcher.py). Words that are no flags are the folders of a verb that has `--folders`.
    """
    from absl import flags

    from lmtrain.files import local_path

    known, rest, command = module.FLAGS, [], []
    if 'command' in known and '--' in argv:
        end = argv.index('--')
        argv, command = argv[:end], [f'--command={word}' for word in argv[end + 1 :]]
    if any(word in ('-h', '-help', '--help', '--helpfull', '--helpshort') for word in argv):
        return None
    words = iter(argv)
    for word in words:
        name, equals, text = word.lstrip('-').partition('=')
        if word.startswith('-') and name.startswith('config.') and 'override' in known:
            text = text if equals else next(words, '--')
            if not equals and text.startswith('--'):
                raise InputError(f'--{name} has no value: --{name}=...')
            word = f'--override={name.removeprefix("config.")}={text}'
        rest.append(word)
    known.set_gnu_getopt(True)
    for name in known:
        known[name].unparse()  # clears the values of an earlier call in this process
    try:
        spare = known(['lmtrain', *rest, *command])[1:]
    except flags.UnrecognizedFlagError as error:
        verb = module.__name__.rpartition('.')[2]
        similar = _similar_flag(error.flagname, known) or f': `lmtrain {verb} --help` lists the flags'
        raise InputError(f'unknown flag --{error.flagname}{similar}') from error
    except flags.Error as error:
        raise InputError(str(error)) from error
    if spare and 'folders' in known:
        known['folders'].value, spare = spare, []
    for name in PATHS & set(known):
        value = known[name].value
        if isinstance(value, list):
            known[name].value = [str(local_path(path, f'--{name}')) for path in value]
        elif value:
            known[name].value = str(local_path(value, f'--{name}'))
    if spare:
        raise InputError(f'{spare[0]!r} is not a flag{_flag_of(spare[0], known, argv)}')
    return known


def _similar_flag(name: str, known) -> str:
    """What an unknown flag may stand for, as the end of a sentence: fields of that name, or a near name."""
    names = [f'--{name}' for name in known if name not in ('override', 'command')]
    if 'override' in known:
        from configs import base
        from launch import recipe

        if fields := recipe.fields_named(name.replace('-', '_')):
            return f', did you mean {" or ".join(repr(f"--config.{field}") for field in fields)}?'
        names += [f'--config.{field}' for field in recipe.types(base.get_config())]
    return did_you_mean(f'--{name}', names, least=0.7) if names else ': this verb takes no flags'


def _flag_of(word: str, known, argv: list[str]) -> str:
    """The flag that a word without one may belong to, as the end of a sentence; '' if none is likely."""
    if 'command' in known:
        return f'; the command to run follows a bare --: -- {word} ...'
    if 'config' in known:
        from launch import recipe

        if pathlib.PurePath(word).stem in [path.stem for path in recipe.files()]:
            return f'; did you mean --config={word}?'
        if os.path.exists(word):
            return f'; did you mean --config.data.source={word}? A pattern such as *.txt needs quotes'
    before = [other.partition('=')[0] for other in argv[: argv.index(word)] if other.startswith('-')]
    if before:
        return f'; a value with blanks needs quotes: {before[-1]}="..."'
    return f'; did you mean --workdir={word}?' if 'workdir' in known else ''


def describe(verb: str, module) -> str:
    """The help of one verb: its docstring, then its flags."""
    bold, plain = style('bold', 'plain')
    first, _, examples = module.__doc__.strip().partition('\n')
    rows = {f'--{name}': module.FLAGS[name].help.partition(';\n')[0] for name in module.FLAGS}
    if '--override' in rows:
        rows['--config.A.B=...'] = rows.pop('--override')
    if '--command' in rows:
        rows['-- train ...'] = rows.pop('--command')
    if '--folders' in rows:
        rows['FOLDER ...'] = rows.pop('--folders')
    rows['--debug'] = 'errors with their traceback'
    title = wrapped(f'lmtrain {verb}: {first}', '').replace(f'lmtrain {verb}', f'{bold}lmtrain {verb}{plain}', 1)
    parts = [title, *(paragraph(part) for part in examples.strip().split('\n\n'))]
    lines = [f'  {bold}{name:20}{plain}{wrapped(line, " " * 22).lstrip()}' for name, line in sorted(rows.items())]
    return '\n\n'.join([*parts, '\n'.join([f'{bold}Flags{plain}', *lines])]) + '\n'


def wrapped(text: str, indent: str) -> str:
    """A text in lines of at most 80 columns, each after `indent`."""
    options = {'break_long_words': False, 'break_on_hyphens': False}
    return textwrap.fill(text, 80, initial_indent=indent, subsequent_indent=indent, **options)


def paragraph(text: str) -> str:
    """A paragraph of a verb's docstring in 80 columns; commands are continued after a backslash."""
    text = text.strip()
    if not text.startswith('lmtrain '):
        return wrapped(text, '  ')
    lines = []
    for command in text.replace('\\\n', ' ').splitlines():
        flags = re.split(r'\s+(?=--)', command)
        line = f'  {flags[0]}'
        for flag in flags[1:]:
            if len(f'{line} {flag}') > 78:
                lines, line = [*lines, f'{line} \\'], '     '
            line += f' {flag}'
        lines.append(line)
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
