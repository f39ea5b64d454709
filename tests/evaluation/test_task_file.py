"""Task files: what is read, and what is refused in one line."""

import json

import pytest

from lmtrain.errors import InputError
from lmtrain.evaluation import task_file
from lmtrain.inference import questions

ROWS = [{'text': text, 'label': index % 2, 'options': ['a', 'b']} for index, text in enumerate(['cat', 'dog', 'hen'])]
FILE = """
[data]
files = "rows.jsonl"

[prompt]
template = "{text}: {label}"
answer = "label"
choices = ["no", "yes"]

[scoring]
kind = "choices"
"""

CHOICES = 'choices = ["no", "yes"]'


@pytest.fixture
def write(tmp_path):
    """A function that writes a task file, with replaced texts, beside rows; its path."""

    def function(*changes, rows=ROWS, text=FILE):
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        (tmp_path / 'text.txt').write_text('a whole text\n', encoding='utf-8')
        path = tmp_path / 'quiz.toml'
        path.write_text(text, encoding='utf-8')
        return path

    return function


def test_a_file_is_read(write):
    task = task_file.read(write())
    assert (task.name, task.kind, task.by, len(task.rows)) == ('quiz', 'choices', 'raw', 3)
    assert task.settings.template == '{text}: {label}' and task.settings.choices == ['no', 'yes']
    assert task.demonstrations == [] and task.chat_template is None and task.accepted == ()


def test_settings_of_the_prompt(write):
    more = 'answer = "label"\nshots = "max"\nselect = "bm25"\ninstruction = "Say no."\n'
    more += 'separator = "\\n"\nseed = 3\ncut = true'
    changes = [('answer = "label"', more), ('kind = "choices"', 'kind = "choices"\nby = "calibrated"')]
    task = task_file.read(write(*changes, ('files =', 'limit = 2\nfiles =')))
    settings = task.settings
    assert (settings.shots, settings.select, settings.instruction) == (-1, 'bm25', 'Say no.')
    assert (settings.separator, settings.seed, settings.cut) == ('\n', 3, True)
    assert settings.calibrated == ('N/A', '[MASK]', '')
    assert len(task.rows) == 2 and len(task.demonstrations) == 3


def test_choices_are_the_answers_of_all_rows_also_beyond_the_limit(write):
    task = task_file.read(write(('choices = ["no", "yes"]', 'choices = "label"'), ('files =', 'limit = 1\nfiles =')))
    assert len(task.rows) == 1 and task.settings.choices == ['0', '1']
    [asked], _ = questions.ask(task.rows, task.settings)
    assert asked.choices == ('0', '1') and asked.answer == '0'


def test_rows_beyond_the_limit_tell_indices_from_texts(write):
    rows = [{'text': 'a', 'label': '0', 'options': ['1', '0']}, {'text': 'b', 'label': '1', 'options': ['x', 'y']}]
    changes = ('choices = ["no", "yes"]', 'choices = "options"'), ('files =', 'limit = 1\nfiles =')
    task = task_file.read(write(*changes, rows=rows))
    assert [question.answer for question in questions.ask(task.rows, task.settings)[0]] == ['1']


def test_words_stand_for_labels(write):
    names = 'names = { 0 = "bad", 1 = "good" }'
    task = task_file.read(write(('choices = ["no", "yes"]', names)))
    assert task.settings.choices == ['bad', 'good']
    assert [row.fields['label'] for row in task.rows] == ['bad', 'good', 'bad']
    with pytest.raises(ValueError, match=r'rows.jsonl:2: .*quiz.toml: prompt.names has no word for the label 1'):
        task_file.read(write(('choices = ["no", "yes"]', 'names = { 0 = "bad", 2 = "good" }')))


@pytest.mark.parametrize(
    ('names', 'labels'),
    [
        ('true = "yes", false = "no"', (True, False, 'TRUE')),
        ('True = "yes", False = "no"', (True, False, 'true')),
        ('1 = "yes", 0 = "no"', (1, 0.0, '1.0')),
        ('"1.0" = "yes", "0.0" = "no"', (1, '0', 1.0)),
    ],
)
def test_words_are_found_by_the_rule_of_classes(write, names, labels):
    rows = [{'text': 'a', 'label': label} for label in labels]
    task = task_file.read(write((CHOICES, f'names = {{ {names} }}'), rows=rows))
    assert [row.fields['label'] for row in task.rows] == ['yes', 'no', 'yes']


