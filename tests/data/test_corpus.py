import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

import lmtrain.data
from experiments.parity import token_cases
from lmtrain.data import Stream, batch_hash
from lmtrain.data.baselines import bits_per_byte


def test_splits_count_every_token_and_byte_once(prepare, poem):
    corpus = prepare()
    documents = [f'{number}: {poem(number)}' for number in range(200)]
    splits = corpus.splits.values()
    assert sum(split.num_documents for split in splits) == 200
    assert sum(split.num_bytes for split in splits) == sum(len(text.encode()) for text in documents)
    assert sum(split.num_tokens for split in splits) == sum(len(text.encode()) + 1 for text in documents)
    for name, split in corpus.splits.items():
        stream = Stream(corpus, name, 8, seed=0, shuffle=False)
        batches = [stream.batch(step) for step in range(stream.steps_per_epoch)]
        assert sum(batch['loss_mask'].sum() for batch in batches) == split.num_tokens
        assert sum((batch['bytes'] * batch['loss_mask']).sum() for batch in batches) == split.num_bytes


def test_second_prepare_reads_the_cache(prepare, monkeypatch):
    first = prepare(tokenizer='bpe', vocab_size=300)
    monkeypatch.setattr('lmtrain.data.corpus.learn', None)
    monkeypatch.setattr('lmtrain.data.token_files.divide', None)
    monkeypatch.setattr('lmtrain.data.token_files.pack', None)
    again = prepare(tokenizer='bpe', vocab_size=300)
    assert again.fingerprint == first.fingerprint
    assert batch_hash(Stream(again, 'train', 4, 0, True).batch(3)) == batch_hash(
        Stream(first, 'train', 4, 0, True).batch(3)
    )


def test_prepare_in_another_cache_gives_the_same_batches(prepare, tmp_path):
    first = prepare(tokenizer='bpe', vocab_size=400)
    hashes = [batch_hash(Stream(first, 'train', 4, 0, True).batch(step)) for step in range(5)]
    shutil.rmtree(tmp_path / 'cache')
    again = prepare(tokenizer='bpe', vocab_size=400, cache=str(tmp_path / 'other'))
    assert again.fingerprint == first.fingerprint
    assert [batch_hash(Stream(again, 'train', 4, 0, True).batch(step)) for step in range(5)] == hashes


def test_golden_batches_of_this_version(prepare):
    """If this fails, the same text and settings give other batches: increase BATCH_VERSION in token_files.py."""
    plain, masked = prepare(), prepare(mask_rate=0.15)
    assert batch_hash(Stream(plain, 'train', 4, 0, True).batch(7)) == '7eea1cc6c5154aca'
    assert batch_hash(Stream(masked, 'train', 4, 0, True).batch(7)) == 'e86ae716e72d464d'
    assert batch_hash(Stream(prepare(isolate=False), 'train', 4, 0, True).batch(7)) == '30da150f63afb5c5'


def test_fingerprint_depends_on_every_setting_of_a_batch(prepare, tmp_path, poem):
    documents = [poem(number) + str(number) for number in range(100)]
    changed = [documents[0].upper(), *documents[1:]]
    variants = [
        prepare(documents),
        prepare(changed),
        prepare(documents[::-1]),
        prepare(documents[:-1]),
        *(
            prepare(documents, **over)
            for over in (
                {'seq_len': 16}, {'isolate': False}, {'mask_rate': 0.2}, {'mask_rate': 0.3}, {'tokenizer': 'chars'},
                {'validation': 0.2}, {'split': 'tail'}, {'tokenizer': 'bpe', 'vocab_size': 300},
                {'tokenizer': 'bpe', 'vocab_size': 310}, {'mask_rate': 0.2, 'whole_word': True},
            )
        ),
    ]  # fmt: skip
    assert len({corpus.fingerprint for corpus in variants}) == len(variants)
    same = [prepare(documents), prepare(documents, batch_size=8), prepare(documents, cache=str(tmp_path / 'c'))]
    assert {corpus.fingerprint for corpus in same} == {variants[0].fingerprint}


def test_damaged_cache_is_rebuilt(prepare, tmp_path, capsys):
    first = batch_hash(Stream(prepare(), 'train', 4, 0, True).batch(0))
    (tokens,) = tmp_path.glob('cache/tokens-*/train.tokens')
    tokens.write_bytes(tokens.read_bytes()[:-2] + b'\0\0')
    assert batch_hash(Stream(prepare(), 'train', 4, 0, True).batch(0)) == first
    assert 'is damaged' in capsys.readouterr().err


