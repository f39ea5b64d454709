"""In-context linear regression: a transformer trained on prompts, and the estimators that it is compared with.

The setting is that of Raventos et al. (arXiv 2306.15063). A task is a vector w. A prompt is a sequence of points
x_1, y_1, ..., x_K, y_K with x ~ N(0, I) and y = w . x + noise. The prior of w is uniform over M tasks, which were drawn
from N(0, I) once, or it is N(0, I) itself (M = 0). The model predicts every y from the pairs before it.

Shapes: B prompts, K points of a prompt, D dimensions, M tasks.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from lmtrain import optimizer
from lmtrain.models.hooks import NO_SHARDING
from lmtrain.models.layers import Norm
from lmtrain.models.linear import Embed, Linear, stddev
from lmtrain.models.transformer import Network, Transformer
from lmtrain.training import state, step


@dataclasses.dataclass(frozen=True)
class Prior:
    """Distribution of prompts: `tasks` vectors w, 0 for N(0, I); `seed` draws these tasks."""

    tasks: int
    dimensions: int
    points: int
    noise: float
    seed: int = 0

    @functools.cached_property
    def pool_MD(self) -> np.ndarray:
        """The tasks, float32 [M, D]."""
        drawn = np.random.default_rng([self.seed, self.tasks]).normal(size=(self.tasks, self.dimensions))
        return drawn.astype(np.float32)

    def draw(self, key, prompts: int):
        """(x [B, K, D], y [B, K] with noise, w . x [B, K] without it), float32."""
        keys = jax.random.split(key, 3)
        x_BKD = jax.random.normal(keys[0], (prompts, self.points, self.dimensions))
        if self.tasks:
            w_BD = jnp.asarray(self.pool_MD)[jax.random.randint(keys[1], (prompts,), 0, self.tasks)]
        else:
            w_BD = jax.random.normal(keys[1], (prompts, self.dimensions))
        clean_BK = jnp.einsum('bkd,bd->bk', x_BKD, w_BD)
        return x_BKD, clean_BK + self.noise * jax.random.normal(keys[2], clean_BK.shape), clean_BK


# --- estimators: (x [B, K, D], y [B, K]) -> predictions [B, K], of point k from the k points before it


def _moments(x_BKD, y_BK):
    """Sums of x x^T [B, K, D, D] and of x y [B, K, D] over the points before each point."""
    squares = jnp.einsum('bki,bkj->bkij', x_BKD, x_BKD)
    products = x_BKD * y_BK[..., None]
    return jnp.cumsum(squares, axis=1) - squares, jnp.cumsum(products, axis=1) - products


def ridge(x_BKD, y_BK, noise: float):
    """The posterior mean of w . x for w ~ N(0, I): ridge regression with lambda = noise^2."""
    squares, products = _moments(x_BKD, y_BK)
    penalty = noise**2 * jnp.eye(x_BKD.shape[-1])[None, None]
    w_BKD = jnp.linalg.solve(squares + penalty, products[..., None])[..., 0]
    return jnp.sum(w_BKD * x_BKD, axis=-1)


def discrete_posterior_mean(x_BKD, y_BK, pool_MD, noise: float):
    """The posterior mean of w . x for w uniform over a pool ("dMMSE", arXiv 2306.15063, equation 3)."""
    all_BKM = jnp.einsum('bkd,md->bkm', x_BKD, pool_MD)
    log_likelihood = -0.5 * jnp.square((y_BK[..., None] - all_BKM) / noise)
    before = jnp.cumsum(log_likelihood, axis=1) - log_likelihood
    return jnp.sum(jax.nn.softmax(before, axis=-1) * all_BKM, axis=-1)


def gradient_descent(x_BKD, y_BK, rate_K, steps: int):
    """w . x after gradient descent from w = 0 on half of the mean squared error of the points before."""
    rate_1K1 = jnp.asarray(rate_K)[None, :, None]
    squares, products = _moments(x_BKD, y_BK)
    count = jnp.maximum(jnp.arange(x_BKD.shape[1]), 1)[None, :, None]
    w_BKD = jnp.zeros_like(x_BKD)
    for _ in range(steps):
        w_BKD += rate_1K1 * (products - jnp.einsum('bkij,bkj->bki', squares, w_BKD)) / count
    return jnp.sum(w_BKD * x_BKD, axis=-1)


# --- the model


class RegressionNetwork(Network):
    """The layers of a Transformer between two linear maps, because points are vectors and not ids of tokens."""

    @nn.compact
    def __call__(self, batch, train=False):
        """{'prediction': [B, K]}, each from the points before it; batch: x [B, K, D], y [B, K]."""
        m, (B, K, D) = self.model, batch['x'].shape
        # Tokens 2k and 2k + 1 are (0, x_k) and (y_k, 0): x_k sees the pairs before it, but not its own y_k.
        first, second = jnp.zeros((B, K, D + 1)).at[..., 1:].set(batch['x']), jnp.zeros((B, K, D + 1))
        points = jnp.stack([first, second.at[..., 0].set(batch['y'])], axis=2).reshape(B, 2 * K, D + 1)
        tokens = {'tokens': jnp.zeros((B, 2 * K), jnp.int32)}  # for their shape
        inputs, positions = self.attention_inputs(tokens, cache=None, past=(), shift=0, hooks=NO_SHARDING)
        x_BTD = Linear(m.width, False, 1.0 / (D + 1) ** 0.5, name='read')(points)
        x_BTD += Embed(m.max_len, m.width, name='positions')(positions)
        x_BTD, _ = self.layers(x_BTD, inputs, None, None)
        x_BTD = Norm(m.norm, m.norm_eps, 'norm' in m.biases, name='final_norm')(x_BTD)
        return {'prediction': Linear(1, False, stddev(m.width), name='write')(x_BTD[:, ::2])[..., 0]}


class RegressionTransformer(Transformer):
    """A Transformer that reads points: see RegressionNetwork."""

    def init(self, key, batch) -> dict:
        return RegressionNetwork(self).init(key, batch)

    def apply(self, variables, batch, *, train: bool = False, rngs=None) -> dict:
        return RegressionNetwork(self).apply(variables, batch, train)


def squared_error(forward, batch):
    """An objective of lmtrain (docs/design.md): the squared error of every y."""
    values = jnp.square(forward(batch)['prediction'] - batch['y'])
    return {'loss': values}, jnp.ones_like(values)


def model_of(prior: Prior, num_layers: int, width: int, num_heads: int) -> RegressionTransformer:
    """GPT-2's layers, as in the paper."""
    model = base.get_config().model
    model.update({'num_layers': num_layers, 'width': width, 'num_heads': num_heads, 'max_len': 2 * prior.points})
    model.update({'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu', 'bias': True, 'vocab_size': 1})
    model.unroll = 1  # compiles fastest
    return RegressionTransformer(**model)


