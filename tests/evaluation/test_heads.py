"""Standard errors of scores of a head: of means by their formula, of others by the bootstrap over rows."""

import numpy as np
import pytest

from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.evaluation.heads import output_of, rates, scores
from lmtrain.evaluation.statistics import standard_error
from lmtrain.tasks import TASKS, span
from lmtrain.tasks.prepare import encode_rows


def test_the_standard_error_of_an_accuracy_is_that_of_a_proportion():
    rng = np.random.default_rng(0)
    pairs = [('ab'[a], 'ab'[b]) for a, b in rng.integers(2, size=(200, 2))]
    results = rates(TASKS['classify'].rate, pairs)
    p = np.mean([a == b for a, b in pairs])
    assert results['accuracy'] == p
    assert results['accuracy_stderr'] == pytest.approx((p * (1 - p) / 199) ** 0.5, rel=0.1)
    assert 0 < results['macro_f1_stderr'] < 0.06


def test_entities_of_all_rows_are_counted_together():
    pairs = [(['B-X', 'O'], ['B-X', 'O']), (['B-X', 'B-X'], ['O', 'O'])] * 20
    results = rates(TASKS['tag'].rate, pairs)
    assert results['entity_f1'] == pytest.approx(2 * 20 / (20 + 60))
    assert 0.02 < results['entity_f1_stderr'] < 0.1
    assert scores(TASKS['span'], [(['Ada'], 'ada')])[0] == {
        'exact_match': 1.0,
        'exact_match_stderr': None,
        'answer_f1': 1.0,
        'answer_f1_stderr': None,
    }


def test_answers_of_spans_are_compared_once_for_each_row(monkeypatch):
    words = 'the quick brown fox jumps over a lazy dog'.split()
    rng = np.random.default_rng(0)
    pairs = [([' '.join(rng.choice(words, 3)) for _ in range(3)], ' '.join(rng.choice(words, 3))) for _ in range(50)]
    pairs += [(['fox'], 'a fox')] * 10
    calls = []
    monkeypatch.setattr(span, 'normal', lambda text, original=span.normal: calls.append(text) or original(text))
    results, lines = scores(TASKS['span'], pairs)
    assert len(calls) <= 4 * 3 * len(pairs)
    each = [span.rate([pair]) for pair in pairs]
    assert [line['right'] for line in lines] == [own['exact_match'] for own in each]
    for name in ('exact_match', 'answer_f1'):
        values = [own[name] for own in each]
        assert results[name] == span.rate(pairs)[name] == pytest.approx(np.mean(values))
        assert results[f'{name}_stderr'] == standard_error(values) > 0


def test_an_added_head_is_preferred(computes):
    model, params, _ = computes
    assert output_of(model, params | {'heads': {'tag': {}}}, TASKS['tag']) == 'tag'


def test_rows_that_are_too_long_are_counted_or_refused():
    rows = [Row(f'r:{i}', {'text': 'a' * size, 'label': 'x'}) for i, size in enumerate((3, 30, 40))]
    form = {'text': ('text',), 'label': 'label', 'labels': ('x', 'y')}
    data, count = encode_rows(rows, TASKS['classify'], Bytes(), 16, **form, too_long='cut')
    assert count == 2 and np.diff(data.examples['test'].begins).tolist() == [5, 16, 16]
    with pytest.raises(ValueError, match='r:1: 32 tokens'):
        encode_rows(rows, TASKS['classify'], Bytes(), 16, **form, too_long='error')
