"""A run on conversations, from its rows to its report, `generate` and `evaluate`: all use the same template.

A model with learned positions that maps a letter to the next one answers nothing right if its prompts begin otherwise.
"""

import json

import pytest

from configs import tiny
from launch import cli
from lmtrain.models import generation
from lmtrain.training import export, load, samples, train
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

ALPHABET = 'abcdefghijklmnop'


def conversation(letter):
    answer = ALPHABET[(ALPHABET.index(letter) + 1) % len(ALPHABET)]
    return {'messages': [{'role': 'user', 'content': letter}, {'role': 'assistant', 'content': answer * 2}]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """rows.jsonl, a template that ends turns with a token of its own, and a run on both in `run`."""
    folder = tmp_path_factory.mktemp('letters')
    lines = [json.dumps(conversation(letter)) + '\n' for letter in ALPHABET]
    (folder / 'rows.jsonl').write_text(''.join(lines), encoding='utf-8')
    train.train(recipe(folder), folder / 'run')
    return folder


def recipe(folder):
    config = tiny.get_config()
    config.task.name, config.task.pack = 'chat', False
    config.task.train = config.task.validation = (str(folder / 'rows.jsonl'),)
    config.task.buckets = 1
    config.data.cache = str(folder / 'cache')
    config.data.seq_len, config.data.batch_size = 8, 16
    config.data.validation = config.data.test = 0.0
    config.model.update(num_layers=1, positions='learned', norm='layernorm', activation='gelu', bias=True)  # GPT-2's
    config.optimizer.learning_rate, config.optimizer.weight_decay = 2e-2, 0.0
    config.budget.steps = 60
    config.log.update(every_steps=60, tensorboard=False)
    config.evaluate.every_steps = config.checkpoint.every_steps = 60
    config.sample.update(max_tokens=4, temperature=0.0)
    return config


def lmtrain(capsys, *words):
    capsys.readouterr()
    code = cli.main([*map(str, words)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_report_prompts_with_validation_rows(folder):
    text = (folder / 'run' / 'samples.txt').read_text(encoding='utf-8')
    rows = [f'--- {letter!r}\n{answer}\n(the row: {answer!r})\n\n' for letter, answer in zip('abc', ('bb', 'cc', 'dd'))]
    assert text == ''.join(rows) + '3 of 3 texts ended with an end token\n'
    assert '3 of 3 texts ended' in (folder / 'run' / 'report.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('method', ['prompt', 'prefix'])
@pytest.mark.parametrize(('length', 'count'), [(4, 3), (6, 0)])
def test_rows_leave_room_for_virtual_tokens_and_an_answer(method, length, count, folder):
    config = recipe(folder)
    config.adapt.method, config.adapt[method].length = method, length
    config.data.isolate, config.model.positions = False, 'rotary'
    prompts = samples.prompts_of(build(*resolve(config)))
    assert [len(prompt.ids) for prompt in prompts] == [3] * count  # of 8 positions


def test_generate_uses_the_template_of_the_training(folder, capsys):
    greedy = '--temperature=0', f'--workdir={folder / "run"}'
    code, out, err = lmtrain(capsys, 'generate', *greedy, *(f'--prompt={letter}' for letter in ALPHABET))
    answers = [line for line in out.splitlines() if not line.startswith('──')][1::2]
    assert code == 0 and answers == [conversation(letter)['messages'][1]['content'] for letter in ALPHABET]
    assert '16 of 16 texts ended with an end token' in err and 'written by the tokenizer' in err
    prompts = folder / 'rows.jsonl'  # whose answers are left out
    assert lmtrain(capsys, 'generate', *greedy, f'--prompts_file={prompts}')[1] == out
    raw = lmtrain(capsys, 'generate', *greedy, '--prompt=a\n', '--template=none')
    assert raw[:2] == (0, 'a\nbb\n') and 'written by' not in raw[2]  # what the plain template writes, by hand


def test_evaluate_compares_answers_of_conversations(folder, capsys):
    words = 'evaluate', f'--workdir={folder / "run"}', f'--rows={folder / "rows.jsonl"}', '--max_tokens=4'
    code, out, _ = lmtrain(capsys, *words, f'--results={folder / "rows.json"}')
    assert code == 0 and out.startswith('exact match 100.0') and 'ended with an end token 100.0 %' in out
    assert out.endswith(f'written: {folder / "rows.json"}\n')
    results = json.loads((folder / 'rows.json').read_text(encoding='utf-8'))
    assert results['results']['exact_match'] == results['results']['stopped'] == 1.0
    assert results['rows'][0] | {'place': ''} == {
        'place': '', 'answer': 'bb', 'predicted': 'bb', 'right': True, 'finish_reason': 'stop',
    }  # fmt: skip
    code, out, _ = lmtrain(capsys, *words, '--choices=aa,bb,cc', '--limit=2')
    assert code == 0 and out.startswith('accuracy 100.0') and 'chance 33.3 %' in out


def test_results_of_a_split_are_written(folder, capsys):
    file = folder / 'split.json'
    code, out, _ = lmtrain(capsys, 'evaluate', f'--workdir={folder / "run"}', f'--results={file}')
    figures = json.loads(file.read_text(encoding='utf-8'))['results']
    assert code == 0 and out.endswith(f'written: {file}\n') and figures['split'] == 'validation'
    assert figures['targets'] == 3 * 16 and f'loss {figures["loss"]:.4f}' in out
    code, _, err = lmtrain(capsys, 'evaluate', f'--workdir={folder / "run"}', f'--results={folder / "no" / "f"}')
    assert code == 2 and f'there is no directory {folder / "no"}' in err


def test_messages_need_a_template(folder, capsys, tmp_path):
    """An export contains the template. Without one, messages are refused and a text is continued unchanged."""
    export.export(folder / 'run', tmp_path / 'hf', 'hf')
    assert generation.read(tmp_path / 'hf')['eos_token_id'] == [256]
    card = (tmp_path / 'hf' / 'README.md').read_text(encoding='utf-8')
    assert 'pipeline_tag: "text-generation"' in card and '`rows.jsonl`' in card and 'validation: loss' in card
    own = load.load_directory(str(tmp_path / 'hf'))
    assert own.template is None and load.with_chat_template(own, None, False).template is None
    template = load.with_chat_template(own, None, True).template
    assert template is not None and template == load.with_chat_template(own, 'auto', False).template
    about = json.loads((tmp_path / 'hf' / 'tokenizer_config.json').read_text(encoding='utf-8'))
    del about['chat_template']
    (tmp_path / 'hf' / 'tokenizer_config.json').write_text(json.dumps(about), encoding='utf-8')
    words = 'generate', f'--base={tmp_path / "hf"}', '--max_tokens=4', '--temperature=0', '--prompt=c\n'
    assert lmtrain(capsys, *words)[:2] == (0, 'c\ndd\n')
    code, _, err = lmtrain(capsys, *words, '--system=s')
    assert code == 2 and "name a Jinja file or 'plain'" in err and err.count('\n') <= 2
    code, _, err = lmtrain(capsys, *words, '--system=s', '--template=none')
    assert code == 2 and '--system with --template=none' in err
    code, _, err = lmtrain(capsys, *words, '--template=nowhere.jinja')
    assert code == 2 and '--template: no file nowhere.jinja' in err


def test_special_token_in_a_prompt_is_reported(folder, capsys):
    code, _, err = lmtrain(capsys, 'generate', f'--workdir={folder / "run"}', '--prompt=<|endoftext|>')
    assert code == 2 and 'context' in err  # 13 characters are too long for this model; the run reported it
    assert "a prompt contains '<|endoftext|>', the name of a special token" in err


def test_ended_texts_are_counted():
    assert samples.ended(['stop', 'stop'], 9) == '2 of 2 texts ended with an end token'
    assert samples.ended(['stop', 'length', 'context', 'length'], 9) == (
        "1 of 4 texts ended with an end token; cut: 2 after max_tokens=9, 1 at the end of the model's context"
    )
