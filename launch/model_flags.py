"""Flags of verbs that load a model: --workdir, --step and --member of a run, or a pretrained --base; its prompts."""

import contextlib
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from launch import cli
from lmtrain.errors import InputError
from lmtrain.report import terminal


def define(flag_values: flags.FlagValues, base: bool = False) -> None:
    """--workdir, --step and --member; with `base` also --base, --adapter and --ignore."""
    flags.DEFINE_string('workdir', None, 'the folder of a run', flag_values=flag_values)
    text = """'last', 'best' (by validation loss) or the number of a checkpoint; by default the best if the loss was
measured more than twice and has risen since, else the last"""
    flags.DEFINE_string('step', 'auto', text, flag_values=flag_values)
    flags.DEFINE_alias('checkpoint', 'step', flag_values=flag_values)  # its former name
    text = 'of a sweep, from 0; the best by validation by default'
    flags.DEFINE_integer('member', None, text, flag_values=flag_values)
    if base:
        text = 'instead of a run, a pretrained model: a Hugging Face directory'
        flags.DEFINE_string('base', None, text, flag_values=flag_values)
        flags.DEFINE_string('adapter', '', 'with --base: a PEFT adapter for it', flag_values=flag_values)
        text = 'with --base: unknown fields of its config.json or of the adapter to skip, comma-separated'
        flags.DEFINE_list('ignore', [], text, flag_values=flag_values)


def define_prompts(flag_values: flags.FlagValues, template: str) -> None:
    """--system, and the flag `template`, which names a chat template."""
    text = 'system message for prompts that have none'
    flags.DEFINE_string('system', '', text, flag_values=flag_values)
    text = "chat template: 'none', 'auto', 'plain', a name or file; else the run's"
    flags.DEFINE_string(template, None, text, flag_values=flag_values)


def prompted(run, flag_values: flags.FlagValues, template: str, prompts: list):
    """The LoadedModel with the chat template of the prompts; prints which, and warnings about the prompts.

    Raises FileNotFoundError or InputError naming the flag if there is no such template.
    """
    from lmtrain.inference.prompts import special_names
    from lmtrain.training import load

    name, system = flag_values[template].value, flag_values.system
    chats = bool(system) or not all(isinstance(prompt, str) for prompt in prompts)
    try:
        run = load.with_chat_template(run, name, chats)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace('config.task.template', f'--{template}')) from error
    if run.template is None and chats:
        what = '--system' if system else 'messages'
        raise InputError(f'{what} with --{template}={name}: leave --{template} out, or give each prompt as one text')
    if run.template:
        note(f'each prompt is a turn of a conversation, written by {run.template.name}')
    elif name is None and 'chat_template' in run.tokenizer.config:
        note(f'prompts are continued as they are; --{template}=auto writes them with the chat template')
    if names := special_names([*prompts, system], run.tokenizer):
        listed = ', '.join(map(repr, names[:3])) + ', ...' * (len(names) > 3)
        note(f'a prompt contains {listed}, the name of a special token: it is read as characters, never as the token')
    return run


def note(text: str) -> None:
    """Prints a remark on stderr, in 80 columns; stdout is for results."""
    dim, plain = cli.style('dim', 'plain', stream=sys.stderr)
    lines = '\n'.join(cli.wrapped(line, '') for line in terminal.printable(text).splitlines())
    print(f'{dim}{lines}{plain}', file=sys.stderr)


def from_flags(flag_values: flags.FlagValues) -> tuple[pathlib.Path, int | str, int]:
    """(folder, step, member) as `api.load` takes them; prints which step and member were chosen. Imports jax.

    Raises InputError if one is missing, malformed or does not exist.
    """
    if not flag_values.workdir:
        other = ', or --base=DIR, a pretrained model' if 'base' in flag_values else ''
        raise InputError(f'--workdir is missing: the folder of a run, such as --workdir=runs/quickstart{other}')
    step = int(flag_values.step) if flag_values.step.isdecimal() else flag_values.step
    if step not in ('auto', 'last', 'best') and not isinstance(step, int):
        raise InputError(f"--step={step} is neither 'last' nor 'best' nor the number of a step")
    from lmtrain.training import choose

    folder = pathlib.Path(flag_values.workdir)
    choice = choose.choose(folder, step, flag_values.member)
    for text in choice.notes:
        note(text)
    return folder, choice.step, choice.member


def model(flag_values: flags.FlagValues):
    """The LoadedModel of --workdir or --base; imports jax. Raises InputError if both or neither is set."""
    if not flag_values.base:
        if flag_values.adapter or flag_values.ignore:
            name = 'adapter' if flag_values.adapter else 'ignore'
            raise InputError(f'--{name} without --base: the base of a run is in its config')
        workdir, step, member = from_flags(flag_values)
    elif flag_values.workdir:
        raise InputError('--workdir and --base at once: name the run or the pretrained model')
    elif flag_values['step'].present or flag_values.member is not None:
        name = 'step' if flag_values['step'].present else 'member'
        raise InputError(f'--{name} with --base: a pretrained model has no steps and members; they are of a --workdir')
    from lmtrain import api

    if flag_values.base:
        with flags_in_errors('init.base', 'init.adapter', 'init.ignore'):
            return api.load(flag_values.base, adapter=flag_values.adapter, ignore=flag_values.ignore)
    return api.load(workdir, step=step, member=member)


@contextlib.contextmanager
def flags_in_errors(*fields: str) -> Iterator[None]:
    """Errors name flags in place of fields of a recipe, for a verb without one: --base and not init.base."""
    try:
        yield
    except (InputError, FileNotFoundError) as error:
        names = '|'.join(map(re.escape, fields))
        text = re.sub(rf'(config\.)?\b({names})\b', lambda match: f'--{match[2].partition(".")[2]}', str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def trial(flag_values: flags.FlagValues, others: Sequence[str] = ()):
    """What the trial of `lmtrain compare` in --workdir chose (`new_rows.Answers`); None if that is no trial.

    Args:
      others: flags that a trial does not read.

    Raises InputError naming a flag that a trial does not read.
    """
    if not flag_values.workdir or not (pathlib.Path(flag_values.workdir) / 'trial.json').is_file():
        return None
    for name in ('step', 'member', 'base', 'adapter', 'ignore', *others):
        if flag_values[name].present:
            text = 'a trial of `lmtrain compare`: it has chosen all by itself'
            raise InputError(f'--{name} with {flag_values.workdir}, {text}')
    from lmtrain.compare import new_rows

    return new_rows.open_trial(flag_values.workdir)
