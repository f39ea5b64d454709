"""a conversation with a model in the terminal, with its own chat template.

lmtrain chat --workdir=runs/chat
lmtrain chat --base=DIR --adapter=ADAPTER --system='Answer briefly.'

Each line is a message, and the answer is printed as it is generated. Ctrl-C
stops an answer, Ctrl-D or /quit ends the program. Messages may also come from a
file or a pipe, one per line; standard output then has only the answers.
"""

import contextlib
import io
import sys

from absl import flags

from launch import model_flags, process_setup
from launch.generate import clean, write
from launch.model_flags import note
from lmtrain.errors import InputError
from lmtrain.runtime import progress

FLAGS = flags.FlagValues()
model_flags.define(FLAGS, base=True)
model_flags.define_prompts(FLAGS, 'template')
flags.DEFINE_integer('max_tokens', 512, 'tokens of an answer at most', flag_values=FLAGS)
text = "0 takes the most likely token; the recipe's by default"
flags.DEFINE_float('temperature', None, text, flag_values=FLAGS)
text = "draws from the k most likely tokens; 0 is all; the recipe's by default"
flags.DEFINE_integer('top_k', None, text, flag_values=FLAGS)
text = "draws from the most likely tokens of this mass; the recipe's by default"
flags.DEFINE_float('top_p', None, text, flag_values=FLAGS)
flags.DEFINE_integer('seed', 0, 'the same seed gives the same answers', flag_values=FLAGS)

HELP = """\
/reset        forgets the conversation
/system TEXT  sets the system text; without a text there is none
/help         shows these commands
/quit         ends, like Ctrl-D; Ctrl-C stops an answer"""


def run(values: flags.FlagValues) -> None:
    process_setup.configure()
    from lmtrain.inference.sample import check_model

    model = model_flags.model(values)
    check_model(model.model)
    if values.template is None and model.template is None and 'chat_template' not in model.tokenizer.config:
        raise InputError(
            'this model has no chat template, so it was not trained on conversations: --template=plain writes one '
            'message a line, and `lmtrain generate` continues a text'
        )
    try:
        talk = model.chat(
            system=values.system,
            chat_template=values.template,
            max_tokens=values.max_tokens,
            temperature=values.temperature,
            top_k=values.top_k,
            top_p=values.top_p,
            seed=values.seed,
        )
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace('config.task.template', '--template').replace('chat_template=', '--template=')
        raise type(error)(text) from error
    terminal = sys.stdin.isatty()
    if not terminal and isinstance(sys.stdin, io.TextIOWrapper):
        # A byte order mark is no text, and a line that is not UTF-8 is refused.
        sys.stdin.reconfigure(encoding='utf-8-sig', errors='surrogateescape')
    if terminal:
        note(f'{talk.context:,} tokens of context. /help shows the commands, Ctrl-D ends')
    converse(talk, terminal)


def converse(talk, terminal: bool) -> None:
    """Reads messages and commands until the input ends; `terminal`: a person types them."""
    while True:
        try:
            line = read_line(terminal)
        except KeyboardInterrupt:
            if not terminal:
                raise
            write('\n')
            note('Ctrl-D or /quit ends')
            continue
        if line is None or line == '/quit':
            return
        try:
            if command := command_of(line):
                obey(talk, *command)
            elif line:
                answer(talk, line)
        except InputError as error:
            note(str(error))


def read_line(terminal: bool) -> str | None:
    """The next line without blanks at its ends; None at the end of the input."""
    if not terminal:
        line = sys.stdin.readline()
        return line.strip() if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and has a history

    try:
        return input('> ').strip()
    except EOFError:
        write('\n')
        return None


def command_of(line: str) -> tuple[str, str] | None:
    """(command, its text) of a line such as '/system Be brief.'; None for a message, also one like '/etc/hosts?'."""
    name, _, rest = line.partition(' ')
    return (name, rest.strip()) if name.startswith('/') and name[1:].isalpha() else None


def obey(talk, name: str, text: str) -> None:
    """Carries out a command. Raises InputError for one that does not exist."""
    if name == '/reset':
        talk.reset()
        note('the conversation is forgotten')
    elif name == '/system':
        talk.system = text
        note(f'the system text is {text!r}' if text else 'there is no system text')
    elif name == '/help':
        note(HELP)
    else:
        raise InputError(f'{name} is no command; /help shows them. A message that begins so: put a word before it')


def answer(talk, line: str) -> None:
    """Prints the answer to a message while it is generated, and what happened to it. Ctrl-C stops it.

    Raises InputError if the message is not UTF-8 or the context cannot hold it.
    """
    if any('\udc80' <= character <= '\udcff' for character in line):  # of errors='surrogateescape'
        raise InputError(f'{line.encode(errors="replace").decode()!r:.60} is not UTF-8, so it is no message')
    names = talk.special_names(line)
    if names:
        listed = ', '.join(map(repr, names[:3]))
        note(f'{listed}: the name of a special token, read as characters')
    pieces = None
    try:
        pieces = talk.stream(line)
        if talk.dropped:
            turns = f'{talk.dropped} oldest turns are' if talk.dropped > 1 else 'oldest turn is'
            note(f'the {turns} forgotten: the context holds {talk.context:,} tokens')
        with progress.phase('computing the first token', brief=True):
            first = next(pieces, '')
        write(clean(first))
        for piece in pieces:
            write(clean(piece))
        write('\n')
    except KeyboardInterrupt:
        if pieces:
            pieces.close()  # the history then has what was printed
        write('\n')
        note('stopped')
        return
    cut = {'length': 'after --max_tokens', 'context': f'at the end of the context, {talk.context:,} tokens'}
    if talk.finish_reason in cut:
        note(f'the answer is cut {cut[talk.finish_reason]}')