@pytest.mark.parametrize('label', [0, 1.0, '1', 'sad', True])
def test_a_label_without_a_word_is_no_index(write, label):
    rows = [{'text': 'a', 'label': 'good'}, {'text': 'b', 'label': label}]
    with pytest.raises(InputError, match='rows.jsonl:2: .*prompt.names has no word for the label'):
        task_file.read(write((CHOICES, 'names = { bad = "no", good = "yes" }'), rows=rows))


def test_whole_numbers_are_choices_and_labels(write):
    rows = [{'text': 'a', 'label': label} for label in (1, 2, 3)]
    task = task_file.read(write((CHOICES, 'choices = [1, 2, 3]'), rows=rows))
    assert [question.answer for question in questions.ask(task.rows, task.settings)[0]] == ['1', '2', '3']
    text = '[data]\nfiles = "rows.jsonl"\n[scoring]\nkind = "classify"\ntext = "text"\nlabel = "label"\nlabels = [1, 2]'
    assert task_file.read(write(text=text)).scoring['labels'] == ['1', '2']
    with pytest.raises(InputError, match=r'prompt.choices = \[1, True\]; it must be text or an array of texts'):
        task_file.read(write((CHOICES, 'choices = [1, true]')))


def test_generated_answers_may_be_several(write):
    rows = [{'text': 'a', 'label': ['x', 'y']}, {'text': 'b', 'label': [{'text': 'z', 'answer_start': 1}]}]
    changes = [('choices = ["no", "yes"]\n', ''), ('kind = "choices"', 'kind = "generation"\nby = "normalised"')]
    task = task_file.read(write(*changes, rows=rows))
    assert task.accepted == (('x', 'y'), ('z',)) and task.metric('The X', task.accepted[0])['normalised_match'] == 1
    assert [row.fields['label'] for row in task.rows] == ['x', 'z'] and task.settings.choices == ()


def test_texts_for_perplexity(write):
    text = '[data]\nfiles = ["rows.jsonl", "text.txt"]\n[scoring]\nkind = "perplexity"\ntext = "text"\n'
    task = task_file.read(write(text=text))
    assert [row.fields['text'] for row in task.rows] == ['cat', 'dog', 'hen', 'a whole text\n']


KIND, GENERATED = 'kind = "choices"', 'kind = "generation"'


