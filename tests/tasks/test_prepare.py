import collections
import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest

from lmtrain.data import PaddedStream, batch_hash
from lmtrain.data.chat.load import with_template
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.example_store import batch_lengths
from lmtrain.errors import InputError
from lmtrain.tasks import TASKS
from lmtrain.tasks.prepare import prepare_task

WORDS = 'the cat sat on a mat and looked at the moon over seven hills while it sang of tea'.split()
ROWS = [{'text': ' '.join(WORDS[: 1 + number % 17]), 'label': 'odd' if number % 2 else 'even'} for number in range(60)]
ROWS = [row | {'text': f'{number} {row["text"]}', 'answer': WORDS[number % 5]} for number, row in enumerate(ROWS)]

TALK = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]


@pytest.fixture
def prepare(tmp_path):
    """A function from what differs to the TaskData of ROWS, or of `rows`."""
    calls = []

    def make(rows=ROWS, **over):
        calls.append(None)
        name = f'{len(calls)}.jsonl'
        (tmp_path / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
        data = {'root': str(tmp_path), 'cache': str(tmp_path / 'cache'), 'tokenizer': 'bytes', 'vocab_size': 0}
        data |= {'seq_len': 128, 'validation': 0.2, 'test': 0.1}
        task = {'name': 'classify', 'train': (name,), 'validation': (), 'test': (), 'text': ('text',), 'label': 'label'}
        task |= {'labels': (), 'shots': 0, 'buckets': 3, 'lengths': (), 'pack': False, 'too_long': 'error'}
        task |= {'group': 4, 'template': 'auto', 'date': ''}
        data |= {key: over.pop(key) for key in [*over] if key in ('root', 'tokenizer', 'seq_len', 'cache')}
        data |= over.pop('data', {})
        return prepare_task(data, **(task | over))

    return make


def texts(task, split, batch, stream, step):
    """[(text, label)] of the rows of a batch that are not empty."""
    result = []
    for row, example in enumerate(stream.examples(step)):
        if example >= 0:
            size = int((batch['segment_ids'][row] > 0).sum())
            result.append((task.tokenizer.decode(batch['tokens'][row, :size]), int(batch['labels'][row])))
    return result


# --- streams


def passes(task, stream, epochs):
    """(Counter of (text, label), batches) of each epoch."""
    for epoch in range(epochs):
        steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
        batches = [(step, stream.batch(step)) for step in steps]
        pairs = [pair for step, batch in batches for pair in texts(task, stream.split, batch, stream, step)]
        yield collections.Counter(pairs), [batch for _, batch in batches]


def rows_of(task):
    end = '<|endoftext|>'
    return {(f'{end}{row.fields["text"]}{end}', task.labels.index(row.fields['label'])) for row in task.rows['train']}


def empty_rows(batches):
    return sum(int((batch['segment_ids'].sum(1) == 0).sum()) for batch in batches)


def test_pass_has_every_row_once_with_its_label(prepare):
    task = prepare()
    expected = rows_of(task)
    ((seen, batches),) = passes(task, PaddedStream(task, 'train', 8, 3, shuffle=False), 1)
    assert seen == dict.fromkeys(expected, 1)
    assert all(batch['tokens'].shape[1] in task.lengths for batch in batches)
    assert len({batch['tokens'].shape for batch in batches}) > 1
    assert empty_rows(batches) == 8 * len(batches) - len(expected) > 0
    assert sum(batch['label_weights'].sum() for batch in batches) == len(expected)


def test_last_batch_is_completed_with_other_rows_in_each_epoch(prepare):
    task = prepare()
    expected, stream = rows_of(task), PaddedStream(task, 'train', 8, 3, shuffle=True)
    assert stream.repeated == 8 * stream.steps_per_epoch - len(expected) > 0
    repeated = []
    for seen, batches in passes(task, stream, 3):
        assert set(seen) == expected and set(seen.values()) == {1, 2}
        assert empty_rows(batches) == 0
        assert all(batch['label_weights'].sum() == 8 for batch in batches)
        repeated.append(frozenset(pair for pair, times in seen.items() if times == 2))
        assert len(repeated[-1]) == stream.repeated
    assert len(set(repeated)) == 3


def test_fewer_rows_than_a_batch_are_in_every_step_once(prepare):
    task = prepare()
    count = len(rows_of(task))
    stream = PaddedStream(task, 'train', count + 3, 3, shuffle=True)
    assert (stream.steps_per_epoch, stream.repeated) == (1, 0)
    for seen, batches in passes(task, stream, 2):
        assert seen == dict.fromkeys(rows_of(task), 1) and empty_rows(batches) == 3
    assert PaddedStream(task, 'train', count, 3, shuffle=True).repeated == 0


def test_limit_takes_the_same_random_sample_for_every_seed(prepare):
    task = prepare()
    whole = PaddedStream(task, 'train', 8, 0, False)
    sample, other = (PaddedStream(task, 'train', 8, seed, False, limit=4) for seed in (1, 2))
    assert sample.steps_per_epoch == 4 < whole.steps_per_epoch
    assert [batch_hash(sample.batch(n)) for n in range(4)] == [batch_hash(other.batch(n)) for n in range(4)]
    batches = [sample.examples(step) for step in range(4)]
    assert all((np.diff(batch[batch >= 0]) < 0).any() for batch in batches)  # not neighbours in the file
    rows = np.concatenate(batches)
    rows = rows[rows >= 0]
    assert sample.num_rows == len(rows) == len(set(rows.tolist())) and rows.tolist() != sorted(rows.tolist())
    assert rows.max() > len(task.rows['train']) // 2  # not the first rows of the file
    assert len({sample.batch(step)['tokens'].shape for step in range(4)}) > 1  # nor the shortest
    assert whole.num_rows == len(task.rows['train'])
    with pytest.raises(IndexError, match='step 4 of 4'):
        sample.batch(4)


def test_each_epoch_has_another_order(prepare):
    task = prepare()
    stream = PaddedStream(task, 'train', 8, 3, True)
    rows, sizes = [], []
    for epoch in range(3):
        steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
        batches = [(stream.batch(step)['tokens'].shape[1], stream.examples(step)) for step in steps]
        sizes.append([size for size, _ in batches])
        rows.append({frozenset(examples.tolist()) for _, examples in batches})
    assert sorted(sizes[0]) == sorted(sizes[1]) == sorted(sizes[2])
    assert sizes[0] != sizes[1] != sizes[2] != sizes[0]  # lengths come in another order
    assert not rows[0] & rows[1] and not rows[1] & rows[2]  # and rows in other company


def test_batch_is_a_function_of_the_step(prepare):
    task = prepare()
    one, other = (PaddedStream(task, 'train', 8, 3, True) for _ in range(2))
    later = batch_hash(other.batch(29))
    assert batch_hash([one.batch(step) for step in range(30)][29]) == later
    assert batch_hash(PaddedStream(task, 'train', 8, 4, True).batch(29)) != later
    order = [batch_hash(one.batch(step)) for step in range(one.steps_per_epoch)]
    assert order != [batch_hash(one.batch(step)) for step in range(one.steps_per_epoch, 2 * one.steps_per_epoch)]


def test_lengths_of_steps_do_not_depend_on_the_seed(prepare):
    task = prepare()
    shapes = [
        [PaddedStream(task, 'train', 8, seed, True).batch(step)['tokens'].shape for step in range(20)]
        for seed in (1, 2)
    ]
    assert shapes[0] == shapes[1]
    stream = PaddedStream(task, 'train', 8, 1, True)
    for length, step in stream.steps_of_lengths().items():
        assert stream.batch(step)['tokens'].shape == (8, length)
    assert {shape[1] for shape in shapes[0]} == stream.steps_of_lengths().keys()


@pytest.mark.parametrize('shuffle', [True, False])
def test_processes_share_a_batch(prepare, shuffle):
    task = prepare()
    whole = PaddedStream(task, 'train', 8, 0, shuffle)
    parts = [PaddedStream(task, 'train', 8, 0, shuffle, rows) for rows in np.arange(8).reshape(4, 2)]
    for step in range(whole.steps_per_epoch):
        for name, values in whole.batch(step).items():
            np.testing.assert_array_equal(np.concatenate([part.batch(step)[name] for part in parts]), values)


def test_stream_rejects_wrong_rows_steps_and_empty_splits(prepare, tmp_path):
    task = prepare(data={'test': 0.0})
    with pytest.raises(ValueError, match='the test split is empty: name its rows in config.task.test'):
        PaddedStream(task, 'test', 8, 0, False)
    with pytest.raises(ValueError, match='are not ascending rows of it'):
        PaddedStream(task, 'train', 8, 0, False, [3, 8])
    (tmp_path / 'long.jsonl').write_text(json.dumps({'text': 'a' * 200, 'label': 'odd'}))
    task = prepare(validation=('long.jsonl',), too_long='drop')
    with pytest.raises(ValueError, match='no validation row is left of 1: 1 row of more than 128 tokens left out'):
        PaddedStream(task, 'validation', 8, 0, False)
    with pytest.raises(IndexError, match='step 99 of'):
        PaddedStream(task, 'train', 8, 0, False).batch(99)


def test_batch_lengths_have_the_least_padding():
    sizes = np.array([3, 5, 8, 9, 30, 31, 64])
    assert batch_lengths(sizes, 1, 100) == (100,)
    assert batch_lengths(sizes, 9, 100) == (8, 16, 32, 64)
    assert batch_lengths(sizes, 2, 100) == (16, 64) or batch_lengths(sizes, 2, 100) == (32, 64)
    assert batch_lengths(np.array([3, 90]), 2, 50) == (8, 50)

    def waste(result):
        return sum(min(length for length in result if length >= size) for size in sizes)

    pairs = [(first, 64) for first in (8, 16, 32)]
    assert waste(batch_lengths(sizes, 2, 100)) == min(map(waste, pairs))


# --- rows


def test_classes_are_those_of_the_training_rows_and_others_are_rejected(prepare, tmp_path):
    assert prepare().labels == ('even', 'odd')
    assert prepare(labels=('odd', 'even', 'none')).labels == ('odd', 'even', 'none')
    assert prepare(labels=('odd', 'even', 3, True)).labels == ('odd', 'even', '3', 'true')
    (tmp_path / 'more.jsonl').write_text('{"text": "a", "label": "even"}\n{"text": "a", "label": "evn"}\n')
    with pytest.raises(ValueError, match=r"more.jsonl:2: the label 'evn' is none of the 2 classes: 'even', 'odd'"):
        prepare(validation=('more.jsonl',))
    with pytest.raises(ValueError, match="only one class, 'even'"):
        prepare([row for row in ROWS if row['label'] == 'even'])
    with pytest.raises(ValueError, match=r"1?\d.jsonl:1: no field 'lable'; .* Set config.task.label to one of them"):
        prepare(label='lable')


def test_rows_of_a_share_belong_to_the_classes(prepare, tmp_path):
    rare = [{'text': f'only {number}', 'label': f'rare{number}'} for number in range(40)]
    task = prepare([*ROWS, *rare])
    moved = {row.fields['label'] for split in ('validation', 'test') for row in task.rows[split]}
    assert len(moved) > 2 and set(task.labels) == {'even', 'odd', *(row['label'] for row in rare)}
    (tmp_path / 'a.conll').write_text(
        '\n\n'.join(f'word{number} B-{number % 4}' for number in range(12)) + '\n\nx B-9\n'
    )
    fields = {'name': 'tag', 'train': ('a.conll',), 'text': ('tokens',), 'label': 'tags'}
    tags = prepare(**fields, data={'validation': 0.5, 'test': 0.3})
    assert len(tags.rows['train']) < 5 and tags.labels == ('B-0', 'B-1', 'B-2', 'B-3', 'B-9')


def test_only_class_of_the_training_rows_is_not_the_only_one_of_the_file(prepare):
    data = {'validation': 0.9, 'test': 0.0}
    task = prepare([{'text': f'{number}', 'label': f'{number}'} for number in range(10)], data=data)
    assert len(task.rows['train']) == 1 and len(task.labels) == 10


def test_id_or_spelling_in_a_share_adds_no_class(prepare):
    """'1' is the id of the second class, 'true' the class 'True'; both are only outside of the training rows."""
    for names, label in ((('even', 'odd'), '1'), (('False', 'True', 'none'), 'true')):
        rows = [row | {'label': names[number % len(names)]} for number, row in enumerate(ROWS)]
        tasks = (prepare([*rows, {'text': f'{number}', 'label': label}]) for number in range(40))
        task = next(each for each in tasks if label not in {row.fields['label'] for row in each.rows['train']})
        assert task.labels == names


def test_validation_texts_that_are_training_texts_are_counted(prepare):
    """A column of numbers separates the copies of a text."""
    rows = [row | {'id': copy} for row in ROWS for copy in range(2)]
    task = prepare(rows)
    own = {split: [row.fields['text'] for row in task.rows[split]] for split in ('train', 'validation', 'test')}
    counts = {split: sum(text in own['train'] for text in own[split]) for split in ('validation', 'test')}
    assert all(counts.values()) and task.notes[:2] == tuple(
        f'{split}: {count} of {len(own[split])} texts are also training texts' for split, count in counts.items()
    )
    assert not [note for note in prepare().notes if 'training texts' in note]


def test_notes_count_classes_and_skipped_lines(prepare, tmp_path):
    first = prepare(data={'validation': 0.0, 'test': 0.0})
    assert first.notes == prepare(data={'validation': 0.0, 'test': 0.0}).notes == ('classes: even 30, odd 30',)
    assert prepare(shots=7).notes == ('classes: even 7, odd 7',)
    (tmp_path / 'a.conll').write_text('# id 1\na O\nb B\n\nb B\n')
    data = {'validation': 0.0, 'test': 0.0}
    tags = prepare(name='tag', train=('a.conll',), text=('tokens',), label='tags', data=data)
    assert tags.notes == (
        f'{tmp_path / "a.conll"}: 1 comment lines (# ...) skipped',
        'classes: B 2, O 1',
        'classes with at most 1 training word, which can hardly be learned: O',
    )


def test_rows_without_text_are_left_out_and_counted(prepare, tmp_path):
    blank = [{'text': text, 'label': 'even'} for text in ('', ' \n', None)]
    data = {'validation': 0.0, 'test': 0.0}
    task = prepare([*ROWS, *blank[:2]], data=data)
    assert len(rows_of(task)) == len(ROWS)
    assert task.notes[0].startswith('train: 2 rows left out, without text: ') and task.notes[0].endswith(
        '.jsonl:61, ...'
    )
    (tmp_path / 'blank.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in blank))
    with pytest.raises(ValueError, match=r"blank.jsonl:1: no text in 'text', as in all validation rows"):
        prepare(validation=('blank.jsonl',))
    pairs = [row | {'other': row['answer']} for row in (blank[0] | {'answer': 'a'}, *ROWS)]
    assert len(prepare(pairs, text=('text', 'other'), data=data).rows['train']) == len(pairs)
    with pytest.raises(ValueError, match="no field 'other'"):
        prepare(text=('text', 'other'))


@pytest.mark.parametrize(
    ('row', 'empty', 'words', 'what'),
    [
        ({'tokens': ['a'], 'tags': ['B']}, {'tokens': [], 'tags': []}, ('tag', ('tokens',), 'tags'), 'word'),
        ({'tokens': ['a'], 'tags': ['B']}, {'tokens': None, 'tags': None}, ('tag', ('tokens',), 'tags'), 'word'),
        ({'conversations': TALK}, {'conversations': [], 'id': 1}, ('chat', (), ''), 'message'),
        ({'messages': TALK}, {'messages': []}, ('policy', (), ''), 'message'),
        ({'talk': TALK}, {'talk': []}, ('chat', ('talk',), ''), 'message'),
    ],
)
def test_rows_with_an_empty_list_are_left_out_and_counted(prepare, row, empty, words, what):
    options = dict(zip(('name', 'text', 'label'), words)) | {'data': {'validation': 0.0, 'test': 0.0}}
    other = {**row, 'tags': ['O']} if 'tags' in row else row
    task = prepare([row, empty, other], **options)
    assert len(task.rows['train']) == 2
    assert task.notes[0].startswith(f'train: 1 row left out, without a {what}: ') and task.notes[0].endswith('.jsonl:2')
    with pytest.raises(InputError, match=rf"jsonl:1: no {what} in '{next(iter(row))}'.*, as in all train rows"):
        prepare([empty], **options)
    if words[0] == 'policy':  # reads a prompt first
        assert len(prepare([empty | {'prompt': 'a'}], **options).rows['train']) == 1


def test_labels_of_a_regression_are_described(prepare):
    data = {'validation': 0.0, 'test': 0.0}
    values = [{'text': 'a' * n, 'label': n} for n in (1, 2, 6)]
    assert prepare(values, name='regress', data=data).notes == (
        f'train: labels from 1 to 6, mean 3, standard deviation {np.std([1, 2, 6]):.4g}',
    )
    assert (
        'WARNING: labels beyond 100'
        in prepare([*values, {'text': 'b', 'label': -500}], name='regress', data=data).notes[1]
    )


def test_class_order_of_the_base_is_part_of_the_fingerprint(prepare):
    task = prepare(base_labels=('odd', 'even'))
    assert task.labels == ('odd', 'even') and task.labels_of_base and not prepare().labels_of_base
    assert task.fingerprint != prepare().fingerprint
    stream = PaddedStream(task, 'train', 4, 0, False)
    expected = [('odd', 'even').index(task.rows['train'][i].fields['label']) for i in stream.examples(0)]
    assert stream.batch(0)['labels'].tolist() == expected


@pytest.mark.parametrize('ending', ['jsonl', 'json', 'csv', 'tsv', 'parquet'])
def test_ids_beyond_the_classes_are_rejected_in_every_format(prepare, tmp_path, ending):
    """Training rows 1 to 4, validation rows 0 to 3: 0 is no class, and not the first one."""
    for name, labels in (('train', (1, 2, 3, 4)), ('valid', (0, 1, 2, 3))):
        rows = [{'text': f'{name} {label}', 'label': label} for label in labels]
        path = tmp_path / f'{name}.{ending}'
        if ending == 'parquet':
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif ending in ('csv', 'tsv'):
            mark = {'csv': ',', 'tsv': '\t'}[ending]
            path.write_text('\n'.join([f'text{mark}label', *(f'{row["text"]}{mark}{row["label"]}' for row in rows)]))
        else:
            lines = [json.dumps(row) for row in rows]
            path.write_text('\n'.join(lines) if ending == 'jsonl' else f'[{",".join(lines)}]')
    with pytest.raises(ValueError, match="valid.*: the label '?0'? is none of the 4 classes: '1', '2', '3', '4'"):
        prepare(train=(f'train.{ending}',), validation=(f'valid.{ending}',), data={'test': 0.0})


def test_shares_are_taken_by_hash_and_equal_rows_stay_together(prepare):
    task = prepare([*ROWS, *ROWS])
    of = {split: {row.fields['text'] for row in rows} for split, rows in task.rows.items()}
    assert sum(map(len, of.values())) == 60 and not of['train'] & of['validation'] and not of['test'] & of['validation']
    assert len(task.rows['validation']) == 24 and len(task.rows['test']) == 12
    own = prepare(validation=('1.jsonl',))
    assert len(own.rows['validation']) == 120 and len(own.rows['train']) == 54


def test_completions_of_a_prompt_are_in_one_split(prepare):
    rows = [{'prompt': f'{n // 3} ', 'completion': 'abc'[n % 3], 'label': n % 2 == 0} for n in range(60)]
    task = prepare(rows, name='unpaired', text=(), label='', data={'tokenizer': 'bytes'})
    of = {split: {row.fields['prompt'] for row in each} for split, each in task.rows.items()}
    assert [len(each) for each in of.values()] == [14, 4, 2] and len(set().union(*of.values())) == 20


@pytest.mark.parametrize(
    ('form', 'text'),
    [
        (lambda prompt, answer: {'prompt': prompt}, ()),
        (lambda prompt, answer: {'query': prompt}, ('query',)),
        (lambda prompt, answer: {'question': prompt, 'response': answer}, ()),
        (lambda prompt, answer: {'messages': [*turns(user=prompt, assistant=answer)]}, ()),
        (lambda prompt, answer: {'conversations': [*turns(user=prompt, assistant=answer)]}, ()),
    ],
)
def test_rows_of_a_prompt_of_a_policy_are_in_one_split(prepare, form, text):
    """They differ in what the reward reads, and in an answer, which a policy does not read."""
    rows = [form(f'{n // 3}?', 'abc'[n % 3]) | {'expected': n} for n in range(60)]
    task = prepare(rows, name='policy', text=text, label='', seq_len=64)
    of = {split: {row.fields['expected'] // 3 for row in each} for split, each in task.rows.items()}
    assert [len(each) for each in of.values()] == [14, 4, 2] and len(set().union(*of.values())) == 20


def turns(**contents):
    return ({'role': role, 'content': content} for role, content in contents.items())


def test_pairs_of_a_question_are_in_one_split_and_hashed_with_it(prepare, monkeypatch):
    """A run that read the answers alone is not resumed, nor are its examples; its other rows are hashed as before."""
    pairs = [{'question': f'{n // 3}?', 'chosen': 'abc'[n % 3], 'rejected': 'd'} for n in range(60)]
    options = {'name': 'preference', 'text': (), 'label': '', 'seq_len': 64}
    task = prepare(pairs, **options)
    of = {split: {row.fields['question'] for row in each} for split, each in task.rows.items()}
    assert [len(each) for each in of.values()] == [14, 4, 2] and len(set().union(*of.values())) == 20
    whole = options | {'data': {'validation': 0.0, 'test': 0.0}}
    prompts = [row | {'prompt': row['question']} for row in pairs]
    now = [prepare(rows, **whole).fingerprint for rows in (pairs, prompts)]
    monkeypatch.setattr('lmtrain.tasks.task_rows.with_prompt', lambda row: row)
    before = [prepare(rows, **whole).fingerprint for rows in (pairs, prompts)]
    assert now[0] != before[0] and now[1] == before[1]


def test_fields_of_other_data_sets_are_hashed_if_they_are_read(prepare, monkeypatch):
    rows = [{'instruction': f'{n}?', 'context': 'the cat', 'response': 'yes'} for n in range(20)]
    prompts = [{'prompt': f'{n}?', 'response': 'yes', 'system_prompt': 'be'} for n in range(20)]
    named = {'text': ('instruction',), 'label': 'response'}

    def fingerprints():
        chat = [prepare(each, name='chat', text=(), label='').fingerprint for each in (rows, prompts)]
        policy = [prepare(each, name='policy', text=(), label='').fingerprint for each in (rows, prompts)]
        return chat + policy + [prepare(rows, name='chat', **named).fingerprint]

    now = fingerprints()
    monkeypatch.setattr('lmtrain.tasks.task_rows.with_known_fields', lambda row: row)
    before = fingerprints()  # fields of the config are read as they are
    assert [one == other for one, other in zip(now, before)] == [False, False, False, True, True]
    monkeypatch.undo()
    monkeypatch.setattr('lmtrain.tasks.task_rows.with_turns', lambda row, prompt: row)
    before = fingerprints()  # the system text of a policy's prompt
    assert [one == other for one, other in zip(now, before)] == [True, True, True, False, True]


def test_examples_with_arguments_as_json_text_are_encoded_again(prepare, tmp_path, monkeypatch):
    source = (
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls | default('') | tojson }}{{ eos_token }}{% endfor %}"
    )
    (tmp_path / 'calls.jinja').write_text(source)

    def fingerprint(arguments, from_call=False):
        call = {'name': 'f', 'arguments': arguments}
        answer = {'role': 'assistant', 'content': 'b', 'tool_calls': [{'function': call}]}
        answer = {'from': 'function_call', 'value': json.dumps(call)} if from_call else answer
        rows = [{'messages': [{'role': 'user', 'content': f'{n} "arguments": "{{}}"'}, answer]} for n in range(9)]
        return prepare(rows, name='chat', text=(), label='', template='calls.jinja').fingerprint

    cases = [(value, from_call) for value in ('{}', {}, 'x') for from_call in (False, True)]
    now = [fingerprint(*case) for case in cases]
    monkeypatch.setattr('lmtrain.tasks.prepare.has_json_arguments', lambda fields: False)
    before = [fingerprint(*case) for case in cases]
    assert [one == other for one, other in zip(now, before)] == [False, False, True, True, True, False]


def test_generated_rows_of_a_recipe_do_not_measure_a_file(prepare):
    generated = {'validation': ('generated:sort',), 'test': ('generated:sort',)}
    task = prepare(**generated)
    assert {split: len(rows) for split, rows in task.rows.items()} == {'train': 42, 'validation': 12, 'test': 6}
    assert 'validation: a share of task.train, not the generated rows of the recipe' in task.notes
    own = prepare(**generated | {'validation': ('1.jsonl', 'generated:sort')})
    assert len(own.rows['validation']) == 60 and len(own.rows['test']) == 6
    assert 'validation: the files that are named, not the generated rows of the recipe' in own.notes


def test_shots_are_of_each_class_and_deterministic(prepare):
    task = prepare(shots=5)
    chosen = [row.fields['label'] for row in task.rows['train']]
    assert chosen.count('odd') == chosen.count('even') == 5
    assert [row.fields for row in prepare(shots=5).rows['train']] == [row.fields for row in task.rows['train']]
    backward = prepare(ROWS[::-1], shots=5).rows['train']  # chosen by what they say and not by their places
    assert [row.fields for row in backward][::-1] == [row.fields for row in task.rows['train']]
    assert len(prepare(shots=5, name='regress', label='n', rows=[row | {'n': 1} for row in ROWS]).rows['train']) == 5


def test_fingerprint_depends_on_all_that_decides_a_batch(prepare):
    marks = {
        prepare().fingerprint,
        prepare(ROWS[:-1]).fingerprint,
        prepare([*ROWS[:-1], ROWS[-1] | {'text': 'other'}]).fingerprint,
        prepare(labels=('odd', 'even')).fingerprint,
        prepare(buckets=2).fingerprint,
        prepare(lengths=(64, 128)).fingerprint,
        prepare(seq_len=256).fingerprint,
        prepare(shots=9).fingerprint,
        prepare(data={'validation': 0.25}).fingerprint,
    }
    assert len(marks) == 9 and prepare().fingerprint in marks


@pytest.mark.parametrize('question', ['question', 'prompt'], ids=['by the template', 'unchanged'])
def test_fingerprint_depends_on_the_version_of_the_task(prepare, monkeypatch, question):
    rows = [{question: str(n), 'completion': 'yes'} for n in range(10)]
    marks = set()
    for version in (1, 2, 3):
        monkeypatch.setitem(TASKS, 'chat', dataclasses.replace(TASKS['chat'], version=version))
        marks.add(prepare(rows, name='chat', text=(), label='').fingerprint)
    assert len(marks) == 3


def test_batches_have_the_lengths_of_the_config(prepare):
    task = prepare(lengths=(48, 128))
    assert task.lengths == (48, 128) != prepare().lengths


def test_moving_a_row_to_another_split_changes_the_fingerprint(prepare):
    prepare(ROWS[:30]), prepare(ROWS[30:]), prepare(ROWS[:40]), prepare(ROWS[40:])  # write 1.jsonl to 4.jsonl
    whole = {'data': {'validation': 0.0, 'test': 0.0}}
    one = prepare(train=('1.jsonl',), validation=('2.jsonl',), **whole)
    other = prepare(train=('3.jsonl',), validation=('4.jsonl',), **whole)
    assert one.fingerprint != other.fingerprint
    assert [len(task.rows['train']) for task in (one, other)] == [30, 40]
    assert [task.splits['train'].num_rows for task in (one, other)] == [30, 40]


def test_examples_are_read_from_the_cache(prepare, monkeypatch):
    first = prepare()
    monkeypatch.setattr('lmtrain.tasks.classify.labelled_texts', None)
    again = prepare()
    for split in first.examples:
        np.testing.assert_array_equal(first.examples[split].tokens, again.examples[split].tokens)


@pytest.mark.parametrize(
    ('over', 'message'),
    [
        ({'name': 'clasify'}, "config.task.name is 'clasify'; it must be one of"),
        ({'train': ()}, 'config.task.train is \\(\\); it must be files of rows'),
        ({'train': (3,)}, 'config.task.train is 3; it must be a path'),
        ({'text': ()}, 'config.task.text is \\(\\)'),
        ({'label': ''}, "config.task.label is ''"),
        ({'too_long': 'truncate'}, "config.task.too_long is 'truncate'"),
        ({'buckets': 0}, 'config.task.buckets is 0'),
        ({'lengths': (64, 32)}, 'config.task.lengths is \\(64, 32\\); it must be ascending'),
        (
            {'lengths': (32, 64), 'seq_len': 96},
            'config.task.lengths is .*; it must be numbers of which the last is data.seq_len = 96',
        ),
        ({'shots': -1}, 'config.task.shots is -1'),
        (
            {'name': 'unpaired', 'text': (), 'label': '', 'group': 1},
            'config.task.group is 1; .* at least 2 rows',
        ),
        ({'pack': True}, "config.task.pack is True; it must be False: rows of 'classify' stand alone"),
        ({'text': ('text', 'label', 'answer')}, 'one field is expected, or two'),
        ({'name': 'span'}, "config.task.text is \\('text',\\)"),
        ({'name': 'tag'}, "'text' must be an array"),
        ({'name': 'regress'}, 'the label of a regression is a finite number'),
        ({'vocab_limit': 256}, "the tokenizer 'bytes' has 257 entries and model.vocab_size is 256"),
        ({'data': {'validation': 0.5, 'test': 0.5}}, 'no training row is left of 60'),
        ({'name': 'chat', 'tokenizer': 'chars', 'text': (), 'label': ''}, "data.tokenizer is 'chars'"),
        ({'seq_len': 10}, 'tokens, and data.seq_len is 10'),
    ],
)
def test_invalid_fields_are_named(prepare, over, message):
    with pytest.raises(ValueError, match=message):
        prepare(**over)


PAIR = {'prompt': 'q', 'chosen': 'yes', 'rejected': 'no'}


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (
            {'prompt': 'q', 'chosen': 'yes'},
            r"1.jsonl:2: no field 'rejected'; the fields there are: 'prompt', 'chosen'$",
        ),
        (PAIR | {'chosen': 3}, r"1.jsonl:2: 'chosen' must be text or messages, not a number"),
        (PAIR | {'chosen': 'no'}, 'whose sides are equal: .*1.jsonl:2; set data.validation and data.test lower'),
        (PAIR, 'no training row is left of 2: .*; set data.validation and data.test lower'),
    ],
)
def test_what_is_wrong_with_a_row_is_named_before_shares_that_leave_none(prepare, row, message):
    with pytest.raises(InputError, match=message):
        prepare(rows=[PAIR, row], name='preference', text=(), label='')