def test_large_vocabulary_uses_uint32(prepare, tmp_path):
    symbols = [' '.join(f's{100 * line + number}' for number in range(100)) for line in range(700)]
    corpus = prepare(symbols, tokenizer='whitespace')
    assert corpus.tokenizer.vocab_size == 70_001
    batch = Stream(corpus, 'train', 64, 0, True).batch(0)
    assert batch['tokens'].max() > 1 << 16
    assert json.loads(next(tmp_path.glob('cache/tokens-*/about.json')).read_text())['dtype'] == 'uint32'


BAD = [
    ({'split': 'tails'}, "data.split is 'tails'; it must be 'auto', 'document' or 'tail'"),
    ({'validation': 1.0}, 'data.validation is 1.0; it must be a share'),
    ({'validation': float('nan')}, 'data.validation is nan'),
    ({'test': -0.1}, 'data.test is -0.1'),
    ({'validation': 0.5, 'test': 0.5}, 'data.test is 0.5; it must be below 1 together'),
    ({'seq_len': 0}, 'data.seq_len is 0'),
    ({'seq_len': 1}, 'data.seq_len is 1; it must be at least 2'),
    ({'seq_len': 2.5}, 'data.seq_len is 2.5'),
    ({'seq_len': True}, 'data.seq_len is True'),
    ({'batch_size': -1}, 'data.batch_size is -1'),
    ({'vocab_size': 0}, 'data.vocab_size is 0'),
    ({'mask_rate': 1.5}, 'data.mask_rate is 1.5'),
    ({'whole_word': True}, 'data.whole_word is True; it must be False if data.mask_rate is 0'),
    ({'isolate': 1}, 'data.isolate is 1; it must be True or False'),
    ({'mix': (('a.txt', 0.0),)}, 'data.mix is'),
    ({'mix': ('a.txt',)}, 'data.mix is'),
    ({'mix': (('text.jsonl', 0.5),)}, "text.jsonl is in two sources, 'text.jsonl' and 'text.jsonl'"),
    ({'tokenizer': 'bpe', 'vocab_size': 100}, "'bpe' has 256 bytes and learns pairs"),
    ({'vocab_limit': 256}, "the tokenizer 'bytes' has 257 entries and model.vocab_size is 256: set model.vocab_size"),
    ({'seq_len': 1 << 20}, 'less than one row of data.seq_len=1048576'),
]


@pytest.mark.parametrize('over, message', BAD, ids=[message for _, message in BAD])
def test_invalid_settings_are_named(over, message, prepare):
    with pytest.raises(ValueError, match=message):
        prepare(**over)


def test_text_that_is_too_short_can_be_read_in_the_rows_that_the_error_proposes(prepare):
    notes = ['Call the printer. ' * 2, 'The keeper needs a name.', 'The second chapter is too long.']
    with pytest.raises(ValueError, match=r'--config.data.seq_len=\d+$') as error:
        prepare(notes, seq_len=1024)
    corpus = prepare(notes, seq_len=int(str(error.value).rpartition('=')[2]))
    assert corpus.splits['train'].num_rows >= 2


def test_single_document_cannot_be_divided_by_document(prepare):
    with pytest.raises(ValueError, match="the (train|validation|test) split is empty, of 1 document. .*split='auto'"):
        prepare(['one ' * 100], split='document')
    assert prepare(['one ' * 100], split='tail').splits['validation'].num_bytes == 40


def test_split_with_share_zero_is_empty(prepare):
    corpus = prepare(validation=0.0, test=0.0)
    assert corpus.splits['validation'].num_rows == 0 and corpus.baselines() == {}
    with pytest.raises(ValueError, match='the validation split is empty: give data.validation a share'):
        Stream(corpus, 'validation', 4, 0, False)


