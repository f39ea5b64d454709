import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.chat.sandbox import compiled
from lmtrain.data.chat.traced import CONTENT, TEMPLATE, Traced, concat, flags_of, origin_of, traced

# Letters with an origin: lower case from the template, upper case from content.
letters = st.text(st.sampled_from('ab AB\n.'), max_size=12)


def known(text):
    return concat([Traced(letter, CONTENT if letter.isupper() else TEMPLATE) for letter in text])


def checks(value):
    """Whether each character has its original origin."""
    if isinstance(value, list | tuple):
        return all(map(checks, value))
    return all(
        (CONTENT if letter.isupper() else TEMPLATE) == flags
        for letter, flags in zip(value, origin_of(value), strict=True)
    )


@given(letters, letters, st.integers(-14, 14), st.integers(-14, 14), st.integers(-1, 3))
def test_str_operations_keep_origins(text, other, begin, end, count):
    separator = other[:2] or 'a'
    operations = [
        lambda t: t + known(other),
        lambda t: known(other) + t,
        lambda t: t * 2,
        lambda t: t[begin:end],
        lambda t: t[::-1],
        lambda t: list(t),
        lambda t: t.split(),
        lambda t: t.split(None, count),
        lambda t: t.split(separator, count),
        lambda t: t.rsplit(None, count),
        lambda t: t.rsplit(separator, count),
        lambda t: t.splitlines(),
        lambda t: t.splitlines(True),
        lambda t: t.partition(separator),
        lambda t: t.rpartition(separator),
        lambda t: t.strip(),
        lambda t: t.strip('aA'),
        lambda t: t.lstrip(),
        lambda t: t.rstrip('.'),
        lambda t: t.removeprefix(separator),
        lambda t: t.removesuffix(separator),
        lambda t: t.replace(separator, known(other), count),
        lambda t: t.join([known(other), known(text), known('')]),
        lambda t: t.join([]),
    ]
    for number, operation in enumerate(operations):
        result = operation(known(text))
        assert result == operation(text), number
        if number not in (0, 1, 21, 22):  # they insert a traced part of `other`
            assert checks(result), number
    for number in (0, 1, 21, 22):
        assert checks(operations[number](known(text))), number


def test_equal_pieces_keep_their_own_origin():
    text = Traced('a\nb ', TEMPLATE) + Traced('a\nb', CONTENT)
    assert [(piece, origin_of(piece)) for piece in text.split()] == [
        ('a', b'\1'), ('b', b'\1'), ('a', b'\2'), ('b', b'\2')
    ]  # fmt: skip
    assert list(map(origin_of, text.splitlines())) == [b'\1', b'\1\1\2', b'\2']
    assert list(map(origin_of, (Traced('a', TEMPLATE) + Traced('-a', CONTENT)).partition('-'))) == [b'\1', b'\2', b'\2']


def test_case_change_keeps_origins_if_length_is_equal():
    text = Traced('ab', TEMPLATE) + Traced('c', CONTENT)
    for change in (str.upper, str.lower, str.title, str.capitalize):
        name = change.__name__
        assert getattr(text, name)() == change('abc') and origin_of(getattr(text, name)()) == bytes([1, 1, 2])
    longer = Traced('ß', CONTENT) + Traced('<s>', TEMPLATE)
    assert longer.upper() == 'SS<S>' and origin_of(longer.upper()) == bytes(5)


@pytest.mark.parametrize(
    'change',
    [
        lambda t: Traced('a%s', TEMPLATE) % t,
        lambda t: Traced('a{}', TEMPLATE).format(t),
        lambda t: t.center(20),
        lambda t: t.expandtabs(),
        lambda t: t.translate({ord('s'): 'x'}),
        lambda t: ''.join([t]),
        lambda t: t.replace('', 'x'),
        lambda t: type(t)(t + ''),
    ],
)
def test_untracked_operations_have_unknown_origin(change):
    assert set(origin_of(change(Traced('<s>', TEMPLATE)))) == {0}


def test_index_gives_one_character():
    text = Traced('<', TEMPLATE) + Traced('s', CONTENT)
    assert [(text[at], origin_of(text[at])) for at in (0, 1, -1, -2)] == [
        ('<', b'\1'), ('s', b'\2'), ('s', b'\2'), ('<', b'\1')
    ]  # fmt: skip
    with pytest.raises(IndexError):
        text[2]


