import re
from decimal import Decimal

import pytest

from lmtrain.data.labels import class_id, class_names, count_notes, rare_notes, resolve_classes


def of(*values):
    return [('', value) for value in values]


# --- names and numbers


def test_classes_are_sorted_numbers_as_numbers():
    assert class_names(of(10, 9, '10', 9.0)) == ('9', '10')
    assert class_names(of('1.0', '2.0')) == class_names(of(1, 2)) == class_names(of('1', 2.0)) == ('1', '2')
    assert class_names(of('b', 'a', 1)) == ('1', 'a', 'b')
    assert class_names(of(1.5, 3.0, '3.10')) == ('1.5', '3.0', '3.10')
    assert class_names(of('01', '1')) == ('01', '1')
    assert class_names(of(1, 0, -1)) == ('-1', '0', '1')
    assert class_names(of(Decimal('2.00'), Decimal('1E+1'), 2)) == ('2', '10')
    assert class_names(of(Decimal('12.50'), 12.5, Decimal('-0.25'))) == ('-0.25', '12.5')
    assert class_names(of(True, False)) == ('false', 'true')


def test_truth_values_in_several_spellings_are_two_classes():
    assert class_names(of(True, 'True', False, 'false')) == ('false', 'true')
    assert class_names(of('TRUE', 'true', 'False')) == ('false', 'true')
    assert class_names(of('True', 'False')) == ('False', 'True')  # as they are written
    names = class_names(of(True, 'True', False, 'false', 'unknown'))
    assert names == ('false', 'true', 'unknown')
    assert [class_id(value, names, '') for value in (True, 'True', False, 'false', 'FALSE')] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ('value', 'names', 'expected'),
    [
        (True, ('false', 'true'), 1),
        ('FALSE', ('true', 'false'), 1),
        (9, ('9', '10'), 0),
        (1.0, ('3', '1', '2'), 1),
        (3, ('1.5', '3.0'), 1),
        (1, ('bad', 'good'), 1),
        ('1', ('bad', 'good'), 1),
        ('1.0', ('bad', 'good'), 1),
        (0.5, ('0.5', '1.5'), 0),
        (-1, ('-1', '0', '1'), 0),
    ],
)
def test_class_by_name_or_id(value, names, expected):
    assert class_id(value, names, '') == expected


@pytest.mark.parametrize(
    ('value', 'names'),
    [
        (0, ('1', '2', '3', '4')),
        ('0', ('1', '2', '3', '4')),
        (2, ('-1', '0', '1')),
        ('2', ('-1', '0', '1')),
        (1, ('true', 'false')),
        ('1', ('False', 'True')),
        (1, ('0.5', '2.5', '1e3')),
        (1, ('x', '7')),
        (2, ('bad', 'good')),
        (-1, ('bad', 'good')),
        (0.5, ('bad', 'good')),
        ('goood', ('bad', 'good')),
        ('01', ('bad', 'good')),
    ],
)
def test_unknown_label_is_named_with_the_classes(value, names):
    with pytest.raises(ValueError, match=f"x:3: the label {value!r} is none of the {len(names)} classes: '{names[0]}'"):
        class_id(value, names, 'x:3')


@pytest.mark.parametrize('value', [' ', None, float('nan'), Decimal('NaN'), ['a']])
def test_label_of_another_type_is_named(value):
    with pytest.raises(ValueError, match='x:3: a label is a name or a number, here it is'):
        class_id(value, ('a', 'b'), 'x:3')


# --- the order


SENTIMENT = ('positive', 'negative')


