"""Estimators and exact laws of experiments/in_context against closed forms, and its code at a tiny size."""

import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from experiments.in_context import __main__ as main
from experiments.in_context import ginc, plots, regression
from experiments.in_context.hidden_markov import Mixture

NOISE = 0.5


def drawn(tasks=3):
    prior = regression.Prior(tasks, dimensions=2, points=5, noise=NOISE)
    return prior, *map(np.asarray, prior.draw(jax.random.key(1), 4))


def test_ridge_is_least_squares_with_a_row_for_each_dimension_of_the_prior():
    _, x, y, _ = drawn()
    predicted = np.asarray(regression.ridge(x, y, NOISE))
    assert np.allclose(predicted[:, 0], 0)
    rows, values = np.concatenate([x[1, :3], NOISE * np.eye(2)]), np.concatenate([y[1, :3], np.zeros(2)])
    w = np.linalg.lstsq(rows, values, rcond=None)[0]
    np.testing.assert_allclose(predicted[1, 3], x[1, 3] @ w, rtol=1e-4)


def test_discrete_posterior_mean_is_bayes_rule():
    prior, x, y, _ = drawn()
    predicted = np.asarray(regression.discrete_posterior_mean(x, y, prior.pool_MD, NOISE))
    np.testing.assert_allclose(predicted[:, 0], (x[:, 0] @ prior.pool_MD.T).mean(1), rtol=1e-5)
    likelihood = scipy.stats.norm.pdf(y[2, :4, None], x[2, :4] @ prior.pool_MD.T, NOISE).prod(0)
    expected = (likelihood / likelihood.sum()) @ (prior.pool_MD @ x[2, 4])
    np.testing.assert_allclose(predicted[2, 4], expected, rtol=1e-4)


def test_gradient_descent_begins_with_one_product_and_ends_at_least_squares():
    _, x, y, _ = drawn()
    one = np.asarray(regression.gradient_descent(x, y, [0.9, 0.9, 0.3, 0.9, 0.9], 1))
    np.testing.assert_allclose(one[0, 2], 0.3 * (x[0, :2] * y[0, :2, None]).mean(0) @ x[0, 2], rtol=1e-4)
    many = np.asarray(regression.gradient_descent(x[:1], y[:1], [0.3] * 5, 400))
    w = np.linalg.lstsq(x[0, :4], y[0, :4], rcond=None)[0]
    np.testing.assert_allclose(many[0, 4], x[0, 4] @ w, atol=0.01)


@pytest.mark.slow
def test_a_prediction_reads_the_pairs_before_it_and_its_own_x_only():
    prior, x, y, _ = drawn()
    model = regression.model_of(prior, 1, 8, 2)
    params = model.init(jax.random.key(0), {'x': x, 'y': y})['params']
    gradients = jax.grad(lambda x, y: model.apply({'params': params}, {'x': x, 'y': y})['prediction'][0, 2], (0, 1))(
        x, y
    )
    read_x, read_y = np.abs(gradients[0][0]).sum(-1) > 0, np.abs(gradients[1][0]) > 0
    assert read_x.tolist() == [True, True, True, False, False] and read_y.tolist() == [True, True, False, False, False]
    assert not np.abs(gradients[0][1:]).any()


def test_exact_law_is_the_sum_over_all_hidden_paths():
    mixture = Mixture.draw(3, concepts=2, entities=2, properties=2, symbols=3)
    text = mixture.sample(np.random.default_rng(0), np.array([1]), 3)
    predicted = mixture.predict(text)[0]
    np.testing.assert_allclose(predicted.sum(-1), 1)
    pairs = list(itertools.product(range(2), range(2)))

    def probability(symbols):
        total = 0.0
        for concept in range(2):
            for path in itertools.product(pairs, repeat=len(symbols)):
                if all(mixture.table_ES[pair] == symbol for pair, symbol in zip(path, symbols, strict=True)):
                    steps = itertools.pairwise(path)
                    moves = [
                        mixture.entities_EE[a, c] * mixture.properties_CSS[concept, b, d] for (a, b), (c, d) in steps
                    ]
                    total += 0.5 / len(pairs) * np.prod(moves)
        return total

    before = text[0].tolist()
    expected = [probability([*before, symbol]) / probability(before) for symbol in range(len(mixture.symbols))]
    np.testing.assert_allclose(predicted[3], expected)


def test_prompts_end_before_their_answer():
    mixture = Mixture.draw(0, **ginc.MIXTURE)
    symbols, answers = mixture.prompts(np.random.default_rng(0), prompts=6, examples=3, length=4)
    assert symbols.shape == (6, 3 * 5 + 3) and (symbols[:, [4, 9, 14]] == 0).all() and answers.shape == (6,)
    right = mixture.predict(symbols)[:, -1].argmax(-1) == answers
    assert right.any() and not np.isnan(mixture.predict(symbols)).any()


@pytest.mark.slow
def test_both_parts_run_at_a_tiny_size(tmp_path):
    options = main.flags(
        '--dimensions=2 --points=3 --layers=1 --width=8 --batch_size=8 --regression_steps=100 --prompts=1024'.split()
    )
    trials = [main.regression_trial(options, tasks=2)]
    assert trials[0]['curve'][-1][0] == 100
    errors = trials[0]['results']['pool']['error']
    assert min(errors, key=lambda name: sum(errors[name])) == 'dMMSE', (
        'the Bayes-optimal predictor has the lowest error'
    )
    sizes = {'documents': 400, 'length': 15, 'test': 4, 'num_layers': 1, 'width': 8, 'batch_size': 8, 'steps': 4}
    trials.append(ginc.trial(tmp_path, **sizes, seed=0))
    rows = main.figures(trials)
    assert len(rows) == 3 + 2 + len(ginc.EXAMPLES) and all(row['figure'] for row in rows)
    plots.regression(trials[:1], tmp_path / 'regression.png')
    plots.ginc(trials[1], tmp_path / 'ginc.png')
    assert (tmp_path / 'ginc.png').stat().st_size > 1000
