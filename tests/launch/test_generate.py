"""The verb generate: its prompts, its output on stdout and stderr, and errors of its input."""

import json
import types

import pytest

from configs import base
from launch import cli, generate
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.inference import sample
from lmtrain.training import load


@pytest.fixture
def stub(monkeypatch):
    """Pretends a run is restored, and that its model continues with the pieces of `stub.pieces`."""
    config = base.get_config()
    config.sample.update(max_tokens=77, temperature=0.6, top_p=0.9)  # other than base.py has them
    model = types.SimpleNamespace(max_len=12)
    asked = types.SimpleNamespace(pieces=[(0, b'!', 'stop')], template=None)

    def restore(workdir, step, member):
        asked.workdir, asked.step = workdir, step
        return load.LoadedModel(config, model, Bytes(), {}, 0, [256, 7], asked.template)

    def stream(model, params, prompts, **settings):
        asked.prompts, asked.settings = [bytes(ids[1:]).decode() for ids in prompts], settings
        return ((row, list(gained), done) for row, gained, done in asked.pieces)

    monkeypatch.setattr(load, 'load_run', restore)
    monkeypatch.setattr(sample, 'stream', stream)
    monkeypatch.setattr(generate.process_setup, 'configure', lambda: None)
    return asked


@pytest.fixture
def lmtrain(stub, capsys):
    """lmtrain(words) -> (exit code, stdout, stderr) of `lmtrain generate --workdir=w words`."""

    def call(*words):
        generate.FLAGS.unparse_flags()
        for name in generate.FLAGS:
            generate.FLAGS[name].unparse()
        code = cli.main(['generate', *words])
        return code, *capsys.readouterr()

    return call


def test_one_prompt_then_its_continuation(lmtrain, stub):
    euro = '€'.encode()
    stub.pieces = [(0, b' old', ''), (0, euro[:1], ''), (0, euro[1:] + b'!', 'stop')]
    code, out, err = lmtrain('--workdir=w', '--prompt=good')
    assert (code, out) == (0, 'good old€!\n')
    assert err.startswith('8 tokens, ') and 'tokens/s' in err and '\033' not in err
    assert err.endswith('1 of 1 texts ended with an end token\n')
    assert stub.prompts == ['good'] and stub.step == 'last'


def test_settings_without_a_flag_are_those_of_the_recipe(lmtrain, stub):
    lmtrain('--workdir=w', '--top_k=3', '--temperature=0', '--seed=5', '--step=200')
    wanted = {
        'max_tokens': 77,
        'temperature': 0.0,
        'top_k': 3,
        'top_p': 0.9,
        'seed': 5,
        'end_ids': [256, 7],
        'vocab_size': 257,
        'absent': (),
    }
    assert stub.settings == wanted
    assert stub.prompts == [''] and stub.step == 200


def test_several_prompts_are_printed_in_order_with_rules(lmtrain, stub, tmp_path):
    file = tmp_path / 'prompts.txt'
    file.write_text('b \n\nc\r\n')
    stub.pieces = [(2, b'3', 'length'), (0, b'1', ''), (1, b'2', 'context'), (0, b'1', 'stop')]
    code, out, err = lmtrain('--workdir=w', '--prompt=a', f'--prompts_file={file}')
    lines = out.splitlines()
    assert stub.prompts == ['a', 'b ', 'c']
    assert [lines[0][:9], *lines[1:2]] == ['── 1 of 3', 'a11']
    assert [lines[2][:9], *lines[3:4]] == ['── 2 of 3', 'b 2']
    assert [lines[4][:9], *lines[5:]] == ['── 3 of 3', 'c3']
    cut = "cut: 1 after max_tokens=77, 1 at the end of the model's context"
    assert ' '.join(err.split()).endswith(f'1 of 3 texts ended with an end token; {cut}')


def test_prompts_of_a_jsonl(tmp_path):
    file = tmp_path / 'prompts.jsonl'
    file.write_text('{"prompt": "one\\ntwo", "id": 3}\n\n{"prompt": ""}\n')
    assert generate.read_prompts(file) == ['one\ntwo', '']


