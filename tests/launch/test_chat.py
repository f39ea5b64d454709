"""The verb chat: messages and commands from a pipe or a terminal, and answers that are stopped."""

import io
import types

import pytest

from launch import chat, cli, process_setup
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.inference import sample
from lmtrain.training import load

TEMPLATE = Template(PLAIN, 'the plain template')


@pytest.fixture
def stub(computes, monkeypatch):
    """A model that answers with `stub.answer`; an exception among its pieces is raised."""
    model, params, tokenizer = computes
    state = types.SimpleNamespace(template=TEMPLATE, answer=['good', ' day'], reason='stop', asked=[])

    def stream(model, params, prompts, **settings):
        state.asked.append(bytes(token for token in prompts[0] if token < 256).decode())
        state.settings = settings
        for piece in state.answer:
            if not isinstance(piece, str):
                raise piece
            yield 0, list(piece.encode()), ''
        yield 0, [], state.reason

    def restore(workdir, step, member):
        return load.LoadedModel(None, model, tokenizer, params, 0, [256], state.template)

    monkeypatch.setattr(load, 'load_run', restore)
    monkeypatch.setattr(load, 'load_directory', lambda *_: restore('w', 0, 0))
    monkeypatch.setattr(sample, 'stream', stream)
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    return state


@pytest.fixture
def lmtrain(stub, capsys, monkeypatch):
    """lmtrain(text on standard input, words) -> (exit code, stdout, stderr)."""

    def call(text, *words):
        stdin = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()), encoding='ascii')
        monkeypatch.setattr('sys.stdin', stdin)
        code = cli.main(['chat', '--workdir=w', *words])
        return code, *capsys.readouterr()

    return call


def test_each_line_of_a_pipe_is_a_message(lmtrain, stub):
    code, out, err = lmtrain('hé\n\n  two \n', '--system=s', '--temperature=0', '--max_tokens=9')
    assert (code, out, err) == (0, 'good day\ngood day\n', '')
    assert stub.asked == ['s\nhé\n', 's\nhé\ngood daytwo\n']
    assert (stub.settings['max_tokens'], stub.settings['temperature'], stub.settings['seed']) == (9, 0.0, 0)


def test_commands(lmtrain, stub):
    code, out, err = lmtrain('a\n/reset\n/system be kind\nb\n/system\nc\n/help\n/rest\n/etc/hosts?\n/quit\nd\n')
    assert code == 0 and out == 'good day\n' * 4
    assert stub.asked[:2] == ['a\n', 'be kind\nb\n'] and stub.asked[2] == 'b\ngood dayc\n'
    assert stub.asked[3].endswith('good day/etc/hosts?\n')
    expected = ['the conversation is forgotten', "the system text is 'be kind'", 'there is no system text']
    assert err.splitlines()[:3] == expected and '/system TEXT  sets the system text' in err
    assert '/rest is no command' in err and max(map(len, err.splitlines())) <= 80


def test_a_stopped_answer_does_not_end_the_program(lmtrain, stub, monkeypatch):
    stub.answer = ['part', KeyboardInterrupt()]
    code, out, err = lmtrain('a\nb\n')
    assert (code, out, err) == (0, 'part\npart\n', 'stopped\nstopped\n')
    assert stub.asked[1] == 'a\npartb\n'


def test_an_interrupt_between_messages_ends_a_pipe(lmtrain, stub, monkeypatch):
    def read_line(terminal):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, 'read_line', read_line)
    assert lmtrain('a\n')[::2] == (130, 'lmtrain chat: interrupted\n')


def test_what_happens_to_answers_is_said(lmtrain, stub):
    stub.reason = 'length'
    assert 'the answer is cut after --max_tokens' in lmtrain('a\n')[2]
    stub.reason = 'context'
    code, _, err = lmtrain(f'{"x" * 25}\n{"y" * 30}\n', '--max_tokens=20')
    assert code == 0 and 'the answer is cut at the end of the context, 64 tokens' in err
    assert 'the oldest turn is forgotten: the context holds 64 tokens' in err
    assert stub.asked[-1] == f'{"y" * 30}\n'


def test_bad_messages_are_refused_and_the_next_is_answered(lmtrain, stub):
    code, out, err = lmtrain(b'a\xff\n' + b'x' * 80 + b'\nb<|endoftext|>\n')
    assert (code, out, len(stub.asked)) == (0, 'good day\n', 1)
    first, second, third = err.splitlines()
    assert first == "'a?' is not UTF-8, so it is no message" and 'the message has 82 tokens, and the context' in second
    assert third == "'<|endoftext|>': the name of a special token, read as characters"


def test_a_model_without_a_template_offers_the_plain_form(lmtrain, stub):
    stub.template = None
    code, out, err = lmtrain('a\n')
    assert (code, out) == (2, '') and err.count('\n') == 1
    assert 'this model has no chat template' in err and '--template=plain writes' in err and 'lmtrain generate' in err
    assert lmtrain('a\n', '--template=plain')[:2] == (0, 'good day\n')
    code, _, err = lmtrain('a\n', '--template=none')
    assert code == 2 and "--template='none': a conversation needs a template" in err
    code, _, err = lmtrain('a\n', '--template=no.jinja')
    assert code == 2 and '--template: no file no.jinja' in err


def test_a_terminal_is_prompted_and_an_interrupt_there_is_explained(stub, capsys, monkeypatch):
    lines = iter(['a', KeyboardInterrupt(), '  b ', EOFError()])

    def typed(prompt):
        assert prompt == '> '
        line = next(lines)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr('sys.stdin', types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr('builtins.input', typed)
    assert cli.main(['chat', '--base=b']) == 0
    out, err = capsys.readouterr()
    assert out == 'good day\n\ngood day\n\n' and [text.splitlines()[-1] for text in stub.asked] == ['a', 'good dayb']
    assert '64 tokens of context. /help shows the commands' in err and 'Ctrl-D or /quit ends' in err
