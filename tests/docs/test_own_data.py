"""From a file of one's own to a trained, evaluated and sampled model, with one command and no configuration."""

import json

import pytest

CHAT = ['--config=configs/instruct.py', '--config.data.tokenizer=bpe']
CLASSES = ['--config=configs/classify.py', '--config.data.tokenizer=bpe', '--config.task.text=text']
QUICK = '--config=configs/quickstart.py'
DATA = {
    'a book': [QUICK, '--config.data.source=book.txt'],
    'three files': [QUICK, '--config.data.source=t[hw]*.txt', "--config.data.mix=(('one.txt', 0.5),)"],
    'two notes': [QUICK, '--config.data.source=notes'],
    'a folder of .md and .py': [QUICK, '--config.data.source=project'],
    'a csv': [*CLASSES, '--config.task.train=train.csv', '--config.task.label=category'],
    'conversations': [*CHAT, '--config.task.train=chats.jsonl'],
    'questions and answers': [*CHAT, '--config.task.train=rows.jsonl'],
}


@pytest.mark.slow
@pytest.mark.parametrize('words', DATA.values(), ids=DATA)
def test_one_command_trains_evaluates_and_samples(words, machine):
    code, out, err = machine.run(machine.small(['train', *words, '--workdir=runs/own']))
    assert code == 0, out + err
    results = json.loads((machine.folder / 'runs/own/results.json').read_text(encoding='utf-8'))
    assert results['validation']['loss'] > 0 and results['cost']['epochs'] > 0
    report = (machine.folder / 'runs/own/report.md').read_text(encoding='utf-8')
    assert '| epochs |' in report and ('epochs)' in out)
    assert max(map(len, (out + err).splitlines())) <= 80
    samples = (machine.folder / 'runs/own/samples.txt').read_text(encoding='utf-8')
    if 'task.label' in ' '.join(words):
        assert results['validation']['accuracy'] >= 0 and 'makes no text' in samples
    else:
        assert 1 <= samples.count('--- ') <= 3  # validation documents


@pytest.mark.slow
def test_form_of_the_rows_is_named(machine):
    code, out, _ = machine.run(machine.small(['train', *DATA['questions and answers'], '--workdir=runs/own']))
    assert code == 0 and 'rows of question + answer, written by ' in ' '.join(out.split())


@pytest.mark.slow
def test_default_prompts_are_the_beginnings_of_validation_documents(machine):
    words = ['train', '--config=configs/base.py', '--config.data.source=notes', '--config.data.document=line']
    code, out, err = machine.run(machine.small([*words, '--config.data.validation=0.2', '--workdir=runs/notes']))
    assert code == 0, out + err
    samples = (machine.folder / 'runs/notes/samples.txt').read_text(encoding='utf-8')
    text = (machine.folder / 'notes/monday.txt').read_text() + (machine.folder / 'notes/tuesday.txt').read_text()
    prompts = [line[5:-1] for line in samples.splitlines() if line.startswith('--- ')]
    lines = text.splitlines()
    assert len(prompts) == 3
    for prompt in prompts:
        assert any(line.startswith(prompt) and len(prompt.split()) >= 2 for line in lines), prompt
