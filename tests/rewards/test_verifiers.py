"""Verifiers: one contract for all of them, and what each accepts."""

import decimal

import pytest

from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.rewards import verifiers
from lmtrain.rewards.reward import Limits

# One line for each verifier: expected value, a right completion, a wrong one, an expected value that is refused.
CONTRACT = {
    'exact': ('12', ' 12\n', '12 3', {}),
    'number': ('so it is #### 1,234.50', 'I get 1234.5', '1234.51', 'none'),
    'json': ({'type': 'object', 'required': ['a']}, '{"a": 1}', '{"b": 1}', {'typ': 'object'}),
    'regex': (r'\d and', '12 and', 'twelve', '('),
    'unit_test': ('assert f(2) == 4', '```python\ndef f(x):\n  return 2 * x\n```', 'def f(x): return x', 'assert'),
}
# Texts that a model may write; each verifier must give each a number or a reason.
HOSTILE = (
    '',
    '\0',
    '\ud800',
    '9' * 10_000,
    '[' * 10_000,
    '1e' + '9' * 50,
    'NaN',
    '\u0661',
    '}{',
    '```\n```',
    '(' * 999,
)


def verifier(name: str, pattern: str = ''):
    return verifiers.VERIFIERS[name](verifiers.VerifierSettings('answer', pattern, Limits(2.0, 256)))


@pytest.mark.parametrize('name', verifiers.VERIFIERS)
def test_contract(name):
    expected, right, wrong, refused = CONTRACT[name]
    each = verifier(name)
    try:
        completions = [right, wrong, *HOSTILE]
        scores = each.score([''] * len(completions), completions, [{'answer': expected}] * len(completions))
        assert scores[:2] == [1.0, 0.0]
        assert all(isinstance(score, str) or score == 0.0 for score in scores[2:]), scores
        each.check(Row('rows.jsonl:1', {'answer': expected}))
        with pytest.raises(InputError, match=r"rows\.jsonl:2: no field 'answer'.*config\.reward\.field"):
            each.check(Row('rows.jsonl:2', {'question': ''}))
        with pytest.raises(InputError, match=r"rows\.jsonl:3: 'answer'"):
            each.check(Row('rows.jsonl:3', {'answer': refused}))
    finally:
        each.close()


@pytest.mark.parametrize(
    ('name', 'expected', 'completion', 'score'),
    [
        ('exact', ['red', 'blue'], 'blue', 1.0),
        ('exact', 3, '3', 1.0),
        ('exact', '3', '3.0', 0.0),
        ('number', 42, 'first 41, then -42', 0.0),
        ('number', -0.5, '-.5', 1.0),
        ('number', '1e3', '1000', 1.0),
        ('number', 1_000_000_001, '1000000000', 0.0),
        ('json', '{"type": "array", "items": {"type": "integer"}}', '[1, 2]', 1.0),
        ('json', {'type': 'number'}, 'NaN', 0.0),
        ('unit_test', 'assert x == 1', 'x = 1', 1.0),
    ],
)
def test_what_is_right(name, expected, completion, score):
    assert verifier(name).score([''], [completion], [{'answer': expected}]) == [score]


@pytest.mark.parametrize(
    ('text', 'last'),
    [
        ('the point (3,4)', 4),
        ('the roots are 1,2', 2),
        ('1,2345', 2345),
        ('12345,678', 678),
        ('10-5', 5),
        ('GPT-4', 4),
        ('5 - -3', -3),
        ('1,234,567.5', '1234567.5'),
        ('-3', -3),
        ('(-3)', -3),
        ('x=-3', -3),
        ('答案是-3', -3),
        ('x = \u22123', -3),
        ('10\u22125', 5),
        ('2e\u22122', '0.02'),
        ('.5', '0.5'),
        ('1e3', 1000),
        ('2E-2', '0.02'),
        ('$5', 5),
        ('50%', 50),
        ('12, or so', 12),
        (r'\boxed{1{,}200}', 1200),
        (r'1\,200', 1200),
        (r'$10,\!080$', 10080),
        (r'3\,cm and 12\,m', 12),
        (r'(3{,}4)', 4),
        ('x2', 2),
    ],
)
def test_commas_and_signs_of_a_number(text, last):
    assert verifiers.last_number(text) == decimal.Decimal(last)
    assert verifiers.number(text, '34') == 0.0


def test_one_pattern_for_all_rows_and_a_limit_for_each_match():
    each = verifiers.VERIFIERS['regex'](verifiers.VerifierSettings('answer', '(a+)+b', Limits(0.2, 256)))
    try:
        each.check(Row('rows.jsonl:1', {}))
        assert each.score([''] * 3, ['a' * 40, 'xaab', 'b'], [{}] * 3) == ['time limit', 1.0, 0.0]
    finally:
        each.close()
    with pytest.raises(InputError, match='config.reward.pattern'):
        verifier('regex', '(')