def test_traced_json_values():
    value = traced({'a': ['b', {'c': 'd'}, 3, None, True], 'e': ('f',)}, CONTENT)
    assert value == {'a': ['b', {'c': 'd'}, 3, None, True], 'e': ['f']}
    assert flags_of(value) == CONTENT and flags_of(value['a'][2:]) == 0 and flags_of('plain') == 0
    assert flags_of([traced('a', 4), traced('b', 3)]) == 7


# --- through a template


def origins(source, **values):
    text = compiled(source).render(**values)
    return str.__str__(text), origin_of(text)


C = traced('C', CONTENT)


@pytest.mark.parametrize(
    ('source', 'text', 'origin'),
    [
        ('a{{ "b" }}{{ c }}', 'abC', b'\1\1\2'),
        ('{{ "a" + c + "b" }}', 'aCb', b'\1\2\1'),
        ('{{ "a" ~ c ~ 1 ~ "b" }}', 'aC1b', b'\1\2\0\1'),
        ('{{ "a" ~ "b" }}', 'ab', b'\1\1'),
        ('{{ ("a" if c else "b") + c | trim }}', 'aC', b'\1\2'),
        ('{% set x %}a{{ c }}{% endset %}{{ x }}', 'aC', b'\1\2'),
        ('{% set ns = namespace(x="a") %}{% set ns.x = ns.x + c %}{{ ns.x }}', 'aC', b'\1\2'),
        (
            '{% macro f(x, y="b") %}a{{ x }}{{ y }}{% endmacro %}{{ f(c) }}{{ f(c, y=c) | upper }}',
            'aCbACC',
            b'\1\2\1\1\2\2',
        ),
        ('{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}{{ c }}{% endcall %}', '<C>', b'\1\2\1'),
        ('{{ ["a", c] | join("-") }}', 'a-C', b'\1\1\2'),
        ('{{ [{"x": c}, {"x": "b"}] | join(",", attribute="x") }}', 'C,b', b'\2\1\1'),
        ('{{ ["a", c] | join }}', 'aC', b'\1\2'),
        ('{{ "-".join(["a", c]) }}', 'a-C', b'\1\1\2'),
        ('{% set x = ["a"] + [("b",)] %}{{ x[0] }}{{ x[1][0] }}', 'ab', b'\1\1'),
        ('{{ c | replace("C", "ab") }}', 'ab', b'\1\1'),
        ('{{ {"k": "a"}["k"] }}{{ {"C": "b"}[c] }}', 'ab', b'\1\1'),
        ('{{ (["a"] + ["b"])[1] }}{{ ("a", "b")[0] }}', 'ba', b'\1\1'),
        ('{{ c | default("a") }}{{ d | default("a") }}', 'Ca', b'\2\1'),
        ('{% for x in ["a", c] %}{{ x }}{{ loop.cycle("1", "2") }}{% endfor %}', 'a1C2', b'\1\1\2\1'),
        ('{% filter upper %}a{{ c }}{% endfilter %}', 'AC', b'\1\2'),
        ('{% set a = "a" %}{{ a | tojson }}{{ [c] | tojson }}', '"a"["C"]', b'\2' * 8),
        ('{{ 1.5 }}{{ true }}{{ none }}', '1.5TrueNone', b'\1' * 11),
        ('{{ "a%s" | format(c) }}{{ "a".center(3) }}', 'aC a ', b'\0' * 5),
        ('a{% generation %}b{{ c }}{% endgeneration %}', 'abC', b'\1\1\2'),
    ],
)
def test_template_keeps_origins(source, text, origin):
    assert origins(source, c=C) == (text, origin)


def test_generation_block_marks_answers_only():
    answer = traced('C', CONTENT | 4)
    assert origins('a{% generation %}b{{ c }}{% endgeneration %}{{ c }}', c=answer) == ('abCC', bytes([1, 9, 14, 6]))


def test_markup_escapes_traced_text():
    assert origins('{{ "<" + (c | safe) + ">" }}', c=C)[0] == '&lt;C&gt;'
    assert origins('{{ c | safe }}', c=traced('<', CONTENT))[0] == '<'
