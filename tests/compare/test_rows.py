"""Rows of a comparison: three disjoint parts, and nested subsets that have every class first."""

import decimal
import json
import re

import pytest

from configs import compare
from lmtrain.compare import rows
from lmtrain.data.labels import class_id, class_names
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.tasks.task_rows import TaskConfig

CLASSES = ('cats', 'dogs', 'mice')


def lines_of(count):
    return [{'note': f'{i * i} animals', 'animal': CLASSES[(i * i) % 3]} for i in range(count)]


def make_config(tmp_path, count=60, **files):
    lines = lines_of(count)
    path = tmp_path / 'rows.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config = compare.get_config()
    config.task.train, config.task.text, config.task.label = (str(path),), ('note',), 'animal'
    config.data.test, config.compare.selection = 0.3, 10
    for split, extra in files.items():
        other = tmp_path / f'{split}.jsonl'
        other.write_text(''.join(json.dumps(line) + '\n' for line in extra), encoding='utf-8')
        config.task[split] = (str(other),)
    return config


@pytest.mark.parametrize('values', [(True, False), (decimal.Decimal('1.0'), decimal.Decimal('0'))])
def test_labels_that_are_no_text_are_rendered_by_the_name_of_their_class(tmp_path, values):
    task = TaskConfig('classify', {}, ('note',), 'toxic', (), 0, 1, False, 'cut')
    classes = class_names([('', value) for value in values])
    for value in values:
        own = rows._line(Row('', {'note': 'a cat', 'toxic': value}), task, '{note}\nLabel: {toxic}', classes)
        label = classes[class_id(value, classes, '')]
        assert (own['prompt'], own['completion'], own['label']) == ('a cat\nLabel:', f' {label}', label)


def test_a_file_with_boolean_labels_is_divided(tmp_path):
    config = make_config(tmp_path, validation=[{'note': f'own {i}', 'animal': i % 2 == 0} for i in range(20)])
    lines = [{'note': f'{i} animals', 'animal': i % 3 == 0} for i in range(60)]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    task = rows.divide(config, tmp_path / 'rows')
    assert task.classes == ('false', 'true') and {row.fields['label'] for row in task.train} == {'false', 'true'}


def test_a_field_of_a_pair_that_is_null_is_an_empty_text(tmp_path):
    lines = [{'subject': None if i % 2 else f'{i}', 'body': f'{i} cats', 'animal': CLASSES[i % 3]} for i in range(60)]
    config = make_config(tmp_path)
    config.task.text = ('subject', 'body')
    written = []
    for name in ('null', 'empty'):
        own = [line | {'subject': line['subject'] or ('' if name == 'empty' else None)} for line in lines]
        (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in own), encoding='utf-8')
        task = rows.divide(config, tmp_path / name)
        listed = [*task.train, *task.selection, *rows.read(tmp_path / name / 'test.jsonl')]
        written.append({row.fields['place']: row.fields for row in listed})
    assert written[0] == written[1] and any(fields['prompt'].startswith('\n') for fields in written[0].values())


def texts(listed):
    return [row.fields['text'] for row in listed]


def test_parts_are_disjoint_and_complete(tmp_path):
    task = rows.divide(make_config(tmp_path), tmp_path / 'rows')
    test = rows.read(tmp_path / 'rows' / 'test.jsonl')
    every = [*texts(task.train), *texts(task.selection), *texts(test)]
    assert len(every) == len(set(every)) == 60
    assert len(task.selection) == 10 and 10 < len(test) < 28
    assert task.facts['rows'] == {'train': len(task.train), 'selection': 10, 'test': len(test)}


def test_texts_of_the_test_file_are_in_no_other_part(tmp_path):
    shared = lines_of(20)
    new = [{'note': 'new', 'animal': 'dogs'}, {'note': 'new', 'animal': 'dogs'}]
    task = rows.divide(make_config(tmp_path, test=shared + new), tmp_path / 'rows')
    test = texts(rows.read(tmp_path / 'rows' / 'test.jsonl'))
    assert len(test) == 21 and not set(test) & set(texts(task.train) + texts(task.selection))
    assert len(task.train) == 60 - 20 - 10
    assert sorted(note.partition(' are')[0] for note in task.facts['notes']) == ['1 test rows', '20 training rows']


def test_selection_rows_are_those_of_the_validation_file_if_there_is_one(tmp_path):
    own = [{'note': f'validation {i}', 'animal': 'cats'} for i in range(30)]
    task = rows.divide(make_config(tmp_path, validation=own), tmp_path / 'rows')
    assert len(task.selection) == 10 and all(text.startswith('validation') for text in texts(task.selection))


