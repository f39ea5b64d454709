"""Every mistake of a user is refused before anything compiles: exit code 2, one line, and no file is changed.

Every case stands in a folder of its own, the current directory, beside a run (`run`) that was interrupted after its
second checkpoint.
"""

import contextlib
import errno
import gzip
import json
import os
import re
import shutil
from collections import namedtuple

import jax
import numpy as np
import pytest

from launch import cli, process_setup
from lmtrain import checkpoint
from lmtrain.checkpoint import manifest
from lmtrain.runtime import lifecycle, preflight
from lmtrain.training import initial, train, workdir
from lmtrain.training.run import Run

GOOD = '\n'.join(f'the cat sat on mat {number} and saw the dog run {number * 7}' for number in range(200))
compiled = []  # one entry for every compilation of this process


@pytest.fixture(scope='module', autouse=True)
def count_compilations():
    def listen(event, *_, **__):
        if 'backend_compile' in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    assert jax.jit(lambda x: x + len(GOOD))(1) and compiled  # it can be heard
    yield
    jax.monitoring.unregister_event_duration_listener(listen)


def pretend(patch, calls=20):
    """Runs train with steps that compute nothing and end in Ctrl-C after so many calls."""

    def on_mesh(self):
        return jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), self.shapes)

    def train_steps(self):
        left, names = iter(range(calls)), ('loss', 'nats', 'targets', 'learning_rate', 'grad_norm', 'update_norm')
        measured = dict.fromkeys((*names, 'param_norm', 'skipped', 'skipped_in_a_row'), np.float32(0))

        def step(state, batch, progress):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return state, measured

        step.memory_analysis = lambda: None
        return {0: step}

    sums = {name: np.float32(8) for name in ('loss', 'nats', 'targets', 'bytes')}
    patch.setattr(initial.InitialState, 'on_mesh', on_mesh)
    patch.setattr(Run, 'train_steps', train_steps)
    patch.setattr(Run, 'eval_step', lambda self: lambda params, batch: sums)
    patch.setattr(process_setup, 'configure', lambda: None)


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A folder with a good text, a cache, and an interrupted run."""
    folder = tmp_path_factory.mktemp('workspace')
    (folder / 'good.txt').write_text(GOOD)
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, calls=11)
        patch.chdir(folder)
        assert cli.main(train_words(folder, 'checkpoint.every_steps=5')) == 130
    assert checkpoint.steps(folder / 'run' / 'checkpoints') == [5, 10]
    return folder


def train_words(workspace, words=''):
    """The command line of a good run, then `words`; `a.b=` is short for `--config.a.b=`."""
    settings = {'source': workspace / 'good.txt', 'document': 'line', 'validation': 0.2, 'cache': workspace / 'cache'}
    standard = ['train', '--config=tiny', '--workdir=run', '--config.log.tensorboard=false']
    return [
        *standard,
        *(f'--config.data.{name}={value}' for name, value in settings.items()),
        *(f'--config.{word}' if re.match(r'[a-z_.]+=', word) else word for word in words.split()),
    ]


def snapshot(folder):
    """{path: bytes} of all that a refused command may not touch."""
    files = [path for path in folder.rglob('*') if path.is_file() and path.name != '.lock']
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def remove(name):
    return lambda patch: os.remove(name)


def held_by_another(patch):
    return workdir.lock('run')  # open, and so held, until the answer is there


def small_disk(patch):
    patch.setattr(shutil, 'disk_usage', lambda path: namedtuple('usage', 'total used free')(10**6, 0, 1000))


def small_memory(patch):
    patch.setattr(preflight, 'host_memory', lambda: 8 * 10**4)


def checkpoints_without_config(patch):
    os.makedirs('lost/checkpoints/5')


def nothing_trained(patch):
    os.makedirs('lost/checkpoints')
    shutil.copy('run/config.json', 'lost')


def source(name, content):
    """The words of a run on a file, and the file."""
    return f'train data.source={name}', {name: content}


ROWS = b'{"text": "abc"}\n'
TEXT = [
    # id, (command, files), words
    ('empty file', source('a.txt', b''), ['a.txt is empty: there is no text']),
    ('blank file', source('a.txt', b'\n \n\n'), ['a.txt: only spaces']),
    ('not UTF-8', source('a.txt', b'abc\xff'), ['a.txt:1: not UTF-8 at byte 3 (ff', 'iconv']),
    (
        'truncated gz',
        source('a.jsonl.gz', gzip.compress(ROWS * 99)[:-9]),
        ['a.jsonl.gz: truncated', 'Download it again'],
    ),
    ('no gz at all', source('a.jsonl.gz', ROWS), ['a.jsonl.gz: it is not compressed', 'remove .gz']),
    ('broken JSON', source('a.jsonl', ROWS + b'{"text":'), ['a.jsonl:2: invalid JSON', 'column']),
    ('missing field', source('a.jsonl', b'{"body": "x"}'), ["a.jsonl:1: no field 'text'", "'body'", 'data.text_field']),
    ('field of another type', source('a.jsonl', b'{"text": 5}'), ["a.jsonl:1: 'text' must be text", 'a number']),
    ('no object', source('a.jsonl', b'[1]'), ['a.jsonl:1: expected a JSON object', 'an array']),
    ('a zip archive', source('a.docx', b'PK\x03\x04\xff'), ['a.docx:1: not UTF-8', 'save its text as .txt']),
    ('no parquet', source('a.parquet', b'PAR1 no'), ['a.parquet: not a parquet file']),
    ('a text too short', source('a.txt', b'ab\ncd\nef\ngh\nij\nkl'), ['tokens in all', 'data.seq_len=32', 'more text']),
]
TRAIN = [
    # id, words of the command line, what is changed before (files, or a function), words of the error
    ('missing file', 'data.source=no.txt', {}, ['no.txt: no such file', 'start at the current directory']),
    ('missing in root', 'data.source=no.txt data.root=r', {}, ['r/no.txt: no such file', "data.root, 'r'"]),
    ('glob of nothing', 'data.source=q*.txt', {}, ['q*.txt: no file matches this glob']),
    ('folder of nothing', 'data.source=d', {'d/a.png': b'x'}, ['d: no file in this directory ends in .txt', '1 .png']),
    ('no source', 'data.source=', {}, ["data.source is ''", "'python'"]),
    ('one document, three splits', 'data.document=file data.split=document', {}, ['the train split is empty']),
    ('unknown document', 'data.document=page', {}, ["data.document is 'page'", "'paragraph'"]),
    ('mix of nothing', "data.mix=(('b.txt',1.0),)", {}, ['b.txt: no such file']),
    ('mix of numbers', 'data.mix=(3,)', {}, ['data.mix is (3,)', 'pairs of a source and its weight']),
    ('mix by words', "data.mix=(('b.txt','x'),)", {}, ['data.mix is', 'pairs of a source and its weight']),
    ('negative share', 'data.validation=-0.1', {}, ['data.validation is -0.1', 'from 0 to below 1']),
    ('share of all', 'data.validation=0.5 data.test=0.5', {}, ['data.test is 0.5', 'data.validation']),
    ('no validation', 'data.validation=0', {}, ['the validation split is empty', 'data.validation']),
    ('cache in the way', 'data.cache=c', {'c': b'x'}, ['Not a directory: data.cache must be']),
    ('cache nowhere', 'data.cache=/proc/c', {}, ['/proc/c', 'data.cache must be a directory']),
    ('tokenizer too large', 'model.vocab_size=100', {}, ['257 entries', 'model.vocab_size is 100', 'at least 257']),
    ('missing tokenizer', 'data.tokenizer=t.json', {}, ['data.tokenizer: no file t.json', "'bpe'"]),
    (
        'tokenizer of no JSON',
        'data.tokenizer=t.json',
        {'t.json': b'x'},
        ['t.json: expected a Hugging Face tokenizer.json'],
    ),
    ('tokenizer of a list', 'data.tokenizer=t.json', {'t.json': b'[]'}, ['t.json', "no object 'model'"]),
    (
        'tokenizer without words',
        'data.tokenizer=t.json',
        {'t.json': b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'},
        ['t.json: expected a Hugging Face tokenizer.json', 'vocabulary is empty'],
    ),
    ('bpe too small', 'data.tokenizer=bpe data.vocab_size=10', {}, ['data.vocab_size', '512 or more']),
    ('heads and width', 'model.num_heads=3', {}, ['model.num_heads=3 does not divide model.width=32']),
    ('key heads', 'model.num_kv_heads=3', {}, ['model.num_kv_heads=3 does not divide model.num_heads=2']),
    ('no heads', 'model.num_heads=0', {}, ['config.model.num_heads = 0', 'division by zero']),
    ('no layers', 'model.num_layers=0', {}, ['model.num_layers=0 must be at least 1']),
    ('row over learned positions', 'model.max_len=16 model.positions=learned', {}, ['32', 'model.max_len=16']),
    ('unknown activation', 'model.activation=swish', {}, ["model.activation = 'swish'", "did you mean 'swiglu'"]),
    ('cudnn on a CPU', 'model.attention=cudnn', {}, ["attention='cudnn' needs a GPU", "'auto'"]),
    ('splash on a CPU', 'model.attention=splash', {}, ["attention='splash' needs a TPU", "'auto'"]),
    ('hidden from a causal model', 'data.mask_rate=0.2', {}, ['data.mask_rate = 0.2', 'model.causal = True']),
    ('encoder with nothing hidden', 'model.causal=false', {}, ['data.mask_rate = 0.0', 'model.causal = False']),
    (
        'no row for the mask',
        'data.mask_rate=0.2 model.causal=false',
        {},
        ["'bytes' has 258 entries", 'model.vocab_size is 257'],
    ),
    ('all hidden', 'data.mask_rate=1.0 model.causal=false', {}, ['data.mask_rate is 1.0', 'below 1']),
    ('words of nothing hidden', 'data.whole_word=true', {}, ['data.whole_word is True', 'data.mask_rate is 0']),
    ('batch and mesh', 'data.batch_size=9', {}, ['data.batch_size = 9', '8 devices', 'a multiple of 8']),
    ('batch and accumulation', 'optimizer.accumulate=3', {}, ['optimizer.accumulate', 'a multiple of 24']),
    ('no batch', 'data.batch_size=0', {}, ['data.batch_size = 0', 'at least 1']),
    ('mesh over the devices', 'mesh.data=16', {}, ['needs 16 devices, but there are 8', 'config.mesh']),
    ('mesh of nothing', 'mesh.data=0', {}, ['mesh.data = 0', 'at least 1 device, or -1']),
    ('mesh twice open', 'mesh.fsdp=-1', {}, ['mesh.data and mesh.fsdp are -1']),
    ('mesh and width', 'mesh.fsdp=8 model.width=36', {}, ['embed/embedding', '36', 'mesh.fsdp = 8']),
    ('learning rate nan', 'optimizer.learning_rate=nan', {}, ['optimizer.learning_rate', 'finite', "'nan'"]),
    ('learning rate inf', 'optimizer.learning_rate=inf', {}, ['optimizer.learning_rate', 'finite', "'inf'"]),
    ('learning rate below 0', 'optimizer.learning_rate=-1', {}, ['optimizer.learning_rate = -1.0', '[0, inf)']),
    ('rates of no path', "optimizer.learning_rates=(('x',2.0),)", {}, ['optimizer.learning_rates', "'x' matches no"]),
    ('rates without pairs', "optimizer.learning_rates=('x',2.0)", {}, ["optimizer.learning_rates has 'x'", 'pairs']),
    ('rates by words', "optimizer.learning_rates=(('.*','x'),)", {}, ['optimizer.learning_rates', 'a factor']),
    ('no regex to learn', 'trainable=(', {}, ["trainable: '(' is no regular expression"]),
    ('nothing learns', 'trainable=x', {}, ["trainable: 'x' matches no parameter", 'embed/embedding']),
    ('no regex to decay', 'optimizer.decayed=(', {}, ["optimizer.decayed: '(' is no regular expression"]),
    ('unknown optimizer', 'optimizer.name=adam', {}, ["optimizer.name = 'adam'", "'adamw'"]),
    ('unknown schedule', 'schedule.name=cos', {}, ["schedule.name = 'cos'", "'cosine'"]),
    ('warmup over all', 'schedule.warmup=2', {}, ['schedule.warmup = 2.0', '[0, 1]']),
    ('negative z-loss', 'objective.z_loss=-1', {}, ['objective.z_loss = -1.0', 'at least 0']),
    ('negative seed', 'seed=-1', {}, ['seed = -1']),
    ('no steps', 'budget.steps=0', {}, ['budget.steps = 0', 'positive']),
    ('negative steps', 'budget.steps=-5', {}, ['budget.steps = -5', 'positive']),
    ('steps beyond counting', 'budget.steps=9999999999', {}, ['budget.steps = 9999999999', 'counted in 31 bits']),
    ('half a step', 'budget.steps=1.5', {}, ['budget.steps must be an integer', "'1.5'"]),
    ('no budget', 'budget.steps=none', {}, ['no budget is set', 'config.budget.hours']),
    (
        'two budgets',
        'budget.steps=5 budget.tokens=9',
        {},
        ['exactly one of', 'budget.steps = 5', 'budget.tokens = 9.0'],
    ),
    ('log never', 'log.every_steps=0', {}, ['log.every_steps = 0', 'at least 1']),
    ('evaluate never', 'evaluate.every_steps=0', {}, ['evaluate.every_steps = 0', 'at least 1']),
    ('evaluate less', 'evaluate.max_batches=-1', {}, ['evaluate.max_batches = -1', 'at least 0']),
    ('checkpoint never', 'checkpoint.every_steps=0', {}, ['checkpoint.every_steps = 0', 'at least 1']),
    ('keep nothing', 'checkpoint.keep_last=0', {}, ['checkpoint.keep_last = 0', 'at least 1']),
    ('prompt of no text', 'sample.prompts=(3,)', {}, ['sample.prompts has 3', 'text']),
    (
        'prompt of other symbols',
        "sample.prompts=('Z',) data.tokenizer=chars",
        {},
        ['config.sample', "'Z' is not among"],
    ),
    (
        'prompt over the context',
        f"sample.prompts=('{'a' * 99}',)",
        {},
        ['config.sample', '100 tokens', 'model.max_len=32'],
    ),
    (
        'prompt over the context after virtual tokens',
        f"sample.prompts=('{'a' * 20}',) adapt.method=prompt data.isolate=False",
        {},
        ['config.sample', '21 tokens', 'model.max_len=32 minus 20 virtual tokens'],
    ),
    ('samples of no token', 'sample.max_tokens=0', {}, ['config.sample', 'max_tokens=0']),
    ('negative temperature', 'sample.temperature=-1', {}, ['config.sample', 'temperature=-1']),
    ('top_p over all', 'sample.top_p=2', {}, ['config.sample', 'top_p=2']),
    ('file in the way', '--workdir=f', {'f': b'x'}, ['f is not a directory', 'choose another --workdir']),
    (
        'folder that takes no file',
        '--workdir=/proc/run',
        {},
        ['workdir /proc/run cannot be written', 'another --workdir'],
    ),
    ('model of no machine', 'model.width=1099511627776', {}, ['model.width = 1099511627776', 'any machine holds']),
    ('batch of no machine', 'data.batch_size=1000000000000', {}, ['batch_size = 1000000000000', 'this machine has']),
    ('memory too small', '--workdir=new', small_memory, ['training needs', 'a device has 1e-05 GB', 'mesh.fsdp']),
    ('disk too small', '--workdir=new', small_disk, ['checkpoints of', 'GB free', 'checkpoint.keep_last']),
    (
        'of another rate',
        'optimizer.learning_rate=0.5',
        {},
        ['belongs to another run', 'learning_rate: saved 0.001, now 0.5'],
    ),
    (
        'of another text',
        'data.source=b.txt',
        {'b.txt': GOOD.encode() * 2},
        ['data.source', 'b.txt"', 'fingerprint of data'],
    ),
    ('of checkpoints alone', '--workdir=lost', checkpoints_without_config, ['holds checkpoints but no config.json']),
    ('in use', '', held_by_another, [f'process {os.getpid()} trains there', 'another --workdir']),
    ('broken config.json', '', {'run/config.json': b'{"seed": 0,'}, ['run/config.json: invalid JSON', '--workdir']),
    ('other config.json', '', {'run/config.json': b'[]'}, ['run/config.json: expected a JSON object', '--workdir']),
    ('binary config.json', '', {'run/config.json': b'\xff\xfe'}, ['run/config.json: invalid JSON', '--workdir']),
    ('no fingerprints', '', remove('run/fingerprints.json'), ['run/fingerprints.json: No such file']),
    ('unknown field', 'model.wdth=3', {}, ['unknown field config.model.wdth', "did you mean 'config.model.width'?"]),
    ('field of words', 'model.width=x', {}, ['config.model.width must be an integer', "'x'"]),
    ('truth of words', 'model.tied=yes', {}, ['config.model.tied must be true or false', "'yes'"]),
    ('section as a field', 'model=3', {}, ['config.model is a section', 'model.width']),
    ('no value', '--config.model.width', {}, ['--config.model.width has no value']),
    ('unknown flag', '--wrokdir=x', {}, ['unknown flag --wrokdir', '--workdir']),
    ('word that is no flag', 'quickstart', {}, ["'quickstart' is not a flag", '--config=quickstart']),
    ('unknown recipe', '--config=quikstart', {}, ["unknown recipe 'quikstart'", "did you mean 'quickstart'?"]),
    ('recipe that is broken', '--config=r.py', {'r.py': b'def get_config(:\n'}, ['r.py, line 1: invalid syntax']),
    ('recipe that imports nothing', '--config=r.py', {'r.py': b'import no_such\n'}, ['r.py, line 1', "'no_such'"]),
    ('recipe without get_config', '--config=r.py', {'r.py': b'x = 1\n'}, ['r.py', "no attribute 'get_config'"]),
]
OTHERS = [
    # id, command line, what is changed before, words of the error
    ('unknown verb', 'trian', {}, ["unknown verb 'trian'", "'train'"]),
    ('flag of a verb without flags', 'configs --x', {}, ['unknown flag --x']),
    ('evaluate no folder', 'evaluate --workdir=nowhere', {}, ['nowhere: there is no such folder']),
    ('evaluate a file', 'evaluate --workdir=f', {'f': b'x'}, ['f is no folder of a run']),
    ('evaluate without a folder', 'evaluate', {}, ['--workdir is missing', '--workdir=runs/quickstart']),
    ('evaluate no split', 'evaluate --workdir=run --split=tset', {}, ['--split=tset', 'validation']),
    ('evaluate nothing trained', 'evaluate --workdir=lost', nothing_trained, ['holds no checkpoint', 'trained']),
    (
        'evaluate a broken config',
        'evaluate --workdir=run',
        {'run/config.json': b'x'},
        ['run/config.json: invalid JSON'],
    ),
    ('evaluate another config', 'evaluate --workdir=run', {'run/config.json': b'{"a": 1}'}, ['run/config.json is not']),
    (
        'evaluate no fingerprints',
        'evaluate --workdir=run',
        remove('run/fingerprints.json'),
        ['fingerprints.json: No such file'],
    ),
    ('generate no folder', 'generate --workdir=nowhere', {}, ['nowhere: there is no such folder']),
    ('generate nothing trained', 'generate --workdir=lost', nothing_trained, ['holds no checkpoint', 'trained']),
    (
        'generate a step that is not there',
        'generate --workdir=run --step=7',
        {},
        ['no checkpoint of step 7', '[5, 10]'],
    ),
    (
        'generate no step',
        'generate --workdir=run --step=new',
        {},
        ["--step=new is neither 'last' nor 'best'"],
    ),
    (
        'generate over the context',
        f'generate --workdir=run --prompt={"a" * 99}',
        {},
        ['100 tokens', 'model.max_len=32', 'shorten'],
    ),
    ('generate no token', 'generate --workdir=run --max_tokens=0', {}, ['max_tokens=0 must lie in [1']),
    ('generate of words', 'generate --workdir=run --max_tokens=x', {}, ['--max_tokens=x']),
    ('prompts that are missing', 'generate --workdir=run --prompts_file=p.txt', {}, ['p.txt: No such file']),
    (
        'prompts not UTF-8',
        'generate --workdir=run --prompts_file=p.txt',
        {'p.txt': b'a\n\xff'},
        ['p.txt:2: not UTF-8', 'iconv'],
    ),
    ('prompts of none', 'generate --workdir=run --prompts_file=p.txt', {'p.txt': b'\n'}, ['p.txt contains no prompt']),
]
CASES = [(name, *case, words) for name, case, words in TEXT]
CASES += [(name, f'train {rest}', change, words) for name, rest, change, words in TRAIN] + OTHERS


@pytest.mark.parametrize(('command', 'change', 'words'), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_invalid_input_is_refused_in_one_line_before_compilation(
    command, change, words, workspace, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workspace / 'run', tmp_path / 'run')
    for name, content in ({} if callable(change) else change).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    verb, _, rest = command.partition(' ')
    argv = train_words(workspace, rest) if verb == 'train' else [verb, *rest.split()]
    with (change(monkeypatch) if callable(change) else None) or contextlib.nullcontext():
        before = snapshot(tmp_path)
        compiled.clear()
        capsys.readouterr()
        code = cli.main(argv)
    out, error = capsys.readouterr()
    assert (code, out) == (2, ''), error
    assert error.startswith('lmtrain') and '[Errno' not in error and 'Traceback' not in error
    assert len(error.splitlines()) <= (4 if 'belongs to another run' in error else 1), error
    for word in words:
        assert word in error
    assert not compiled
    assert snapshot(tmp_path) == before


def test_command_without_mistake_trains(workspace, tmp_path, monkeypatch, capsys):
    """So the cases above are refused for what their words say."""
    shutil.copytree(workspace / 'run', tmp_path / 'run')
    monkeypatch.chdir(tmp_path)
    pretend(monkeypatch, calls=1)
    assert cli.main(train_words(workspace)) == 130
    assert 'after step 10' in capsys.readouterr().out


def test_full_disk_in_a_save_leaves_older_checkpoints(workspace, tmp_path, monkeypatch, capsys):
    seal = manifest.write_manifest

    def full_from_ten_on(folder, facts):
        if facts['step'] >= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder, facts)

    monkeypatch.chdir(tmp_path)
    pretend(monkeypatch)
    monkeypatch.setattr(manifest, 'write_manifest', full_from_ten_on)
    assert cli.main(train_words(workspace, 'checkpoint.every_steps=5')) == lifecycle.DISK
    error = capsys.readouterr().err
    assert 'checkpoint of step 10' in error and 'No space left on device' in error and 'run the same command' in error
    assert 'Intact checkpoints: 5.' in error and '[Errno' not in error
    assert [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['5']
    manifest.verify(tmp_path / 'run' / 'checkpoints' / '5')
    monkeypatch.setattr(manifest, 'write_manifest', seal)
    pretend(monkeypatch, calls=6)
    assert cli.main(train_words(workspace, 'checkpoint.every_steps=5')) == 130
    assert 'after step 5' in capsys.readouterr().out
    assert json.loads((tmp_path / 'run' / 'lineage.jsonl').read_text().splitlines()[1])['resumed_from'] == 5


def test_full_disk_at_the_end_is_reported(workspace, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    pretend(monkeypatch)
    monkeypatch.setattr(train.samples, 'texts', full)
    assert cli.main(train_words(workspace)) == lifecycle.DISK
    assert 'workdir run: No space left on device; make room' in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')[-1] == 20