@pytest.mark.parametrize(
    ('values', 'expected', 'base', 'names'),
    [
        (('negative', 'positive'), (), SENTIMENT, SENTIMENT),
        (('NEGATIVE', 'POSITIVE '), (), SENTIMENT, ('POSITIVE ', 'NEGATIVE')),
        (('B-PER', 'I-PER', 'O'), (), ('O', 'B-PER', 'I-PER'), ('O', 'B-PER', 'I-PER')),
        ((1, 0, 1), (), SENTIMENT, SENTIMENT),  # the numbers of its classes
        (('1',), (), SENTIMENT, SENTIMENT),
        ((1, 0), (), ('LABEL_0', 'LABEL_1', 'LABEL_2'), ('0', '1', '2')),
        ((0, 1), (), ('1', '0'), ('1', '0')),  # names, not numbers of classes
        (('a', 'b'), ('b', 'a'), ('LABEL_0', 'LABEL_1'), ('b', 'a')),
        (('x',), SENTIMENT, SENTIMENT, SENTIMENT),
    ],
)
def test_order_of_the_base_is_kept(values, expected, base, names):
    classes = resolve_classes(of(*values), expected, base)
    assert classes.names == names and classes.of_base and not any('new one' in note for note in classes.notes)


@pytest.mark.parametrize(
    ('values', 'expected', 'base', 'names', 'note'),
    [
        (('b', 'a'), (), (), ('a', 'b'), None),
        (('bad', 'good'), (), SENTIMENT, ('bad', 'good'), "task.labels = \\('positive', 'negative'\\) keeps it"),
        (('positive',), (), SENTIMENT, ('positive',), 'differ: its head is replaced by a new one'),
        (('Positive', 'positive', 'negative'), (), SENTIMENT, ('Positive', 'negative', 'positive'), 'differ'),
        (('b', 'a'), (), ('LABEL_0', 'LABEL_1'), ('a', 'b'), 'task.labels names its 2 classes in their order'),
        (('b', 'a', 'c'), (), ('LABEL_0', 'LABEL_1'), ('a', 'b', 'c'), 'differ: its head is replaced by a new one$'),
        ((1, 2), (), SENTIMENT, ('1', '2'), 'differ'),
        ((1, 0), (), ('0', '1', '2'), ('0', '1'), 'differ'),
        (('x',), ('negative', 'positive'), SENTIMENT, ('negative', 'positive'), 'another order.*leave task.labels'),
    ],
)
def test_classes_that_differ_from_the_base(values, expected, base, names, note):
    classes = resolve_classes(of(*values), expected, base)
    assert classes.names == names and not classes.of_base
    assert len(classes.notes) == (note is not None)
    if note:
        assert re.search(note, classes.notes[0])


# --- counts


def test_classes_are_counted_in_their_order():
    assert count_notes(('b', 'a', 'c'), [0, 0, 1]) == ['classes: b 2, a 1, c 0']
    many = count_notes([f'class {i}' for i in range(77)], [i for i in range(76) for _ in range(i)])
    assert many == ['classes: 77, from class 75 75, class 74 74, class 73 73 to class 1 1, class 0 0, class 76 0']


def test_classes_that_are_hardly_learned_or_not_measured_are_named():
    splits = {'train': [0, 0, 1, 1, 2], 'validation': [0, 1, 3], 'test': [0, 1, 2, 3]}
    assert rare_notes(('a', 'b', 'c', ' d'), splits, 'word') == [
        "classes with at most 1 training word, which can hardly be learned: c, ' d'",
        'classes without a validation word, which are not measured there: c',
    ]
    assert not rare_notes(('a', 'b'), {'train': [0, 0, 1, 1], 'validation': [], 'test': [0, 1]})
    [line] = rare_notes([f'{i}' for i in range(77)], {'train': [0, 0]})
    assert line.endswith(': 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 64 more')


def test_classes_that_differ_only_in_blanks_or_case_give_a_warning():
    lines = count_notes(('pos', ' pos', 'pos ', 'Neg', 'neg', 'a  b', 'a c'), [0, 1, 2])
    assert lines[0] == "classes: pos 1, ' pos' 1, 'pos ' 1, Neg 0, neg 0, 'a  b' 0, a c 0"
    assert lines[1:] == [
        "WARNING: 3 classes differ only in blanks or case: 'pos', ' pos', 'pos '",
        "WARNING: 2 classes differ only in blanks or case: 'Neg', 'neg'",
    ]