@pytest.mark.parametrize(
    ('name', 'content', 'prompts'),
    [
        ('a.txt', '\ufeffOnce\r\nAgain'.encode(), ['Once', 'Again']),
        ('a.txt', 'Once\nAgain'.encode('utf-16'), ['Once', 'Again']),
        ('a.jsonl', '\ufeff{"prompt": "Once"}'.encode(), ['Once']),
        ('a.JSONL', b'{"prompt": "Once"}', ['Once']),
        ('a.ndjson', b'{"prompt": "Once"}', ['Once']),
    ],
)
def test_prompts_in_the_forms_that_other_files_have(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content)
    assert generate.read_prompts(tmp_path / name) == prompts


def test_messages_of_a_jsonl(tmp_path):
    """Up to the answer, in either field; roles and fields that sharegpt has are read alike."""
    turns = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'a'}]
    answer = {'role': 'assistant', 'content': 'b'}
    rows = [{'messages': [*turns, answer], 'prompt': 'x'}, {'prompt': turns}]
    rows += [{'messages': [{'from': 'human', 'value': 'a'}], 'tools': [{'name': 'f'}]}]
    file = tmp_path / 'prompts.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    first, second, third = generate.read_prompts(file)
    assert first.messages == second.messages == turns
    assert third.messages == [{'role': 'user', 'content': 'a'}] and third.tools == [{'name': 'f'}]
    file.write_text(json.dumps({'messages': [answer]}))
    with pytest.raises(ValueError, match='prompts.jsonl:1: no message before the answer'):
        generate.read_prompts(file)
    file.write_text(json.dumps({'messages': [{'role': 'user'}]}))
    with pytest.raises(
        ValueError, match=r"prompts.jsonl:1: 'messages' \[0\]: expected an object with 'role' and 'content'"
    ):
        generate.read_prompts(file)


def test_template_writes_turns_and_answer_has_its_own_line(lmtrain, stub, tmp_path):
    stub.template = Template(PLAIN, 'the plain template')
    code, out, err = lmtrain('--workdir=w', '--prompt=good', '--system=be kind')
    assert (code, out, stub.prompts) == (0, 'good\n!\n', ['be kind\ngood\n'])
    assert 'written by the plain template' in err
    assert stub.settings['end_ids'] == [256, 7]
    *_, err = lmtrain('--workdir=w', '--prompt=good', '--template=none')
    assert stub.prompts == ['good'] and 'template' not in err
    file = tmp_path / 'p.jsonl'
    file.write_text('{"prompt": [{"role": "user", "content": "a"}]}\n')
    code, _, err = lmtrain('--workdir=w', f'--prompts_file={file}', '--template=none')
    assert code == 2 and 'messages with --template=none: leave --template out' in err


def test_special_token_name_in_a_prompt_is_noted(lmtrain, stub):
    *_, err = lmtrain('--workdir=w', '--prompt=a<|endoftext|>')
    words = ' '.join(err.split())
    assert "a prompt contains '<|endoftext|>', the name of a special token: it is read as characters" in words
    assert stub.prompts == ['a<|endoftext|>']


BAD = {
    'a.jsonl': (b'{"prompt": "x"}\n{"prompt": ', ':2: invalid JSON'),
    'b.jsonl': (b'{"text": "x"}\n', r':1: expected \{"prompt": "text"\} or \{"messages"'),
    'c.txt': (b'one\ntw\xffo\n', ':2: not UTF-8'),
    'd.txt': (b' \n\n', 'contains no prompt'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_file_without_prompts(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f'{name}.*{message}'):
        generate.read_prompts(tmp_path / name)


def test_missing_flag_is_one_line(lmtrain):
    missing = 'lmtrain generate: --workdir is missing: the folder of a run, such as --workdir=runs/quickstart'
    assert lmtrain()[::2] == (2, f'{missing}, or --base=DIR, a pretrained model\n')
    code, _, err = lmtrain('--workdir=w', '--prompts_file=nowhere.txt')
    assert code == 2 and 'nowhere.txt' in err
    code, _, err = lmtrain('--workdir=w', '--step=newest')
    assert code == 2 and "neither 'last' nor 'best'" in err


def test_control_characters_are_replaced_on_a_terminal(monkeypatch):
    text = 'a\x1b[31mb\x07\tc\n'
    assert generate.clean(text) == text
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    assert generate.clean(text) == 'a\ufffd[31mb\ufffd\tc\n'
