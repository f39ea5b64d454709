"""Schedules, and optimizers against optax, published equations and their contract."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain import optimizer, tree

PLAIN = {'weight_decay': 0.1, 'decayed': '.*/(kernel|embedding)', 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8}
N, D, F = 3, 8, 16


@functools.cache
def params(seed=0):
    random = np.random.default_rng(seed)

    def drawn(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    return {
        'embed': {'embedding': drawn(12, D)},
        'layers': {
            'attention_norm': {'scale': jnp.ones((N, D))},
            'attention': {'query': {'kernel': drawn(N, D, D), 'bias': jnp.zeros((N, D))}},
            'mlp': {'up': {'kernel': drawn(N, D, F)}, 'down': {'kernel': drawn(N, F, D)}},
        },
        'final_norm': {'scale': jnp.ones(D)},
        'head': {'kernel': drawn(D, 12)},
    }


def leaves(values):
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(values).items()}


def run(tx, first, gradients, rate=0.1):
    """The parameters after a step for each gradient tree."""

    @jax.jit
    def steps(now):
        state = tx.init(now)
        for gradient in gradients:
            directions, state = tx.update(gradient, state, now)
            now = jax.tree.map(lambda p, d: p - rate * d, now, directions)
        return now

    return steps(first)


def names(state):
    """Shapes of everything but counts in a state."""
    return [leaf.shape for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]


# Schedules


def make(name='cosine', warmup=0.1, start=0.25, decay=0.2, final=0.05):
    return optimizer.schedule(name=name, warmup=warmup, start=start, decay=decay, final=final)


@pytest.mark.parametrize('name', optimizer.SCHEDULES)
def test_schedule_at_its_corners(name):
    factor = make(name)
    assert factor(0.0) == 0.25
    np.testing.assert_allclose(factor(0.05), 0.625, rtol=1e-6)
    assert factor(0.1) == 1.0
    assert factor(1.0) == np.float32(1.0 if name == 'constant' else 0.05)


def test_shapes_of_the_decay():
    half = {name: float(make(name, warmup=0.0, final=0.0)(0.75)) for name in optimizer.SCHEDULES}
    assert half['constant'] == half['wsd'] == 1.0
    np.testing.assert_allclose(half['linear'], 0.25, rtol=1e-6)
    np.testing.assert_allclose(half['cosine'], 0.5 * (1 + math.cos(0.75 * math.pi)), rtol=1e-6)
    np.testing.assert_allclose(make('wsd', final=0.0)(0.9), 0.5, rtol=1e-5)
    # Without warmup the first step has the peak, whatever `start` is.
    assert make('linear', warmup=0.0)(0.0) == 1.0


shares = st.just(0.0) | st.floats(1e-3, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(optimizer.SCHEDULES), shares, shares, st.floats(0.01, 1.0), shares, shares)
def test_schedule_is_between_zero_and_one_and_ends_exactly(name, warmup, start, decay, final, progress):
    try:
        factor = make(name, warmup, start, decay, final)
    except ValueError as error:
        assert warmup == 1.0 or (name == 'wsd' and warmup + decay > 1.0), error
        return
    assert 0.0 <= factor(np.float32(progress)) <= 1.0
    assert factor(np.float32(1.0)) == np.float32(1.0 if name == 'constant' else final)
    assert factor(np.float32(0.0)) == np.float32(start if warmup else 1.0)


def test_schedule_can_be_traced():
    factor = make('wsd')
    compiled = jax.jit(factor)
    for progress in np.linspace(0, 1, 11, dtype=np.float32):
        np.testing.assert_allclose(compiled(progress), factor(progress), rtol=1e-6)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'name': 'cosinus'}, "schedule.name = 'cosinus' is none of .*did you mean 'cosine'"),
        ({'warmup': -0.1}, r'schedule.warmup = -0.1: it must lie in \[0, 1\]'),
        ({'warmup': float('nan')}, 'schedule.warmup = nan'),
        ({'warmup': 1.0}, 'schedule.warmup = 1.0 leaves'),
        ({'final': 1.5}, 'schedule.final = 1.5'),
        ({'start': 2}, 'schedule.start = 2'),
        ({'name': 'wsd', 'decay': 0.0}, 'schedule.decay = 0.0 leaves'),
        ({'name': 'wsd', 'warmup': 0.5, 'decay': 0.6}, r'0.5 \+ 0.6 is more than the whole budget'),
    ],
)
def test_wrong_schedule_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


# Optimizers


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_optimizer_contract(name):
    """Finite, one compilation, moments of the given tree alone, and down to the minimum of a toy."""
    target, first = params(1), params(0)
    tx = optimizer.optimizer(name, **PLAIN | {'weight_decay': 0.0})

    def loss(now):
        return sum(jnp.mean((a - b) ** 2) for a, b in zip(jax.tree.leaves(now), jax.tree.leaves(target)))

    @jax.jit
    def step(now, state, rate):
        directions, state = tx.update(jax.grad(loss)(now), state, now)
        return jax.tree.map(lambda p, d: p - rate * d, now, directions), state

    now, state = first, jax.jit(tx.init)(first)
    structure, shapes = jax.tree.structure(state), jax.tree.map(jnp.shape, state)
    rate = 1.0 if name == 'sgd' else 0.1
    for i in range(200):
        now, state = step(now, state, jnp.float32(rate * (1 - i / 200)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((now, state)))
    assert jax.tree.structure(state) == structure and jax.tree.map(jnp.shape, state) == shapes
    assert step._cache_size() == 1
    assert jax.tree.structure(now) == jax.tree.structure(first)
    before, after = map(jax.jit(loss), (first, now))
    assert after < 0.02 * before


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_moments_are_of_the_trainable_tree_alone(name):
    whole, part = params(), {'layers': {'mlp': params()['layers']['mlp']}}
    size = {
        part_name: sum(math.prod(shape) for shape in names(optimizer.optimizer(name, **PLAIN).init(values)))
        for part_name, values in {'all': whole, 'mlp': part}.items()
    }
    assert 0 < size['mlp'] < size['all']
    count = tree.count(part)
    assert size['mlp'] <= {'adamw': 2 * count, 'adafactor': 1.1 * count}.get(name, count)


def test_adamw_is_optax_adamw():
    first, grads = params(), [params(seed) for seed in (5, 6, 7)]
    mask = tree.unflatten({path: path.endswith(('kernel', 'embedding')) for path in tree.flatten(first)})
    reference = optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=mask)

    @jax.jit
    def steps(now):
        state = reference.init(now)
        for grad in grads:
            updates, state = reference.update(grad, state, now)
            now = optax.apply_updates(now, updates)
        return now

    now = steps(first)
    got = leaves(run(optimizer.optimizer('adamw', **PLAIN), first, grads))
    for path, leaf in leaves(now).items():
        np.testing.assert_allclose(got[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


def directions(name, grads, **settings):
    """The optimizer's directions {path: float64} for each of the gradients, without decay."""
    tx = optimizer.optimizer(name, **PLAIN | {'weight_decay': 0.0} | settings)
    zeros = jax.tree.map(jnp.zeros_like, grads[0])
    state, result, update = tx.init(zeros), [], jax.jit(tx.update)
    for grad in grads:
        direction, state = update(grad, state, zeros)
        result.append({path: np.asarray(leaf, np.float64) for path, leaf in leaves(direction).items()})
    return result


