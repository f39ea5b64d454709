import os
import time

import pytest

import lmtrain.data
from lmtrain.data import contents
from lmtrain.data.source import open_source

RULE = {'split': 'document', 'validation': 0.1, 'test': 0.1}


def aged(path, seconds=60):
    """As if the file had been written a while ago: its times are real, the clock that reads them is ahead."""
    return os.stat(path).st_ctime + seconds


def test_settled_files_are_not_read_again_and_changed_ones_are(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    path.write_text('one')
    now = [aged(path)]
    monkeypatch.setattr(contents.time, 'time', lambda: now[0])
    reads = []

    def content():
        source = open_source(str(path), '', tmp_path / 'cache', 'text', 'file')

        def documents():
            reads.append(1)
            return source.documents()

        return contents.content_of(source._replace(documents=documents), [], RULE, tmp_path / 'cache')

    first = content()
    assert content() == first and len(reads) == 1
    times = os.stat(path)
    while os.stat(path).st_ctime_ns == times.st_ctime_ns:  # the clock of a file system ticks every few milliseconds
        path.write_text('two')
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same modification time
    assert content()['sha256'] != first['sha256'] and len(reads) == 2


def test_files_written_just_now_are_read_every_time(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('one')
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'file')
    contents.content_of(source, [], RULE, tmp_path / 'cache')
    assert time.time() - os.stat(path).st_ctime > contents.SETTLED or not (tmp_path / 'cache').exists()


@pytest.mark.parametrize('text', ['\n' * 10, ' \t\r\n', '\ufeff\n'])
def test_text_of_nothing_but_blanks_is_refused(text, tmp_path, settings):
    (tmp_path / 'a.txt').write_text(text)
    for document in ('file', 'line', 'paragraph'):
        with pytest.raises(ValueError, match=r'a\.txt: nothing but blanks'):
            lmtrain.data.prepare(**settings(source='a.txt', document=document))


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
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
        contents.content_of(source._replace(documents=growing), [], RULE, tmp_path / 'cache')


def divided(tmp_path, texts, **rule):
    rule = RULE | rule
    path = tmp_path / 'a.txt'
    path.write_text('\n'.join(texts))
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'line')
    content = contents.content_of(source, [], rule, tmp_path / 'cache')
    splits = {name: [] for name in contents.SPLITS}
    for name, text in contents.divide(source, content, rule):
        splits[name].append(text)
    return splits


def test_documents_are_divided_by_what_they_say(tmp_path):
    texts = [f'line {number}' for number in range(2000)]
    splits = divided(tmp_path, texts)
    assert sorted(sum(splits.values(), [])) == sorted(texts)
    total = sum(map(len, texts))
    for name in ('validation', 'test'):
        assert abs(sum(map(len, splits[name])) / total - 0.1) < 0.001
    backwards = divided(tmp_path, texts[::-1] + texts)  # order and duplicates move nothing across
    assert {name: set(texts) for name, texts in backwards.items()} == {
        name: set(texts) for name, texts in splits.items()
    }


def test_shares_are_of_the_text_whatever_the_sizes_of_documents(tmp_path):
    texts = [f'{number} ' + 'x' * int(4000 / (1 + number % 97)) for number in range(300)]
    splits = divided(tmp_path, texts, validation=0.05)
    share = {name: sum(map(len, splits[name])) / sum(map(len, texts)) for name in splits}
    assert abs(share['validation'] - 0.05) < 0.02 and abs(share['test'] - 0.1) < 0.02


def test_each_of_three_documents_has_its_split(tmp_path):
    assert all(len(texts) == 1 for texts in divided(tmp_path, ['one', 'two', 'three'], validation=0.01).values())


def test_the_tail_is_cut_off_to_the_character(tmp_path):
    texts = ['a' * 40, 'b' * 40, 'é' * 20]
    splits = divided(tmp_path, texts, split='tail', validation=0.25, test=0.1)
    assert ''.join(splits['train']) == 'a' * 40 + 'b' * 25
    assert splits['validation'] == ['b' * 15, 'é' * 10] and splits['test'] == ['é' * 10]
    assert divided(tmp_path, texts, split='tail', validation=0.0, test=0.0)['train'] == texts


def test_tinyshakespeare_is_divided_as_nanogpt_divides_it(shared, settings):
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


def test_a_large_corpus_is_sampled_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, 'LEARNED_FROM', 3000)
    path = tmp_path / 'a.txt'
    path.write_text('\n'.join(f'line {number}' for number in range(2000)))
    source = open_source(str(path), '', tmp_path / 'cache', 'text', 'line')
    pairs = [(source, contents.content_of(source, [], RULE, tmp_path / 'cache'))]
    sample = list(contents.sample(pairs, RULE))
    assert sample == list(contents.sample(pairs, RULE))
    assert 1500 < sum(map(len, sample)) < 4500
    assert set(sample) <= set(divided(tmp_path, [f'line {number}' for number in range(2000)])['train'])