# --- each task


def test_columns_of_each_task(prepare):
    common = {'tokens', 'segment_ids', 'positions', 'row'}

    def batch(**over):
        task = prepare(**over)
        return PaddedStream(task, 'train', 4, 0, True).batch(0)

    result = batch()
    assert result.keys() == common | {'labels', 'label_weights'} and result['labels'].dtype == np.int32
    result = batch(name='regress', label='n', rows=[row | {'n': number / 3} for number, row in enumerate(ROWS)])
    assert result['labels'].dtype == np.float32 and result['labels'].shape == (4,)
    rows = [{'words': row['text'].split(), 'tags': ['O'] * (len(row['text'].split()) - 1) + ['B']} for row in ROWS]
    result = batch(name='tag', text=('words',), label='tags', rows=rows)
    assert result['labels'].shape == result['label_weights'].shape == result['tokens'].shape
    rows = [{'q': 'where', 'c': row['text'], 'a': {'answer_start': [0], 'text': [row['text'][0]]}} for row in ROWS]
    result = batch(name='span', text=('q', 'c'), label='a', rows=rows)
    assert result.keys() == common | {'spans', 'label_weights'} and result['spans'].shape == (4, 2)
    result = batch(name='chat', text=('text',), label='answer')
    assert result.keys() == common | {'targets', 'loss_mask'}