def doubles(grads):
    return [{path: leaf.astype(np.float64) for path, leaf in leaves(grad).items()} for grad in grads]


def test_three_steps_of_lion_by_hand():
    """arXiv 2302.06675, algorithm 2: the sign of b1 m + (1 - b1) g, and then m <- b2 m + (1 - b2) g."""
    grads, b1, b2 = [params(seed) for seed in (5, 6, 7)], 0.7, 0.4
    m = dict.fromkeys(leaves(grads[0]), 0.0)
    for direction, grad in zip(directions('lion', grads, b1=b1, b2=b2), doubles(grads), strict=True):
        for path, g in grad.items():
            np.testing.assert_array_equal(direction[path], np.sign(b1 * m[path] + (1 - b1) * g), err_msg=path)
            m[path] = b2 * m[path] + (1 - b2) * g


def test_three_steps_of_sgd_by_hand():
    """Momentum m <- g + b1 m without dampening, and m is the direction (as PyTorch has it)."""
    grads, m = [params(seed) for seed in (5, 6, 7)], {}
    for direction, grad in zip(directions('sgd', grads, b1=0.7), doubles(grads), strict=True):
        m = {path: g + 0.7 * m.get(path, 0.0) for path, g in grad.items()}
        for path in m:
            np.testing.assert_allclose(direction[path], m[path], rtol=1e-5, atol=1e-6, err_msg=path)


