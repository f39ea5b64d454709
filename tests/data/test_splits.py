import math
import os
import random
import time
from types import SimpleNamespace

import pytest

import lmtrain.data
from lmtrain.data import splits as module
from lmtrain.data.document import Document
from lmtrain.data.source import open_source

RULE = {'split': 'document', 'validation': 0.1, 'test': 0.1}


def aged(path, seconds=60):
    """A time `seconds` after the last change of the file, for a clock that is ahead of the file system."""
    return os.stat(path).st_ctime + seconds


def test_text_is_read_again_only_after_a_change(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    path.write_text('one')
    now = [aged(path)]
    monkeypatch.setattr(module.time, 'time', lambda: now[0])
    reads = []

    def content():
        source = open_source(str(path), '', tmp_path / 'cache', 'text', 'file')

        def documents():
            reads.append(1)
            return source.documents()

        return module.read_content(source._replace(documents=documents), [], RULE, tmp_path / 'cache')

    first = content()
    assert content() == first and len(reads) == 1
    times = os.stat(path)
    while os.stat(path).st_ctime_ns == times.st_ctime_ns:  # the clock of a file system ticks every few milliseconds
        path.write_text('two')
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same modification time
    assert content().sha256 != first.sha256 and len(reads) == 2


def test_any_changed_file_attribute_triggers_reading(tmp_path, monkeypatch):
    """Changes size, inode, modification time and change time one at a time."""
    path = tmp_path / 'a.txt'
    path.write_text('one')
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'file')
    at = dict.fromkeys(('st_size', 'st_ino', 'st_mtime_ns', 'st_ctime_ns'), 7)
    stamps = []
    for changed in (None, *at):
        marks = SimpleNamespace(**at | ({changed: 8} if changed else {}))
        monkeypatch.setattr(module.os, 'stat', lambda file, marks=marks: marks)
        stamps.append(str(module._stamps(source)))
    monkeypatch.undo()
    assert len(set(stamps)) == 5


def test_recently_written_files_are_always_read(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('one')
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'file')
    module.read_content(source, [], RULE, tmp_path / 'cache')
    assert time.time() - os.stat(path).st_ctime > module.SETTLED or not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('text', ['\n' * 10, ' \t\r\n', '\ufeff\n'])
def test_blank_text_is_rejected(text, tmp_path, settings):
    (tmp_path / 'a.txt').write_text(text)
    for document in ('file', 'line', 'paragraph'):
        with pytest.raises(ValueError, match=r'a\.txt: only spaces and empty lines'):
            lmtrain.data.prepare(**settings(source='a.txt', document=document))


def test_file_that_changes_while_read_is_rejected(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('one\ntwo\n')
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'line')

    def growing():
        for document in source.documents():
            with path.open('a') as file:
                file.write('more')
            yield document
            break

    with pytest.raises(ValueError, match='a file changed while it was read'):
        module.read_content(source._replace(documents=growing), [], RULE, tmp_path / 'cache')


def divided(tmp_path, texts, **rule):
    rule = RULE | rule
    path = tmp_path / 'a.txt'
    path.write_text('\n'.join(texts))
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'line')
    content = module.read_content(source, [], rule, tmp_path / 'cache')
    splits = {name: [] for name in module.SPLITS}
    for name, text in module.divide(source, content, rule):
        splits[name].append(text)
    return splits


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_tail_does_not_train_on_a_split_that_the_source_decides(split, tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('a text')
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'line')
    source = source._replace(documents=lambda: iter([Document('held out', '', split), Document('a text')]))
    with pytest.raises(ValueError, match=f"'tail' would train on the {split} split of .*'document' or 'auto'"):
        module.read_content(source, [], RULE | {'split': 'tail'}, tmp_path / 'cache')


def test_split_is_decided_by_content(tmp_path):
    texts = [f'line {number}' for number in range(2000)]
    splits = divided(tmp_path, texts)
    assert sorted(sum(splits.values(), [])) == sorted(texts)
    total = sum(map(len, texts))
    for name in ('validation', 'test'):
        assert abs(sum(map(len, splits[name])) / total - 0.1) < 0.001
    backwards = divided(tmp_path, texts[::-1] + texts)  # independent of order and duplicates
    assert {name: set(texts) for name, texts in backwards.items()} == {
        name: set(texts) for name, texts in splits.items()
    }


def test_split_shares_count_text_not_documents(tmp_path):
    texts = [f'{number} ' + 'x' * int(4000 / (1 + number % 97)) for number in range(300)]
    splits = divided(tmp_path, texts, validation=0.05)
    share = {name: sum(map(len, splits[name])) / sum(map(len, texts)) for name in splits}
    assert abs(share['validation'] - 0.05) < 0.02 and abs(share['test'] - 0.1) < 0.02


def test_three_documents_fill_three_splits(tmp_path):
    assert all(len(texts) == 1 for texts in divided(tmp_path, ['one', 'two', 'three'], validation=0.01).values())


def test_tail_split_is_exact(tmp_path):
    texts = ['a' * 40, 'b' * 40, 'é' * 20]
    splits = divided(tmp_path, texts, split='tail', validation=0.25, test=0.1)
    assert ''.join(splits['train']) == 'a' * 40 + 'b' * 25
    assert splits['validation'] == ['b' * 15, 'é' * 10] and splits['test'] == ['é' * 10]
    assert divided(tmp_path, texts, split='tail', validation=0.0, test=0.0)['train'] == texts


