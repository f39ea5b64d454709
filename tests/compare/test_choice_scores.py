"""How likelihoods of answers become probabilities of classes."""

import numpy as np
import pytest

from lmtrain.compare import choice_scores
from lmtrain.data.rows import Row
from lmtrain.errors import NonFiniteOutput
from lmtrain.inference import calibration, prompting

CLASSES = ('dogs', 'mats', 'rats')
FORM = prompting.PromptSettings('{prompt}{completion}', 'completion', [' dogs', ' mats', ' ratss'], shots=2)
FORM = FORM._replace(calibrated=calibration.CONTENT_FREE)


class Loaded:
    model = params = tokenizer = None


@pytest.fixture
def scored(monkeypatch):
    """Scores of rows by a prompt that prefers the second class, and by their zero-shot prompt."""
    rng = np.random.default_rng(0)
    nats = {2: rng.normal(size=(8, 3)) + [0, 3, 0], 0: rng.normal(size=(8, 3)) + [0, 3, 0]}

    def score(model, params, tokenizer, rows, form, demonstrations, vectors):
        free = bool(form.calibrated)
        each = [
            {'nats': own} | ({'calibrated_nats': np.log([0.5, 0.3, 0.2])} if free else {}) for own in nats[form.shots]
        ]
        counts = {'shots_mean': form.shots / 2, 'prompt_tokens': 7.0 * form.shots, 'dropped': 4 * form.shots}
        return prompting.Scores(counts | {'cut': form.shots + 1}, each)

    monkeypatch.setattr(prompting, 'score', score)
    return nats


def normalised(values):
    return values - np.logaddexp.reduce(values, axis=1)[:, None]


def test_scores_of_choices(scored):
    rows = [Row('', {})] * 8
    likelihoods = choice_scores.of_rows(Loaded, (), FORM, rows, choice_scores.SCORES)
    assert likelihoods[1:] == (1.0, 14.0, 8, 3)  # of the prompts with demonstrations
    values = likelihoods.log_p
    assert tuple(values) == choice_scores.SCORES
    assert values['sum'] == pytest.approx(normalised(scored[2]))
    assert values['per_byte'] == pytest.approx(normalised(scored[2] / [5, 5, 6]))
    assert values['contrast'] == pytest.approx(normalised(scored[2] - scored[0]))
    assert np.exp(values['content_free'][0]) == pytest.approx([0.5, 0.3, 0.2])
    alone = choice_scores.of_rows(Loaded, (), FORM._replace(shots=0), rows, ('contrast',)).log_p
    assert alone['contrast'] == pytest.approx(np.log(1 / 3))  # without demonstrations they add nothing


@pytest.mark.parametrize(
    ('names', 'shots', 'left'),
    [
        (('sum', 'contrast', 'batch'), 0, ['sum', 'batch']),
        (('contrast',), 0, ['sum']),
        (('sum', 'contrast'), 2, ['sum', 'contrast']),
        (('contrast',), -1, ['contrast']),  # as many as fit
    ],
)
def test_what_demonstrations_add_is_a_score_of_prompts_with_demonstrations(names, shots, left):
    assert choice_scores.of_prompt(names, FORM._replace(shots=shots)) == left


def test_a_pool_that_gives_no_demonstrations_is_not_prepared(scored, monkeypatch):
    pools, score = [], prompting.score

    def recorded(*arguments, demonstrations, vectors):
        pools.append(demonstrations)
        return score(*arguments, demonstrations, vectors)

    monkeypatch.setattr(prompting, 'score', recorded)
    rows = [Row('', {})] * 8
    choice_scores.of_rows(Loaded, rows, FORM._replace(shots=0), rows, ('sum',))
    choice_scores.of_rows(Loaded, rows, FORM, rows, ('sum', 'contrast'))  # with demonstrations, and without
    assert pools == [(), rows, ()]


def test_batch_calibration_takes_the_preference_for_a_class_away(scored):
    rows = [Row('', {'label': CLASSES[i % 3]}) for i in range(8)]
    likelihoods = choice_scores.of_rows(Loaded, (), FORM, rows, ('sum', 'batch'))
    values = likelihoods.log_p
    plain, batch = choice_scores.candidates(likelihoods, rows, CLASSES)
    assert [plain[name] for name in choice_scores.PROMPTS] == [1.0, 14.0, 8, 3]
    assert (plain['score'], plain['bias'], batch['score']) == ('sum', [], 'batch')
    assert batch['bias'] == pytest.approx(values['sum'].mean(axis=0))
    assert plain['temperature'] == choice_scores.fit_temperature(values['sum'], rows, CLASSES) != 1
    assert (choice_scores.scaled(values, plain).argmax(1) == 1).mean() > 0.8
    counts = np.bincount(choice_scores.scaled(values, batch).argmax(1), minlength=3)
    assert counts.max() < 6
    one = choice_scores.scaled({'batch': values['batch'][:1]}, batch)  # the bias is that of the selection rows
    assert one[0] == pytest.approx(choice_scores.scaled(values, batch)[0])


def test_the_temperature_minimises_the_loss():
    rng = np.random.default_rng(0)
    rows = [Row('', {'label': CLASSES[i]}) for i in rng.integers(0, 3, 400)]
    sharp = 5 * calibration.log_softmax(rng.normal(size=(400, 3)))  # five times too confident, and right at random
    sharp[np.arange(400), [CLASSES.index(row.fields['label']) for row in rows]] += 5
    fitted = choice_scores.fit_temperature(sharp, rows, CLASSES)

    def loss(temperature):
        return choice_scores.score(calibration.log_softmax(sharp / temperature), rows, CLASSES).loss

    grid = np.geomspace(0.1, 50, 200)
    assert loss(fitted) == pytest.approx(min(map(loss, grid)), abs=1e-4) and 2 < fitted < 10
    assert loss(fitted) < loss(1.0) - 0.1


def test_accuracy_and_loss_are_those_of_the_labels():
    rows = [Row('', {'label': 'rats'}), Row('', {'label': 'dogs'})]
    scores = choice_scores.score(np.log([[0.2, 0.3, 0.5], [0.25, 0.5, 0.25]]), rows, CLASSES)
    assert scores.accuracy == 0.5 and scores.loss == pytest.approx((np.log(2) + np.log(4)) / 2)
    with pytest.raises(NonFiniteOutput):
        choice_scores.score(np.full((2, 3), np.nan), rows, CLASSES)