def newton_schulz(matrix):
    """Five steps of the quintic of Keller Jordan (kellerjordan.github.io/posts/muon), float64."""
    x = matrix / np.linalg.norm(matrix)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_three_steps_of_muon_by_hand():
    """Nesterov's momentum: what is orthogonalised is g + 0.95 m with the m that g is part of."""
    grads, m = [params(seed) for seed in (5, 6, 7)], {}
    for direction, grad in zip(directions('muon', grads, b1=0.8, b2=0.9), doubles(grads), strict=True):
        for path in ('layers/attention/query/kernel', 'layers/mlp/up/kernel', 'layers/mlp/down/kernel'):
            m[path] = grad[path] + 0.95 * m.get(path, 0.0)
            for layer, ahead in enumerate(grad[path] + 0.95 * m[path]):
                expected = 0.2 * math.sqrt(max(ahead.shape)) * newton_schulz(ahead)
                np.testing.assert_allclose(direction[path][layer], expected, rtol=1e-3, atol=1e-4, err_msg=path)


def test_three_steps_of_adafactor_by_hand():
    """arXiv 1804.04235: means of g^2 by row and column (algorithm 4), decay 1 - t^-0.8 (7.2), clipped to RMS 1 (6).

    Small leaves have the whole second moment, and each layer of a stack is a leaf of its own.
    """
    shapes = {'head': (128, 160), 'layers': (2, 130, 128), 'bias': (24,)}
    grads = []
    for t in range(3):
        random = np.random.default_rng(t)
        parts = [jnp.asarray(random.normal(0.0, 0.5 * (t + 1), shape), jnp.float32) for shape in shapes.values()]
        grads.append({'head': {'kernel': parts[0]}, 'layers': {'up': {'kernel': parts[1]}}, 'norm': {'bias': parts[2]}})
    moments = {}
    for t, (direction, grad) in enumerate(zip(directions('adafactor', grads), doubles(grads), strict=True), 1):
        beta = 1 - t**-0.8
        pieces = (('head/kernel', ...), ('layers/up/kernel', 0), ('layers/up/kernel', 1), ('norm/bias', ...))
        for path, index in pieces:
            g = grad[path][index]
            square = g**2 + 1e-30
            new = (square.mean(1), square.mean(0)) if g.ndim == 2 else (square,)
            old = moments.get((path, index), (0.0,) * len(new))
            moments[path, index] = v = [beta * a + (1 - beta) * b for a, b in zip(old, new, strict=True)]
            second = np.outer(v[0], v[1]) / v[0].mean() if g.ndim == 2 else v[0]
            expected = g / np.sqrt(second)
            expected /= max(1.0, np.sqrt(np.mean(expected**2)))
            np.testing.assert_allclose(direction[path][index], expected, rtol=1e-4, atol=1e-5, err_msg=f'{path} {t}')


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_decay_is_decoupled_and_on_matching_paths_only(name):
    first = params()
    grads = [params(3)]
    with_decay = leaves(run(optimizer.optimizer(name, **PLAIN), first, grads))
    without = leaves(run(optimizer.optimizer(name, **PLAIN | {'weight_decay': 0.0}), first, grads))
    for path, leaf in leaves(first).items():
        # Whatever the gradient, what decay takes is rate * weight_decay * parameter.
        taken = 0.1 * 0.1 * leaf if path.endswith(('kernel', 'embedding')) else 0.0
        np.testing.assert_allclose(without[path] - with_decay[path], taken, atol=2e-6, err_msg=path)