def test_subsets_are_nested_and_differ_between_seeds(tmp_path):
    task = rows.divide(make_config(tmp_path), tmp_path / 'rows')
    rows.write_subsets(task, [4, 8, 16], seeds=2)
    subsets = {
        (n, seed): texts(rows.read(tmp_path / 'rows' / f'n{n}-seed{seed}.jsonl')) for n in (4, 8, 16) for seed in (1, 2)
    }
    for seed in (1, 2):
        assert subsets[16, seed][:8] == subsets[8, seed] and subsets[8, seed][:4] == subsets[4, seed]
    assert set(subsets[8, 1]) != set(subsets[8, 2])
    assert set(subsets[16, 1]) <= set(texts(task.train))


def test_a_subset_has_every_class_as_soon_as_it_can():
    labels = ['a'] * 90 + ['b'] * 9 + ['c']
    listed = [Row('', {'text': f'row {i}', 'label': label}) for i, label in enumerate(labels)]
    for seed in range(1, 6):
        ordered = [row.fields['label'] for row in rows.order(listed, ('a', 'b', 'c'), seed)]
        assert sorted(ordered[:3]) == ['a', 'b', 'c']
        assert sorted(ordered) == labels
        assert ordered[3:33].count('a') > 20  # the rest has the distribution of the task
    beginnings = {tuple(row.fields['label'] for row in rows.order(listed, 'abc', seed))[:3] for seed in range(1, 9)}
    assert len(beginnings) > 1


def test_a_row_becomes_a_prompt_and_its_completion(tmp_path):
    config = make_config(tmp_path)
    config.compare.template = 'Note: {note} -> {animal}'
    task = rows.divide(config, tmp_path / 'rows')
    assert task.completions == [' cats', ' dogs']  # squares are 0 or 1 modulo 3
    row = task.train[0].fields
    assert row['prompt'] == f'Note: {row["text"]} ->' and row['completion'] == f' {row["label"]}'


def test_columns_have_any_names(tmp_path):
    config = make_config(tmp_path)
    lines = [f'"the room, {i}",{("good", "bad")[i % 2]}' for i in range(60)]
    (tmp_path / 'survey.csv').write_text('\n'.join(['Q1: How was it?,Really!', *lines]), encoding='utf-8')
    config.task.train, config.task.label = (str(tmp_path / 'survey.csv'),), 'Really!'
    config.task.text = ('Q1: How was it?',)
    task = rows.divide(config, tmp_path / 'rows')
    row = task.train[0].fields
    assert (row['prompt'], row['completion']) == (f'{row["text"]}\nLabel:', f' {row["label"]}')
    assert row['text'].startswith('the room, ') and task.completions == [' bad', ' good']


def test_spaces_at_the_end_of_a_text_stay_in_the_prompt(tmp_path):
    config = make_config(tmp_path, test=[{'note': 'two spaces  ', 'animal': 'dogs'}])
    config.compare.template = '{note} {animal}'
    rows.divide(config, tmp_path / 'rows')
    row = rows.read(tmp_path / 'rows' / 'test.jsonl')[0].fields
    assert (row['prompt'], row['completion']) == ('two spaces  ', ' dogs')  # one of the classes' completions


def test_a_class_whose_rows_were_all_drawn_into_another_part_is_a_class(tmp_path):
    config = make_config(tmp_path)
    with (tmp_path / 'rows.jsonl').open('a', encoding='utf-8') as file:
        file.write(json.dumps({'note': 'the only one', 'animal': 'yaks'}) + '\n')
    for share in (0.1, 0.3, 0.5):  # it is in the training, selection or test rows
        config.data.test = share
        task = rows.divide(config, tmp_path / f'rows{share}')
        assert task.classes == ('cats', 'dogs', 'yaks')
    config = make_config(tmp_path, test=[{'note': 'one', 'animal': 'yak'}])
    with pytest.raises(InputError, match="'yak' is none of the 2 classes"):
        rows.divide(config, tmp_path / 'file')


def test_rows_without_text_are_left_out(tmp_path):
    blank = [{'note': note, 'animal': 'dogs'} for note in ('', ' ', '', 'a dog')]
    task = rows.divide(make_config(tmp_path, test=blank), tmp_path / 'rows')
    assert texts(rows.read(tmp_path / 'rows' / 'test.jsonl')) == ['a dog']
    assert task.facts['notes'] == [
        f'test: 3 rows left out, without text: {tmp_path / "test.jsonl"}:1, ...',
        'classes without a test row, which are not measured there: cats',
    ]


def test_classes_that_differ_only_in_case_give_a_warning(tmp_path):
    lines = [{'note': f'{i} animals', 'animal': ('Spam', 'spam', 'ham')[i % 3]} for i in range(60)]
    config = make_config(tmp_path)
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    notes = rows.divide(config, tmp_path / 'rows').facts['notes']
    assert notes == ["WARNING: 2 classes differ only in blanks or case: 'Spam', 'spam'"]