def test_tokenizer_is_learned_from_turns_preferences_and_tagged_words(prepare):
    turns = [{'question': f'{"äöü" * i} a?', 'answer': f'b {i}'} for i in range(20)]
    chat = prepare(turns, name='chat', tokenizer='bpe', text=(), label='', data={'vocab_size': 300})
    assert len(chat.tokenizer.encode('äöüäöü a?')) < len('äöüäöü a?'.encode()) / 2
    raw = [{'prompt': f'a{i}', 'completion': 'zyzyzy'} for i in range(20)]
    raw = prepare(raw, name='chat', tokenizer='bpe', text=(), label='', data={'vocab_size': 300})
    assert len(raw.tokenizer.encode('zyzyzy')) <= 2
    pairs = [{'prompt': f'q{i}', 'chosen': 'ururur', 'rejected': 'owowow'} for i in range(20)]
    labelled = [{'prompt': f'q{i}', 'completion': ('ururur', 'owowow')[i % 2], 'label': i % 2} for i in range(20)]
    for name, rows in (('reward', pairs), ('preference', pairs), ('unpaired', labelled)):
        task = prepare(rows, name=name, tokenizer='bpe', text=(), label='', data={'vocab_size': 300})
        assert all(len(task.tokenizer.encode(answer)) <= 2 for answer in ('ururur', 'owowow'))
    words = [{'words': ['x' * (1 + i % 4), 'y'], 'tags': ['A', 'B']} for i in range(20)]
    tags = prepare(words, name='tag', tokenizer='chars', text=('words',), label='tags')
    assert {b'x', b'y'} <= {*tags.tokenizer.pieces}