def test_mixture_follows_weights(prepare, tmp_path, poem):
    (tmp_path / 'more.jsonl').write_text(
        ''.join(json.dumps({'text': f'ZZZ {n} ' + poem(n)}) + '\n' for n in range(100))
    )
    alone = prepare()
    corpus = prepare(mix=(('more.jsonl', 0.5),))
    assert prepare(mix=(('more.jsonl', 0.6),)).fingerprint != corpus.fingerprint != alone.fingerprint
    assert corpus.splits['train'].num_documents > alone.splits['train'].num_documents
    rows = [len(part.rows.first) - 1 for part in corpus.splits['train'].parts]
    stream = Stream(corpus, 'train', 8, 0, True)
    assert stream.steps_per_epoch == -(-(rows[0] + round(rows[0] / 2)) // 8)
    validation = Stream(corpus, 'validation', 8, 0, False)
    real = sum(validation.batch(step)['loss_mask'].sum() for step in range(validation.steps_per_epoch))
    assert real == corpus.splits['validation'].num_tokens
    parts = [corpus.single_source(index).splits['validation'] for index in (0, 1)]
    own = [
        bits_per_byte([p.tokens for p in corpus.splits['train'].parts], [part.parts[0].tokens], text, 257)
        for part, text in zip(parts, [(d / 'validation.txt').read_bytes() for d in corpus._directories])
    ]
    sizes = [weight * part.num_bytes / part.num_rows for weight, part in zip((1.0, 0.5), parts)]  # bytes per row
    expected = {name: np.average([values[name] for values in own], weights=sizes) for name in own[0]}
    assert corpus.baselines() == pytest.approx(expected) and set(expected) == {'unigram', 'bigram', 'xz'}
    assert own[0]['unigram'] != pytest.approx(own[1]['unigram'], rel=1e-3)


def test_source_without_rows_in_a_split_has_share_zero(prepare, tmp_path, poem):
    """Same as a TFDS source without a validation split."""
    (tmp_path / 'more.jsonl').write_text(''.join(json.dumps({'text': poem(n)}) + '\n' for n in range(20)))
    corpus = prepare(mix=(('more.jsonl', 0.25),), test=0.0)
    assert corpus.shares('train') == corpus.shares('validation') == [0.8, 0.2] and corpus.shares('test') == [0, 0]
    validation, empty = corpus.splits['validation'], corpus.splits['test'].parts[1]
    splits = corpus.splits | {'validation': dataclasses.replace(validation, parts=(validation.parts[0], empty))}
    assert dataclasses.replace(corpus, splits=splits).shares('validation') == [1, 0]


@pytest.mark.parametrize('tokenizer', ['bytes', 'chars', 'bpe'])
def test_num_bytes_counts_utf8_bytes(prepare, tokenizer):
    documents = [f'{number} é漢🙂 ' * (1 + number % 5) for number in range(100)]
    corpus = prepare(documents, tokenizer=tokenizer, vocab_size=300)
    assert sum(split.num_bytes for split in corpus.splits.values()) == sum(len(text.encode()) for text in documents)
    for name, split in corpus.splits.items():
        whole = Stream(corpus, name, split.num_rows, 0, False).batch(0)
        targets = whole['targets'][whole['loss_mask'] == 1]
        assert corpus.tokenizer.token_bytes[targets].sum() == split.num_bytes


def test_mixture_source_without_training_text_is_rejected(prepare, tmp_path):
    (tmp_path / 'more.txt').write_text('one text')
    with pytest.raises(ValueError, match='more.txt: the train split is empty, of 1 document'):
        prepare(mix=(('more.txt', 0.5),), split='document')


def test_facts_list_sources_and_skipped_files(tmp_path, settings):
    (tmp_path / 'notes').mkdir()
    texts = [f'{number} ' + 'word ' * 300 * (number + 1) for number in range(3)]
    for number, text in enumerate(texts):
        (tmp_path / 'notes' / f'{number}.txt').write_text(text)
    for name, content in {'blank.txt': ' \n', 'none.txt': '', 'a.png': 'x', 'b.png': 'x', 'README.md': 'x'}.items():
        (tmp_path / 'notes' / name).write_text(content)
    facts = lmtrain.data.prepare(**settings(source='notes')).facts()
    skipped = {'.md': 1, '.png': 2, 'empty': 1, 'blank': 1}
    total = sum(map(len, texts))
    source = {'name': 'notes', 'weight': 1.0, 'files': 4, 'divided': 'tails', 'bytes': total, 'documents': 3}
    assert facts['sources'] == [source | {'skipped': skipped}]
    splits = facts['splits']
    assert {name: split['documents'] for name, split in splits.items()} == dict.fromkeys(splits, 3)
    assert sum(split['bytes'] for split in splits.values()) == total
    assert splits['train']['tokens'] == splits['train']['bytes'] + 3  # bytes, and one END each
    assert splits['train']['bytes'] / total == pytest.approx(0.9, abs=0.001)


def test_chess_moves_are_whitespace_symbols(shared, settings):
    over = {'source': str(shared / 'chess' / '*.pgn'), 'tokenizer': 'whitespace', 'seq_len': 256}
    corpus = lmtrain.data.prepare(**settings(**over))
    assert sum(split.num_documents for split in corpus.splits.values()) == 984
    for name, split in corpus.splits.items():
        whole = Stream(corpus, name, split.num_rows, 0, False).batch(0)
        assert (whole['bytes'] * whole['loss_mask']).sum() == split.num_bytes
    batch = Stream(corpus, 'train', 2, 0, True).batch(0)
    game = corpus.tokenizer.decode(batch['tokens'][0][batch['segment_ids'][0] == 1][1:].tolist())
    assert not {'1.', '[Event', ''} & set(game.split(' '))
    assert {'e4', 'O-O', '1-0', '0-1'} <= set(corpus.tokenizer.symbols)


def test_data_imports_no_heavy_module(prepare):
    import subprocess

    process = subprocess.run(
        [sys.executable, '-c', 'import sys, lmtrain.data; print(*sys.modules)'],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'tokenizers', 'pyarrow', 'torch', 'grain', 'sentencepiece'}
    assert not heavy & set(process.stdout.split())


@pytest.mark.parametrize('isolate', [True, False])
def test_documents_use_begin_and_end_of_the_pretrained_tokenizer(prepare, bpe, tmp_path, isolate):
    bpe(tmp_path / 'model', tokenizer_config={'bos_token': '<s>', 'eos_token': '</s>'})
    corpus = prepare(tokenizer='model', isolate=isolate, seq_len=512)
    split, tokenizer = corpus.splits['train'], corpus.tokenizer
    (part,) = split.parts
    ids = part.tokens.tolist()
    assert ids[0] == 270 and ids[-1] == 271 and ids.count(270) == ids.count(271) == split.num_documents
    stream = Stream(corpus, 'train', 4, 0, False)
    batches = [stream.batch(step) for step in range(stream.steps_per_epoch)]
    targets = np.concatenate([batch['targets'][batch['loss_mask'] > 0] for batch in batches])
    assert (targets == 271).sum() == split.num_documents
    assert (targets == 270).sum() == (0 if isolate else split.num_documents - 1)
    assert sum((batch['bytes'] * batch['loss_mask']).sum() for batch in batches) == split.num_bytes
    assert len(targets) == split.num_tokens
    if isolate:
        first = np.concatenate([b['tokens'][(b['positions'] == 0) & (b['segment_ids'] > 0)] for b in batches])
        assert set(first.tolist()) == {270}
    assert tokenizer.encode_prompt('the')[0] == 270 and set(corpus.baselines()) == {'unigram', 'bigram', 'xz'}


def test_masked_rows_contain_document_end(prepare, bpe, tmp_path):
    bpe(tmp_path / 'model', tokenizer_config={'cls_token': '<s>', 'sep_token': '</s>'})
    corpus = prepare(['the cat sat', 'on the mat', 'the mat sat'] * 9, tokenizer='model', mask_rate=0.2, seq_len=32)
    stream = Stream(corpus, 'train', 4, 0, False)
    read = []
    for step in range(stream.steps_per_epoch):
        batch = stream.batch(step)
        for row in range(4):
            for segment in range(1, batch['segment_ids'][row].max() + 1):
                read.append(batch['tokens'][row][batch['segment_ids'][row] == segment].tolist())
    assert len(read) == corpus.splits['train'].num_documents
    assert all(tokens[0] == 270 and tokens[-1] == 271 for tokens in read)
    assert sum(map(len, read)) == corpus.splits['train'].num_tokens


# Every kind of tokenizer, with texts that its pieces do not spell exactly: (files of the tokenizer or its name, a text,
# the bytes of each token and of END).
CODE = 'if x:\n\n    y = "é"  # naïve\n'
ODD = [
    ('bytes', 'é\n', [1, 1, 1, 0]),
    ('chars', 'é\n', [2, 1, 0]),
    ('whitespace', CODE, [2, 3, 7, 2, 5, 3, 7, 1]),  # spaces count with the next word, the last line break with END
    ('bpe', 'é\n', [2, 1, 0]),
    ('bert', '  The CAT\n日本 é.', [5, 4, 4, 3, 3, 1, 0]),  # lower case, no accents, unknown 日 and 本
    ('unigram', 'the  日本cat', [3, 1, 1, 6, 3, 0]),  # one token for both unknown characters
    ('gemma', 'the  🦙\n', [3, 2, 1, 1, 1, 1, 1, 0]),  # a character in four tokens
    ('llama', 'the a<tool>é', [3, 2, 6, 2, 0, 0, 0]),  # a space that is not in the text is added after a token
    ('gpt2 with domain words', 'a  <a>É  the', [1, 5, 2, 1, 4, 0]),  # '<a>' strips the spaces before it
]


@pytest.mark.parametrize(('kind', 'text', 'sizes'), ODD, ids=[kind for kind, *_ in ODD])
def test_byte_column_sums_to_text_bytes_for_every_tokenizer(prepare, tmp_path, kind, text, sizes):
    if kind in token_cases.CASES:
        token_cases.write(kind, tmp_path / 'tokenizer')
    named = 'tokenizer' if kind in token_cases.CASES else kind
    documents = [f'{number} {text * (1 + number % 4)}' for number in range(40)]
    for isolate in (True, False):
        corpus = prepare([text, *documents], tokenizer=named, vocab_size=300, seq_len=8, isolate=isolate)
        whole = 0
        for name, split in corpus.splits.items():
            stream = Stream(corpus, name, 4, seed=0, shuffle=False)
            batches = [stream.batch(step) for step in range(stream.steps_per_epoch)]
            assert sum((batch['bytes'] * batch['loss_mask']).sum() for batch in batches) == split.num_bytes
            whole += split.num_bytes
        assert whole == sum(len(each.encode()) for each in [text, *documents])
        assert 'bytes' not in Stream(corpus, 'train', 4, seed=0, shuffle=True).batch(0)
    ((ids, token_sizes),) = corpus.tokenizer.encode_with_bytes([text])
    assert token_sizes.tolist() == sizes and len(ids) + 1 == len(sizes)


def test_byte_column_of_masked_tokens(prepare, tmp_path):
    token_cases.write('bert', tmp_path / 'tokenizer')
    corpus = prepare(['The  Cat é.'] * 8, tokenizer='tokenizer', mask_rate=0.99, seq_len=16, validation=0, test=0)
    batch = Stream(corpus, 'train', corpus.splits['train'].num_rows, seed=0, shuffle=False).batch(0)
    counted = batch['loss_mask'] > 0
    names = {token: name for name, token in corpus.tokenizer.tokenizer.get_vocab().items()}
    spelled = {(names[token], size) for token, size in zip(batch['targets'][counted], batch['bytes'][counted])}
    assert spelled == {('the', 3), ('cat', 5), ('e', 3), ('.', 1)}


def larger(tmp_path, **added):
    """Writes the 'qwen' tokenizer with further added tokens; returns the rows of its model's embedding."""
    token_cases.write('qwen', tmp_path / 'tokenizer')
    spec = token_cases.CASES['qwen']
    rows = max(token['id'] for token in spec['added_tokens']) + 1
    spec = spec | {'added_tokens': spec['added_tokens'] + token_cases.added(rows, **added)}
    (tmp_path / 'tokenizer' / 'tokenizer.json').write_text(json.dumps(spec), encoding='utf-8')
    return rows


def test_token_beyond_embedding_is_rejected_if_the_text_needs_it(prepare, tmp_path):
    rows = larger(tmp_path, **{'[PAD]': {'special': True}, '<image>': {}})
    options = {'tokenizer': 'tokenizer', 'vocab_limit': rows, 'validation': 0, 'test': 0, 'seq_len': 8}
    corpus = prepare(['the cat [PAD]'] * 4, **options)
    assert corpus.tokenizer.vocab_size == rows + 2
    assert Stream(corpus, 'train', 2, 0, True).batch(0)['tokens'].max() < rows
    with pytest.raises(ValueError, match=f"at least {rows + 2}, since text.jsonl has '<image>', id {rows + 1}"):
        prepare(['the cat', 'a <image>'], **options)
    (tmp_path / 'text.jsonl').unlink()
    with pytest.raises(ValueError, match=f"at least {rows + 1}, since every document needs '\\[PAD\\]', id {rows}"):
        config = token_cases.config('qwen') | {'eos_token': '[PAD]'}
        (tmp_path / 'tokenizer' / 'tokenizer_config.json').write_text(json.dumps(config), encoding='utf-8')
        prepare(['the cat'], **options)


def test_random_replacements_are_within_the_embedding(prepare, tmp_path):
    rows = larger(tmp_path, **{'<mask>': {'special': True}} | {f'<{number}>': {} for number in range(400)})
    options = {'tokenizer': 'tokenizer', 'vocab_limit': rows + 1, 'validation': 0, 'test': 0, 'mask_rate': 0.9}
    corpus = prepare(['the cat ' * 200], **options)
    stream = Stream(corpus, 'train', 2, 0, True)
    assert max(stream.batch(step)['tokens'].max() for step in range(4)) == rows  # <mask>