def sizes_of(count, seed, script):
    """Documents of sizes that differ by a factor of up to 400, none with a line break."""
    draw = random.Random(seed)
    return [
        f'{number}' + ''.join(draw.choices(script, k=int(100 * math.exp(draw.uniform(0, 6)) ** draw.choice((0.5, 1)))))
        for number in range(count)
    ]


@pytest.mark.parametrize('shares', [(0.05, 0.05), (0.1, 0.2), (0.05, 0.0)])
@pytest.mark.parametrize('count', [1, 2, 3, 5, 10, 20, 100])
@pytest.mark.parametrize('script', ['abc ', 'aé漢🙂 '])
def test_auto_split_reaches_shares(tmp_path, script, count, shares):
    for seed in range(1 + (count < 30)):
        texts = sizes_of(count, seed, script)
        splits = divided(tmp_path, texts, split='auto', validation=shares[0], test=shares[1])
        raw = {name: sum(len(part.encode()) for part in parts) for name, parts in splits.items()}
        total = sum(len(text.encode()) for text in texts)
        assert sum(raw.values()) == total
        for name, share in zip(module.SPLITS, (1 - sum(shares), *shares)):
            assert abs(raw[name] / total - share) < 0.05, (name, raw[name] / total)
            assert bool(raw[name]) == bool(share)


def test_auto_split_uses_tails_for_few_documents(tmp_path):
    texts = sizes_of(4, 0, 'aé漢🙂 ')
    splits = divided(tmp_path, texts, split='auto')
    assert [''.join(parts) for parts in zip(*splits.values(), strict=True)] == texts
    assert all(len(splits['test'][n].encode()) == pytest.approx(len(texts[n].encode()) / 10, abs=4) for n in range(4))


def test_auto_split_counts_bytes(tmp_path):
    """The held-out documents are in Chinese: a tenth of the characters, a quarter of the bytes."""
    texts = [f'{number} ' + letter * 800 for number in range(400) for letter in 'a漢']
    texts = [text for text in texts if (module.hash_unit('split', text) < 0.2) == ('漢' in text)]
    splits = divided(tmp_path, texts, split='auto')
    total = sum(len(text.encode()) for text in texts)
    for name in ('validation', 'test'):
        assert abs(sum(len(part.encode()) for part in splits[name]) / total - 0.1) < 0.05


def test_auto_split_needs_several_documents(tmp_path):
    """Twenty chapters of equal size: one of them is exactly 5 %, but not representative of the others."""
    texts = [f'{number:2} ' + 'chapter ' * 5000 for number in range(20)]
    splits = divided(tmp_path, texts, split='auto', validation=0.05, test=0.05)
    assert [len(parts) for parts in splits.values()] == [20, 20, 20]


def test_auto_split_keeps_many_or_short_documents_whole(tmp_path):
    for texts in (sizes_of(300, 0, 'ab '), [f'line {number} is short' for number in range(40)]):
        splits = divided(tmp_path, texts, split='auto', validation=0.05)
        assert splits == divided(tmp_path, texts, split='document', validation=0.05)
        assert sorted(sum(splits.values(), [])) == sorted(texts)


def test_auto_split_with_one_long_document(tmp_path):
    texts = [f'{number} short' for number in range(500)] + ['long ' * 20_000]
    for at in range(0, 500, 100):  # for any hash of the long document
        splits = divided(tmp_path, [*texts[:-1], f'{at} {texts[-1]}'], split='auto')
        total = sum(len(part) for parts in splits.values() for part in parts)
        assert all(abs(sum(map(len, splits[name])) / total - 0.1) < 0.05 for name in ('validation', 'test'))


def test_auto_split_keeps_groups_whole(tmp_path):
    """Modules of 'python': a file and its docstrings are in the same split for all shares."""
    source = open_source('python', '', tmp_path, 'text', 'file')
    documents = [Document('first ' * 900, 'a'), Document('second ' * 900, 'a'), Document('third ' * 900, 'b')]
    source = source._replace(files=(), documents=lambda: iter(documents))
    rule = RULE | {'split': 'auto'}
    splits = dict(module.divide(source, module.read_content(source, [], rule, tmp_path), rule))
    assert set(splits.values()) <= {document.text for document in documents}


def test_tinyshakespeare_split_equals_nanogpt(shared, settings):
    path = shared / 'corpora' / 'tinyshakespeare' / 'input.txt'
    over = {
        'source': str(path),
        'split': 'tail',
        'validation': 0.1,
        'test': 0.0,
        'tokenizer': 'chars',
        'isolate': False,
    }
    corpus = lmtrain.data.prepare(**settings(**over))
    assert corpus.splits['train'].num_bytes == 1_003_854 and corpus.splits['validation'].num_bytes == 111_540
    assert corpus.tokenizer.vocab_size == 66  # its 65 characters and END


def test_sample_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'LEARN_SAMPLE', 3000)
    path = tmp_path / 'a.txt'
    path.write_text('\n'.join(f'line {number}' for number in range(2000)))
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'line')
    pairs = [(source, module.read_content(source, [], RULE, tmp_path / 'cache'))]
    sample = list(module.sample_train(pairs, RULE))
    assert sample == list(module.sample_train(pairs, RULE))
    assert 1500 < sum(map(len, sample)) < 4500
    assert set(sample) <= set(divided(tmp_path, [f'line {number}' for number in range(2000)])['train'])