def test_rows_of_files_that_have_changed_are_refused(tmp_path):
    config = make_config(tmp_path)
    rows.divide(config, tmp_path / 'rows')
    (tmp_path / 'trials').mkdir()
    with (tmp_path / 'rows.jsonl').open('a', encoding='utf-8') as file:
        file.write(json.dumps({'note': 'one more', 'animal': 'dogs'}) + '\n')
    with pytest.raises(InputError, match=r'rows\.jsonl has changed since .* was divided from it'):
        rows.divide(config, tmp_path / 'rows')


def test_files_of_another_root_are_the_same_by_content(tmp_path):
    config = make_config(tmp_path)
    config.task.train, config.data.root = ('rows.jsonl',), str(tmp_path)
    first = rows.divide(config, tmp_path / 'rows')
    (tmp_path / 'trials').mkdir()
    (tmp_path / 'moved').mkdir()
    moved = tmp_path / 'moved' / 'rows.jsonl'
    moved.write_bytes((tmp_path / 'rows.jsonl').read_bytes())
    config.data.root = str(tmp_path / 'moved')
    assert rows.divide(config, tmp_path / 'rows').facts == first.facts
    moved.write_text(''.join(json.dumps(line) + '\n' for line in lines_of(40)), encoding='utf-8')
    with pytest.raises(InputError, match=r'moved/rows\.jsonl is none of the files that .*rows was divided from; use'):
        rows.divide(config, tmp_path / 'rows')
    config.data.root = str(tmp_path / 'absent')  # the rows alone suffice
    assert rows.divide(config, tmp_path / 'rows').facts == first.facts


def test_a_second_call_reads_what_the_first_one_wrote(tmp_path):
    config = make_config(tmp_path)
    first = rows.divide(config, tmp_path / 'rows')
    (tmp_path / 'rows.jsonl').unlink()
    again = rows.divide(config, tmp_path / 'rows')
    assert (again.train, again.selection, again.facts) == (first.train, first.selection, first.facts)
    config.compare.selection = 11
    (tmp_path / 'trials').mkdir()
    with pytest.raises(InputError, match=r'other settings of compare\.selection'):
        rows.divide(config, tmp_path / 'rows')


def test_rows_are_divided_again_until_a_trial_has_begun(tmp_path):
    config = make_config(tmp_path)
    task = rows.divide(config, tmp_path / 'rows')
    rows.write_subsets(task, [4], seeds=1)
    config.compare.selection = 11
    assert len(rows.divide(config, tmp_path / 'rows').selection) == 11
    assert not (tmp_path / 'rows' / 'n4-seed1.jsonl').exists()


def test_sizes_beyond_the_rows_are_left_out(tmp_path):
    config = make_config(tmp_path)
    config.compare.sizes = (64, 8, 0)
    assert rows.sizes(config, 30) == ([8, 30], ['size 64 is left out: there are 30 training rows'])
    config.compare.sizes = (64,)
    with pytest.raises(InputError, match='only 30 training rows'):
        rows.sizes(config, 30)
    with pytest.raises(InputError, match=r'30 training rows are left \(70 .* before; no text\): .*sizes=15,30, or'):
        rows.sizes(config, 30, ['70 training rows are left out: their text occurs before', 'no text'])


def test_errors_count_the_rows_whose_text_occurs_before(tmp_path):
    twice = [{'note': f'text {i // 2}', 'animal': 'cats'} for i in range(8)]
    config = make_config(tmp_path, test=twice)
    config.compare.selection = 60
    with pytest.raises(InputError, match=r'= 60 \(4 test rows are left out: their text occurs before\): set'):
        rows.divide(config, tmp_path / 'rows')


