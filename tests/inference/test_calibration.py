"""Calibration: the formula, and content-free prompts after the same demonstrations."""

import numpy as np
import pytest

from lmtrain.data.rows import Row
from lmtrain.inference import prompting
from lmtrain.inference.calibration import CONTENT_FREE, calibrate, content_free, fit_temperature, log_softmax
from lmtrain.inference.questions import Question, question


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_calibration_is_the_formula():
    rng = np.random.default_rng(0)
    nats, free = rng.normal(-4, 2, 5), rng.normal(-3, 2, (3, 5))
    prior = np.mean([softmax(each) for each in free], axis=0)
    q = np.diag(1 / prior) @ softmax(nats)
    np.testing.assert_allclose(calibrate(nats, list(free)), np.log(q / q.sum()), rtol=1e-12)


def test_inputs_without_content_replace_every_field():
    row = Row('here', {'a': 'one', 'b': 'two', 'c': 'x'})
    asked = question(row, 'A: {a} {{B}}: {b}\n=> {c}', 'c', ('x', 'y'))
    free = content_free(asked, 'A: {a} {{B}}: {b}\n=> {c}', 'N/A')
    assert free == asked._replace(context='A: N/A {B}: N/A\n=> ')
    talk = ({'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'u'})
    free = content_free(Question('here', 'json', (), 'x', talk), '', 'N/A')
    assert [message['content'] for message in free.messages] == ['s', 'N/A'] and talk[1]['content'] == 'u'


ROWS = [Row(f'rows:{i}', {'text': text, 'gold': 'ab'[i % 2]}) for i, text in enumerate(['cat', 'dog', 'hen', 'owl'])]
FORM = {'template': '{text} is {gold}', 'answer': 'gold', 'choices': ('a', 'b'), 'batch_size': 8}


def test_scores_are_calibrated_after_the_same_demonstrations(computes):
    settings = prompting.PromptSettings(**FORM, shots=2, instruction='Say it', calibrated=CONTENT_FREE)
    scores = prompting.score(*computes, ROWS, settings)
    right = []
    for row, scored in zip(ROWS, scores.rows, strict=True):
        asked, pool = prompting.ask([row], settings, ROWS)
        (drawn,) = prompting.select(asked, pool, 2)
        free = [content_free(asked[0], settings.template, text) for text in CONTENT_FREE]
        by_hand = prompting.score_choices(*computes, free, [drawn] * 3, settings)
        np.testing.assert_allclose(scored['calibrated_nats'], calibrate(scored['nats'], by_hand.nats), atol=1e-5)
        right.append('ab'[int(np.argmax(scored['calibrated_nats']))] == row.fields['gold'])
    assert scores.results['accuracy_calibrated'] == np.mean(right)
    assert 'accuracy calibrated' in prompting.line(scores.results)
    without = prompting.score(*computes, ROWS, settings._replace(calibrated=()))
    assert 'accuracy_calibrated' not in without.results
    assert without.results['computed_tokens'] < scores.results['computed_tokens']


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'choices': (), 'calibrated': CONTENT_FREE}, 'calibration compares choices'),
        ({'instruction': 'a', 'system': 'b'}, 'a system text needs a chat template'),
    ],
)
def test_what_is_refused(computes, changes, message):
    settings = prompting.PromptSettings(**FORM | changes)
    with pytest.raises(ValueError, match=message):
        prompting.score(*computes, ROWS, settings)


def test_the_temperature_reaches_a_grid_search_also_with_fewer_choices():
    rng = np.random.default_rng(0)
    scores, right = 4 * rng.normal(size=(300, 3)), rng.integers(0, 2, 300)
    scores[np.arange(300), right] += 3
    scores[:100, 2] = -np.inf  # rows of two choices

    def loss(temperature):
        return -np.mean(log_softmax(scores / temperature)[np.arange(300), right])

    fitted = fit_temperature(scores, right)
    assert loss(fitted) == pytest.approx(min(map(loss, np.geomspace(0.1, 50, 400))), abs=1e-4) and fitted > 1.5
    assert fit_temperature(scores / 2, right) == pytest.approx(fitted / 2, rel=1e-3)