@pytest.mark.parametrize('name', ['muon', 'adafactor', 'adamw'])
def test_layers_of_a_stack_are_independent(name):
    """What a layer gets does not depend on the layers stacked with it."""
    first, grads = params(), [params(seed) for seed in (3, 4)]
    stacked = leaves(run(optimizer.optimizer(name, **PLAIN), first, grads))

    def only(values, i):
        return values | {'layers': jax.tree.map(lambda leaf: leaf[i : i + 1], values['layers'])}

    alone = leaves(run(optimizer.optimizer(name, **PLAIN), only(first, 1), [only(grad, 1) for grad in grads]))
    for path, leaf in alone.items():
        if path.startswith('layers/'):
            np.testing.assert_allclose(stacked[path][1:2], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize('name', ['muon', 'adafactor', 'adamw'])
def test_segments_of_several_sizes_get_what_the_stack_gets(name):
    """And their state has the paths of the parameters, by which it is sharded."""
    tx, first, grads = optimizer.optimizer(name, **PLAIN), params(), [params(seed) for seed in (3, 4)]
    whole = leaves(tree.cut(run(tx, first, grads), (1, N - 1)))
    cut = [tree.cut(each, (1, N - 1)) for each in (first, *grads)]
    for path, leaf in leaves(run(tx, cut[0], cut[1:])).items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-5, atol=1e-6, err_msg=path)
    state = jax.tree_util.tree_leaves_with_path(tx.init(cut[0]))
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in state]
    for path in leaves({name: part for name, part in cut[0].items() if name.startswith('layers')}):
        assert any(own.endswith(f'/{path}') for own in paths), path


def test_state_of_segments_of_one_size_has_no_names_of_sizes():
    """A run that was saved before segments could differ in size goes on."""
    tx = optimizer.per_layer(optax.trace(0.9))
    two = {f'layers_{i}': {'scale': jnp.ones((2, D))} for i in range(2)}
    assert jax.tree.structure(tx.init(two)) == jax.tree.structure(optax.TraceState(two))


def test_muon_orthogonalises_the_matrices_of_layers():
    first = params()
    tx = optimizer.optimizer('muon', **PLAIN | {'weight_decay': 0.0})
    directions, state = jax.jit(lambda grads: tx.update(grads, tx.init(first), first))(params(3))
    for path, leaf in leaves(directions).items():
        if path.startswith('layers/') and path.endswith('kernel'):
            values = np.linalg.svd(leaf, compute_uv=False) / (0.2 * math.sqrt(max(leaf.shape[1:])))
            assert values.min() > 0.6 and values.max() < 1.3, path
        else:  # the first step of Adam is the sign of the gradient
            np.testing.assert_allclose(np.abs(leaf)[leaf != 0], 1.0, rtol=1e-4, err_msg=path)
    matrices = tree.flatten(state.matched.trace)
    assert set(matrices) == {f'layers/{p}/kernel' for p in ('attention/query', 'mlp/up', 'mlp/down')}
    assert not set(tree.flatten(state.others.mu)) & set(matrices)