def test_an_error_names_values_that_leave_training_rows(tmp_path):
    config = make_config(tmp_path)
    config.compare.selection = 96
    with pytest.raises(InputError, match=r'set --config\.compare\.selection=(\d+), half of the (\d+) other') as error:
        rows.divide(config, tmp_path / 'rows')
    half, others = map(int, re.search(r'selection=(\d+), half of the (\d+)', str(error.value)).groups())
    config.compare.selection = half
    task = rows.divide(config, tmp_path / 'rows')
    assert task.facts['rows']['test'] + others == 60 and len(task.train) == others - half > 0
    config.data.test, config.task.validation = 0.9, config.task.train  # no row is in two files
    with pytest.raises(InputError, match=r'set config\.data\.test lower, such as --config\.data\.test=0\.45'):
        rows.divide(config, tmp_path / 'validation')
    with pytest.raises(InputError, match=r'name files with other rows in config\.task\.train'):
        rows.divide(make_config(tmp_path, test=lines_of(60)), tmp_path / 'test')


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('task.label', 'colour', "no field 'colour'"),
        ('compare.template', '{note}', r'must end in \{animal\}'),
        ('compare.template', '{title} {animal}', "no field 'title'"),
        ('compare.selection', 60, 'no training row is left'),
        ('compare.selection', 0, 'at least 1 row'),
        ('data.test', 0.0, 'no test rows'),
        ('task.name', 'tag', 'one class for each row'),
        ('task.labels', ('cats', 'mice'), "'mice', which no row has"),
    ],
)
def test_settings_that_give_no_comparison_are_refused(tmp_path, field, value, message):
    config = make_config(tmp_path)
    section, name = field.split('.')
    config[section][name] = value
    with pytest.raises(InputError, match=message):
        rows.divide(config, tmp_path / 'rows')
    assert not (tmp_path / 'rows' / 'rows.json').exists()


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (('cats', 'dogs', 'mice', 'zzz'), r"config\.task\.labels has 'zzz', which no row has in the field 'animal': "),
        (('cats', 'dog', 'mice'), r"'dog', .*, did you mean 'dogs'\?: .* are 'cats', 'dogs', 'mice'; leave 'dog' out"),
        (('cats', 'dogs'), "the label 'mice' is none of the 2 classes"),
    ],
)
def test_a_class_that_no_row_has_is_refused(tmp_path, labels, message):
    lines = [{'note': f'note {i}', 'animal': CLASSES[i % 3]} for i in range(60)]
    config = make_config(tmp_path)
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config.task.labels = labels
    with pytest.raises(InputError, match=message):
        rows.divide(config, tmp_path / 'rows')


def test_a_class_that_only_a_test_row_has_and_classes_that_rows_name_by_their_ids_are_ordinary(tmp_path):
    test = [{'note': 'a bird', 'animal': 'bird'}, *lines_of(9)]
    config = make_config(tmp_path, test=test)
    config.task.labels = ('cats', 'dogs', 'bird')
    assert rows.divide(config, tmp_path / 'rows').classes == ('cats', 'dogs', 'bird')
    numbered = [{'note': f'note {i}', 'animal': i % 3} for i in range(60)]
    (tmp_path / 'ids.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in numbered), encoding='utf-8')
    config = make_config(tmp_path)
    config.task.train, config.task.labels = (str(tmp_path / 'ids.jsonl'),), CLASSES
    assert rows.divide(config, tmp_path / 'ids').classes == CLASSES
    config.unlock().task.labels = (0, 1, 2)
    assert rows.divide(config, tmp_path / 'numbers').classes == ('0', '1', '2')


def test_rows_in_another_template(tmp_path):
    config = make_config(tmp_path)
    task = rows.divide(config, tmp_path / 'rows')
    [row] = rows.in_template(task.train[:1], '{text}? A {label}')
    assert row.fields == task.train[0].fields | {
        'prompt': f'{row.fields["text"]}? A',
        'completion': f' {row.fields["label"]}',
    }
    assert rows.completions_of('{text}? A {label}', CLASSES) == [' cats', ' dogs', ' mice']
    pair = Row('here', {'text': 'one', 'text2': 'two', 'label': 'cats'})
    assert rows.in_template([pair], '{text}\n{label}')[0].fields['prompt'] == 'one\ntwo\n'
    with pytest.raises(InputError, match='must end in {label}'):
        rows.in_template([pair], '{label} {text}')


def test_prompts_without_content_end_as_those_of_rows():
    template = 'Q: {first} {{or}} {second}\nA: {animal}'
    assert rows.content_free(template, 'animal') == [
        'Q: N/A {or} N/A\nA:',
        'Q: [MASK] {or} [MASK]\nA:',
        'Q:  {or} \nA:',
    ]
    row = Row('here', {'first': 'N/A', 'second': 'N/A', 'animal': 'cats'})
    assert rows.rendered(row, template, 'animal', 'cats')[0] == rows.content_free(template, 'animal')[0]


def test_rows_with_choices_of_their_own_are_refused_with_what_works(tmp_path):
    config = make_config(tmp_path)
    works = 'a comparison needs the same classes for all rows.*lmtrain evaluate --task=FILE'
    lines = [{'premise': f'p{i}', 'choices': [f'a{i}', f'b{i}'], 'label': i % 2, 'answer': f'a{i}'} for i in range(40)]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    config.task.text, config.task.label = ('premise', 'choices'), 'label'
    with pytest.raises(InputError, match=rf"rows.jsonl:\d+: 'choices' is a list, as of choices: {works}"):
        rows.divide(config, tmp_path / 'lists')
    config.task.text, config.task.label = ('premise',), 'answer'
    with pytest.raises(InputError, match=f"task.label = 'answer' differs in all of 40 rows: {works}"):
        rows.divide(config, tmp_path / 'answers')
    config.task.text = ('premise', 'answer', 'label')
    with pytest.raises(InputError, match=works):
        rows.divide(config, tmp_path / 'three')