def train(prior: Prior, model, *, steps: int, batch_size: int, learning_rate: float, key, interval: int = 100):
    """(parameters, [(step, mean loss of the last `interval` steps)]): Adam, the rate rises and falls linearly."""
    settings = {'weight_decay': 0.0, 'decayed': '.*', 'b1': 0.9, 'b2': 0.999, 'eps': 1e-8}
    tx = optimizer.optimizer('adamw', **settings)
    schedule = optimizer.schedule('linear', warmup=0.2, start=0.0, decay=0.0, final=0.0)
    init_key, data_key = jax.random.split(key)

    def batch(key):
        x, y, _ = prior.draw(key, batch_size)
        return {'x': x, 'y': y}

    current = state.create(init_key, model.init(init_key, batch(data_key))['params'], '.*', tx)
    gradient = step.make_gradient(model, squared_error)
    update = step.make_train_step(
        gradient, tx, schedule, learning_rate=learning_rate, trainable=current.trainable, clip=1.0
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def run(current, first):
        """`interval` steps as one program, each on new prompts."""

        def one(current, index):
            new, metrics = update(current, batch(jax.random.fold_in(data_key, index)), index / steps)
            return new, metrics['loss']

        current, losses = jax.lax.scan(one, current, first + jnp.arange(interval))
        return current, jnp.mean(losses)

    curve = []
    for first in range(0, steps, interval):
        current, loss = run(current, first)
        curve.append((first + interval, loss))
    return current.params, [(number, float(loss)) for number, loss in curve]


# --- measurement


def predictions(prior: Prior, model, params, x_BKD, y_BK, descents: dict) -> dict[str, jax.Array]:
    """{estimator: predictions [B, K]}; `descents`: {number of steps: rates [K]} of gradient descent."""
    out = {
        'model': model.apply({'params': params}, {'x': x_BKD, 'y': y_BK})['prediction'],
        'ridge': ridge(x_BKD, y_BK, prior.noise),
    }
    if prior.tasks:
        out['dMMSE'] = discrete_posterior_mean(x_BKD, y_BK, jnp.asarray(prior.pool_MD), prior.noise)
    return out | {f'GD {steps}': gradient_descent(x_BKD, y_BK, rates, steps) for steps, rates in descents.items()}


def choose_rates(prior: Prior, steps: tuple[int, ...], key, prompts: int) -> dict[int, list[float]]:
    """{number of steps: for each k the rate of gradient descent with the lowest error on prompts of N(0, I)}."""
    x, y, clean = dataclasses.replace(prior, tasks=0).draw(key, prompts)
    grid = np.array([0.05 * 1.25**i for i in range(18)], np.float32)

    def errors(number: int) -> np.ndarray:
        """[rates, K]"""
        one = jax.jit(lambda rate: jnp.mean(jnp.square(gradient_descent(x, y, rate, number) - clean), axis=0))
        return np.stack([one(np.full(prior.points, rate)) for rate in grid])

    return {number: grid[errors(number).argmin(0)].tolist() for number in steps}


def measure(prior: Prior, model, params, descents: dict, *, key, prompts: int, batch: int = 1024) -> dict:
    """Errors and distances on prompts of the prior ('pool') and of new tasks from N(0, I) ('new').

    Returns {'pool' or 'new': {'error': {estimator: [K]}, 'stderr': the same, 'distance': {estimator: float}}}.
    error[k]: mean squared difference from w . x without noise, after k examples. distance: mean squared difference of
    the model's predictions from those of the estimator, over all k, divided by D (arXiv 2306.15063, section 2).
    """

    @functools.partial(jax.jit, static_argnums=0)
    def on(source, key):
        x, y, clean = source.draw(key, batch)
        out = predictions(prior, model, params, x, y, descents)
        squares = {name: jnp.square(each - clean) for name, each in out.items()}
        distance = {name: jnp.mean(jnp.square(each - out['model'])) / prior.dimensions for name, each in out.items()}
        return squares, distance

    results = {}
    for name, source in (('pool', prior), ('new', dataclasses.replace(prior, tasks=0))):
        if name == 'pool' and not prior.tasks:
            continue
        parts = [on(source, jax.random.fold_in(key, index)) for index in range(max(1, prompts // batch))]
        squares = {each: np.concatenate([part[0][each] for part in parts]) for each in parts[0][0]}
        results[name] = {
            'error': {each: values.mean(0).tolist() for each, values in squares.items()},
            'stderr': {each: (values.std(0) / len(values) ** 0.5).tolist() for each, values in squares.items()},
            'distance': {each: float(np.mean([part[1][each] for part in parts])) for each in parts[0][1]},
        }
    return results