def test_muon_steps_have_the_size_of_adamw_steps():
    """Moonlight's scale: an RMS of about 0.2, which AdamW's updates have in training (arXiv 2502.16982, 2.2)."""
    tx = optimizer.scale_by_muon()
    shapes = ((2, 64, 64), (2, 64, 256), (2, 256, 64))
    matrices = {str(shape): jax.random.normal(jax.random.key(0), shape) for shape in shapes}
    directions, _ = jax.jit(lambda m: tx.update(m, tx.init(m)))(matrices)
    for direction in directions.values():
        assert 0.15 < np.sqrt(np.mean(np.square(direction))) < 0.24


@pytest.mark.parametrize('scale', [0.0, 1e-12, 1.0, 1e12])
def test_orthogonalisation_is_scale_invariant(scale):
    matrix = scale * jax.random.normal(jax.random.key(0), (8, 12))
    values = np.linalg.svd(jax.jit(optimizer.orthogonalise)(matrix), compute_uv=False)
    assert (values == 0).all() if scale == 0 else values.min() > 0.6 and values.max() < 1.3


def test_muon_without_matrices_is_adamw():
    first = {'head': params()['head'], 'final_norm': params()['final_norm']}
    grads = [{'head': params(3)['head'], 'final_norm': params(3)['final_norm']}]
    muon, adamw = (leaves(run(optimizer.optimizer(name, **PLAIN), first, grads)) for name in ('muon', 'adamw'))
    for path, leaf in adamw.items():
        np.testing.assert_array_equal(muon[path], leaf)


def test_optimizer_takes_the_whole_config_section():
    from configs import base

    optimizer.optimizer(**base.get_config().optimizer).init(params())
    optimizer.schedule(**base.get_config().schedule)(0.5)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'name': 'adam'}, "optimizer.name = 'adam' is none of .*did you mean 'adamw'"),
        ({'learning_rate': -1.0}, r'optimizer.learning_rate = -1.0: it must lie in \[0, inf\)'),
        ({'learning_rate': float('nan')}, 'optimizer.learning_rate = nan'),
        ({'learning_rate': float('inf')}, 'optimizer.learning_rate = inf'),
        ({'learning_rates': (('embed/.*', -2.0),)}, 'learning_rates.*embed.* = -2.0'),
        ({'weight_decay': float('nan')}, 'optimizer.weight_decay = nan'),
        ({'b1': 1.0}, r'optimizer.b1 = 1.0: it must lie in \[0, 1\)'),
        ({'b2': -0.5}, 'optimizer.b2 = -0.5'),
        ({'eps': float('nan')}, 'optimizer.eps = nan'),
        ({'eps': 0.0}, "optimizer.eps = 0.0: it must be above 0 for 'adamw'"),
        ({'eps': 0.0, 'name': 'muon'}, "optimizer.eps = 0.0: it must be above 0 for 'muon'"),
        ({'clip': -1.0}, 'optimizer.clip = -1.0'),
        ({'accumulate': 0}, 'optimizer.accumulate = 0'),
    ],
)
def test_wrong_optimizer_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        optimizer.optimizer(**{'name': 'adamw'} | PLAIN | wrong)


def test_decay_with_an_invalid_regex_or_without_a_match():
    with pytest.raises(ValueError, match="optimizer.decayed: '\\(' is no regular expression"):
        optimizer.optimizer('adamw', **PLAIN | {'decayed': '('})
    tx = optimizer.optimizer('sgd', **PLAIN | {'decayed': '.*/weight'})
    grads = jax.tree.map(jnp.zeros_like, params())
    directions, _ = tx.update(grads, tx.init(params()), params())
    assert all(not leaf.any() for leaf in jax.tree.leaves(directions))


def test_decay_needs_a_match_of_the_whole_path():
    tx = optimizer.optimizer('sgd', **PLAIN | {'decayed': 'head|.*/kernel'})
    params = tree.unflatten({path: jnp.ones(2) for path in ('head/bias', 'ahead/kernel_2', 'head/kernel')})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = {path: bool(np.any(update)) for path, update in tree.flatten(updates).items()}
    assert moved == {'head/bias': False, 'ahead/kernel_2': False, 'head/kernel': True}