@pytest.mark.parametrize(
    'changes, message',
    [
        ([('[data]', '[dat]')], "'dat' is none of the fields name, data, prompt, scoring, did you mean 'data'"),
        ([('files', 'file')], "'data.file' is none of the fields files, .* did you mean 'files'"),
        ([('"rows.jsonl"', '3')], 'data.files = 3; it must be text or an array'),
        ([('"rows.jsonl"', '[3]')], r'data.files = \[3\]; it must be text or an array'),
        ([('files = "rows.jsonl"', '')], "data.files is missing; scoring.kind = 'choices' needs it"),
        ([('answer = "label"', '')], 'prompt.answer is missing'),
        ([(CHOICES, '')], 'prompt.choices is missing'),
        ([(KIND, '')], 'scoring.kind = None is none of choices, generation, perplexity, classify'),
        ([(KIND, 'kind = "choice"')], "'choice' is none of .*did you mean 'choices'"),
        ([(KIND, f'{KIND}\nby = "bytes"')], "scoring.by = 'bytes' is none of raw, per_token, per_byte, calibrated"),
        ([(KIND, f'{KIND}\npattern = "a"')], "scoring.pattern has no effect with scoring.kind = 'choices'"),
        (
            [(CHOICES, ''), (KIND, f'{GENERATED}\nby = "regex"')],
            "scoring.pattern is missing; scoring.by = 'regex' needs it",
        ),
        (
            [(CHOICES, ''), (KIND, f'{GENERATED}\npattern = "a"')],
            "scoring.pattern has no effect with scoring.by = 'exact'",
        ),
        (
            [(CHOICES, ''), (KIND, GENERATED + '\nby = "json"\nschema = {kind = 3}')],
            "scoring.schema: 'kind' is none of",
        ),
        ([(KIND, 'kind = "tag"\ntext = "a"\nlabel = "b"\ntoo_long = "drop"')], "too_long = 'drop' is neither"),
        ([('{text}: {label}', '{txet}: {label}')], "rows.jsonl:1: no field 'txet'.*'text'.* Set prompt.template"),
        ([('{text}: {label}', 'Label: {label}')], "template names no field but the answer 'label'"),
        ([('{text}: {label}', '{text}: {label}.')], 'ends in text'),
        ([('"no", "yes"', '"no", "yes", "maybe"')], "no row has the answer 'maybe': leave it out; .* .'no', 'yes'"),
        ([('"no", "yes"', '"no", "yes", "no"')], 'a choice occurs twice'),
        ([(CHOICES, 'choices = "choices"')], "rows.jsonl:1: no field 'choices'"),
        ([('answer =', 'shots = "all"\nanswer =')], "prompt.shots = 'all' is neither a number nor 'max'"),
        ([('answer =', 'select = "near"\nanswer =')], "prompt.select = 'near' is none of random"),
        ([('[data]', '[data')], 'invalid TOML'),
        ([(KIND, 'kind = "generation"')], "prompt.choices has no effect with scoring.kind = 'generation'"),
        ([(CHOICES, CHOICES + '\nnames = {0 = "a"}')], 'prompt.choices has no effect with prompt.names'),
        ([(CHOICES, 'names = {0 = 1}')], 'each word must be text'),
        ([(KIND, 'kind = "perplexity"')], "prompt has no effect with scoring.kind = 'perplexity'"),
        ([('files', 'limit = -1\nfiles')], 'data.limit = -1; it must be at least 0'),
    ],
)
def test_what_is_refused(write, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        task_file.read(write(*changes))
    assert '\n' not in str(error.value)


HEAD = 'text = "text"\nlabel = "label"\nlabels = ["a", "b"]\n'


@pytest.mark.parametrize(
    'prompt, scoring, message',
    [
        ('', 'kind = "perplexity"\ntext = ["text"]', r"scoring.text = \['text'\]; .* 'perplexity' reads one field"),
        ('', f'kind = "regress"\n{HEAD}', "scoring.labels has no effect with scoring.kind = 'regress'"),
        ('', f'kind = "span"\n{HEAD}', "scoring.labels has no effect with scoring.kind = 'span'"),
        ('names = {}', 'kind = "choices"', r'prompt.names = \{\}: name at least one label, or leave it out'),
        ('names = {}', 'kind = "generation"', r'prompt.names = \{\}: name at least one label, or leave it out'),
        (
            '',
            'kind = "generation"\nby = "json"\nschema = {type = 5}',
            'quiz.toml: scoring.schema.type: 5 is neither a text nor a list of texts',
        ),
    ],
)
def test_fields_that_the_kind_cannot_read_are_refused(write, prompt, scoring, message):
    if 'choices' in scoring or 'generation' in scoring:
        prompt = f'[prompt]\ntemplate = "{{text}}: {{label}}"\nanswer = "label"\n{prompt}'
    text = f'[data]\nfiles = "rows.jsonl"\n{prompt}\n[scoring]\n{scoring}\n'
    with pytest.raises(InputError, match=message):
        task_file.read(write(text=text))


def test_answers_that_are_no_texts(write):
    for label in ([], [3], {'texts': ['a']}):
        with pytest.raises(ValueError, match="rows.jsonl:1: 'label' is no answer"):
            task_file.read(write(rows=[{'text': 'a', 'label': label}]))


def test_files_that_are_empty_or_missing(write):
    with pytest.raises(ValueError, match='rows.jsonl: it has no rows'):
        task_file.read(write(rows=[]))
    with pytest.raises(FileNotFoundError, match='other.jsonl: no such file'):
        task_file.read(write(('rows.jsonl', 'other.jsonl')))
    with pytest.raises(FileNotFoundError, match='none.toml'):
        task_file.read('none.toml')
