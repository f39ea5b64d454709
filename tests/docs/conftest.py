"""A folder with small files of every kind that the documentation names, and commands at a tiny size."""

import contextlib
import io
import json
import pathlib
import re
import types

import pytest

from launch import cli, process_setup

ROOT = pathlib.Path(__file__).parents[2]
# Overrides that make a recipe of text or rows tiny; a base has its own sizes.
SMALL = {'data.batch_size': 8, 'budget.steps': 2, 'log.every_steps': 1, 'log.tensorboard': 'false'}
SMALL |= {'evaluate.every_steps': 2, 'checkpoint.every_steps': 2, 'evaluate.max_batches': 1}
SMALL |= {'sample.max_tokens': 8, 'optimizer.accumulate': 1}
MODEL = {'data.seq_len': 32, 'data.vocab_size': 300, 'model.num_layers': 1, 'model.width': 32, 'model.num_heads': 2}
MODEL |= {'model.mlp_dim': 64, 'model.unroll': 1}
WORDS = 'the cat sat on a mat and read one book of old tales while rain fell over every quiet street'.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of WORDS, all different."""
    picked = [[WORDS[(seed + i * j + j * j + i // 7) % len(WORDS)] for j in range(4 + i % 5)] for i in range(count)]
    return [f'{" ".join(words).capitalize()} {i}.' for i, words in enumerate(picked)]


def write_files(folder: pathlib.Path) -> None:
    """A book, notes, code, a table of classes, conversations, instructions and preferences."""
    (folder / 'notes').mkdir()
    (folder / 'project').mkdir()
    files = {'book.txt': 900, 'new.txt': 300, 'old.txt': 300, 'one.txt': 200, 'two.txt': 400, 'three.txt': 100}
    files |= {'notes/monday.txt': 40, 'notes/tuesday.txt': 60, 'notes/wednesday.md': 30, 'project/README.md': 200}
    for number, (name, count) in enumerate(files.items()):
        (folder / name).write_text('\n'.join(sentences(count, number)) + '\n', encoding='utf-8')
    code = ''.join(f'def f{i}(x):\n    return x + {i}\n\n\n' for i in range(200))
    (folder / 'project' / 'main.py').write_text(code, encoding='utf-8')
    rows = [(text, ('cats', 'rain', 'books')[i % 3]) for i, text in enumerate(sentences(240, 3))]
    table = 'text,category\n' + ''.join(f'"{text}",{label}\n' for text, label in rows)
    (folder / 'train.csv').write_text(table, encoding='utf-8')
    (folder / 'new.csv').write_text('text\n' + ''.join(f'"{text}"\n' for text in sentences(5, 4)), encoding='utf-8')
    chats = [{'messages': [{'role': 'user', 'content': q}, {'role': 'assistant', 'content': 'Yes.'}]} for q, _ in rows]
    questions = [{'question': text, 'answer': label} for text, label in rows]
    pairs = [{'prompt': text, 'chosen': label, 'rejected': f'not {label}'} for text, label in rows]
    for name, lines in (('chats.jsonl', chats), ('rows.jsonl', questions), ('pairs.jsonl', pairs)):
        (folder / name).write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')


def run(words: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


def small(words: list[str]) -> list[str]:
    """A command of `train` at a tiny size: what it names itself stays; its budget is divided by 1,000."""
    own = {word.removeprefix('--config.').partition('=')[0] for word in words}
    based = own & {'init.base'}
    more = SMALL | ({'data.seq_len': 64} if based else MODEL)
    steps = re.search(r'--config\.budget\.steps=(\d+)', ' '.join(words))
    more |= {'budget.steps': max(2, int(steps[1]) // 1000)} if steps else {}
    if any(name.startswith('budget.') for name in own):
        words = [word for word in words if not word.startswith('--config.budget.')]
    kept = {name for name in own if name not in SMALL and name not in MODEL}
    words = [word for word in words if word.removeprefix('--config.').partition('=')[0] not in more]
    return [*words, *(f'--config.{name}={value}' for name, value in more.items() if name not in kept)]


def commands(text: str) -> list[str]:
    """The commands in the code blocks of a page, continued lines joined, without comments."""
    # With the language of every block, or the end of one would begin the next.
    blocks = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    printed = '\n'.join(block for language, block in blocks if language in ('', 'bash'))
    lines = re.sub(r'\\\n\s*', ' ', printed).splitlines()
    return [line.partition('  #')[0].strip() for line in lines if re.match(r'(lmtrain|bash|python|pip|hf) \S', line)]


@pytest.fixture(scope='session')
def base(tmp_path_factory):
    """A folder with `hf`, a Hugging Face directory of a tiny model that is trained here, and `peft`, its adapter."""
    folder = tmp_path_factory.mktemp('base')
    (folder / 'text.txt').write_text('\n'.join(sentences(400)), encoding='utf-8')
    words = ['train', '--config=configs/quickstart.py', f'--config.data.source={folder / "text.txt"}']
    words += [f'--config.data.cache={folder / "cache"}', f'--workdir={folder / "run"}']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_setup, 'configure', lambda: None)
        assert run(small(words))[0] == 0
        assert run(['export', f'--workdir={folder / "run"}', '--format=hf', f'--to={folder / "hf"}'])[0] == 0
        about = json.loads((folder / 'hf/tokenizer_config.json').read_text(encoding='utf-8'))
        about['chat_template'] = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
        (folder / 'hf/tokenizer_config.json').write_text(json.dumps(about), encoding='utf-8')
        words = [word for word in words if not word.startswith('--workdir')] + [f'--workdir={folder / "lora"}']
        words += [f'--config.init.base={folder / "hf"}', '--config.adapt.method=lora', '--config.data.tokenizer=base']
        assert run(small(words))[0] == 0
        assert run(['export', f'--workdir={folder / "lora"}', '--format=peft', f'--to={folder / "peft"}'])[0] == 0
    return folder


@pytest.fixture
def machine(tmp_path, monkeypatch, base):
    """An empty machine with the files that the pages name: DIR is a base, ADAPTER one for it. `run` runs a command."""
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folder = tmp_path / 'work'
    folder.mkdir()
    write_files(folder)
    (folder / 'DIR').symlink_to(base / 'hf')
    (folder / 'ADAPTER').symlink_to(base / 'peft')
    monkeypatch.chdir(folder)
    return types.SimpleNamespace(folder=folder, run=run, small=small)


@pytest.fixture(scope='session')
def pages():
    """{name of a page: its commands}: README.md and the pages of docs."""
    files = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
    return {str(file.relative_to(ROOT)): commands(file.read_text(encoding='utf-8')) for file in files}