def test_preferences_as_texts_are_noted_if_the_tokenizer_has_a_chat_template(prepare, tmp_path):
    learned = prepare(text=('text',), tokenizer='bpe', data={'vocab_size': 300}).tokenizer
    learned.save(tmp_path / 'plain')
    with_template(learned, Template(PLAIN, '')).save(tmp_path / 'chat')
    pair = {'chosen': 'the cat', 'rejected': 'the mat'}
    rows = {
        'texts': [pair | {'prompt': f'{i} a'} for i in range(20)],
        'labelled': [{'prompt': f'{i} a', 'completion': 'the cat', 'label': i % 2} for i in range(20)],
        'messages': [pair | {'prompt': [{'role': 'user', 'content': f'{i} a'}]} for i in range(20)],
    }

    def noted(form, tokenizer, template='auto', name='preference'):
        settings = {'name': name, 'template': template, 'text': (), 'label': ''}
        task = prepare(rows[form], tokenizer=str(tmp_path / tokenizer), **settings)
        return [note for note in task.notes if note.startswith('prompts are')]

    line = (
        "prompts are continued as they are, without the tokenizer's chat template: write prompts as messages to use it"
    )
    for form, name in (('texts', 'preference'), ('texts', 'reward'), ('labelled', 'unpaired')):
        assert noted(form, 'chat', name=name) == [line]
    assert noted('messages', 'chat') == noted('texts', 'plain') == noted('texts', 'chat', 'none') == []


def test_packed_conversations_equal_unpacked_ones(prepare):
    """Every conversation is one piece of a packed row, with positions from 0 and the same targets learned."""
    alone, packed = (prepare(name='chat', text=('text',), label='answer', pack=pack) for pack in (False, True))

    def pieces(task):
        stream = PaddedStream(task, 'train', 4, 0, False)
        for step in range(stream.steps_per_epoch):
            batch = stream.batch(step)
            for row in range(4):
                for segment in range(1, batch['segment_ids'][row].max() + 1):
                    here = batch['segment_ids'][row] == segment
                    assert batch['positions'][row][here].tolist() == list(range(here.sum()))
                    yield tuple(tuple(batch[name][row][here].tolist()) for name in ('tokens', 'targets', 'loss_mask'))

    assert sorted(pieces(packed)) == sorted(pieces(alone))
    assert len(packed.packed['train'].rows.first) < len(alone.packed['train'].rows.first) / 2
    split, batches = packed.splits['train'], list(pieces(packed))
    assert split.num_tokens == sum(sum(mask) for *_, mask in batches)
    assert split.num_bytes == sum(len(row.fields['answer']) for row in packed.rows['train'])
