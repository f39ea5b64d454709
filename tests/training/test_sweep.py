"""Each member of a sweep has the losses of its run alone, and the base exists once."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base, tiny
from lmtrain import adapt, optimizer, tree
from lmtrain.adapt import lora
from lmtrain.models import Transformer
from lmtrain.parallel import sharding
from lmtrain.tasks import token_loss
from lmtrain.training import build, choose, evaluate, load, resolve, state, step, sweep, train

LEARNS = 'layers/(mlp|attention_norm)/.*|final_norm/.*'
STEPS, ROWS, LENGTH, VOCAB = 20, 8, 12, 32
OWN = {'seed': 3, 'learning_rate': 1e-2}  # of the run that is swept


def members(seeds=(), learning_rates=(), orders=(), zipped=False):
    return sweep.members(seeds, learning_rates, orders, zipped, **OWN)


def test_every_rate_is_trained_with_every_seed():
    each = [(rate, seed) for rate in (0.1, 0.2, 0.3) for seed in (4, 5)]
    assert members((4, 5), (0.1, 0.2, 0.3)) == tuple(sweep.Member(seed, rate, seed) for rate, seed in each)
    orders = [member.order for member in members((4, 5), (0.1, 0.2), (7, 8))]
    assert orders == [7, 8, 7, 8]  # a repetition is a seed with its order
    assert [member[::2] for member in members((), (0.1, 0.2), (7, 8))] == [(3, 7), (3, 8)] * 2
    assert members((1, 2), (0.1, 0.2), zipped=True) == (sweep.Member(1, 0.1, 1), sweep.Member(2, 0.2, 2))


def test_lists_with_one_entry_are_for_all():
    assert members() == ()
    assert members(seeds=(1, 2)) == (sweep.Member(1, 1e-2, 1), sweep.Member(2, 1e-2, 2))
    assert members(learning_rates=(0.1, 0.2)) == (sweep.Member(3, 0.1, 3), sweep.Member(3, 0.2, 3))
    assert members((1, 2), (0.1,), (7, 8)) == (sweep.Member(1, 0.1, 7), sweep.Member(2, 0.1, 8))
    assert members((1, 2), orders=(0,)) == (sweep.Member(1, 1e-2, 0), sweep.Member(2, 1e-2, 0))


@pytest.mark.parametrize(
    ('lists', 'message'),
    [
        (
            {'seeds': (1, 2, 3), 'learning_rates': (0.1, 0.2), 'zipped': True},
            'sweep.seeds has 3, sweep.learning_rates has 2: .* per member',
        ),
        ({'seeds': (1, 2, 3), 'orders': (0, 1)}, 'sweep.seeds has 3, sweep.orders has 2: .* per seed'),
        ({'seeds': (1, -2)}, r'sweep.seeds has -2: .* \[0, 2\^32\)'),
        ({'orders': (1, 2.5)}, 'sweep.orders has 2.5'),
        ({'seeds': (0, True)}, 'sweep.seeds has True'),
        ({'learning_rates': (0.1, float('nan'))}, 'sweep.learning_rates has nan'),
        ({'seeds': (1,)}, 'one member'),
        ({'seeds': (1, 2, 1)}, r'Member\(seed=1, .*twice'),
    ],
)
def test_invalid_sweep_is_named(lists, message):
    with pytest.raises(ValueError, match=message):
        members(**lists)


@functools.cache
def parts(method='regex'):
    """(how the state of a run is created, what makes its step, that step compiled once for all learning rates).

    `method`: 'dora' adds leaves to one base, 'regex' lets leaves of the base learn.
    """
    config = base.get_config()
    config.model.update({'vocab_size': VOCAB, 'max_len': LENGTH, 'num_layers': 2, 'width': 16, 'num_heads': 2})
    config.model.unroll = 1
    config.model.dropout = 0.1  # by the member's own key
    model = Transformer(**config.model)
    config.optimizer.update({'weight_decay': 0.1, 'decayed': '.*(kernel|lora_a)'})
    tx = optimizer.optimizer(**config.optimizer)
    base_key, everywhere = jax.random.key(OWN['seed']), '.*/(query|value|up)/kernel'
    adapter = lora.adapter(rank=[(everywhere, 2)], alpha=[(everywhere, 4.0)], dora=True)

    def create(key):
        params = model.init(base_key if method == 'dora' else key, {'tokens': np.zeros((1, LENGTH), np.int32)})[
            'params'
        ]
        if method == 'dora':
            params = adapt.extend(adapter, key, params)
        return state.create(jax.random.fold_in(key, 1), params, lora.TRAINABLE if method == 'dora' else LEARNS, tx)

    shapes = jax.eval_shape(create, jax.random.key(0))
    make = functools.partial(
        step.make_train_step,
        step.make_gradient(model, token_loss.loss, accumulate=2),
        tx,
        optimizer.schedule(**config.schedule),
        clip=0.5,
        trainable=shapes.trainable,
    )

    @jax.jit
    def alone(state, batch, progress, rate):
        return make(learning_rate=rate)(state, batch, progress)

    return create, make, alone


class Drawn:
    """A stream of rows that count in sevens."""

    def __init__(self, seed):
        self.seed = seed

    def batch(self, step):
        rng = np.random.default_rng((self.seed, step))
        drawn = (rng.integers(0, VOCAB, (ROWS, 1)) + 7 * np.arange(LENGTH + 1)).astype(np.int32) % VOCAB
        mask = rng.integers(0, 2, (ROWS, LENGTH)).astype(np.float32)
        return {'tokens': drawn[:, :-1], 'targets': drawn[:, 1:], 'loss_mask': mask}


def first(members, method='regex'):
    create, _, _ = parts(method)
    keys = jax.vmap(jax.random.key)(jnp.array([member.seed for member in members], jnp.uint32))
    return jax.jit(lambda: sweep.create(create, jax.random.key(OWN['seed']), keys))()


def follow(function, start, stream):
    """(metrics of every step, state after the first, last state)."""
    now, seen, after = start, [], None
    for index in range(STEPS):
        now, measured = function(now, stream.batch(index), np.float32(index / STEPS))
        after = after or now
        seen.append(jax.device_get(measured))
    return seen, after, now


@pytest.mark.slow
@pytest.mark.parametrize(
    'lists',
    [
        {'seeds': (0, 1, 2), 'learning_rates': (3e-2, 1e-2, 1e-1), 'zipped': True},
        {'learning_rates': (3e-2, 1e-1, 1e37), 'orders': (5,)},  # one batch for all; the last diverges
    ],
    ids=['seeds and learning rates', 'one batch for all'],
)
def test_each_member_equals_its_run_alone(lists):
    chosen = members(**lists)
    _, make, alone_step = parts('dora')
    start = first(chosen, 'dora')
    streams = [Drawn(order) for order in sweep.orders(chosen)]
    stream = sweep.Streams(streams) if len(streams) > 1 else streams[0]
    together, after, last = follow(jax.jit(sweep.train_step(make, chosen, None)), start, stream)
    for index, each in enumerate(chosen):
        function = functools.partial(alone_step, rate=each.learning_rate)
        alone, alone_after, _ = follow(function, sweep.member(start, index), Drawn(each.order))
        for name in ('loss', 'targets', 'learning_rate', 'skipped', 'skipped_in_a_row'):
            got = [measured[name + sweep.SUFFIX][index] for measured in together]
            np.testing.assert_allclose(got, [measured[name] for measured in alone], rtol=1e-5, err_msg=name)
        # The first moment after one step is the first clipped gradient.
        moments = sweep.member(after, index).opt_state[0].mu
        for path, moment in tree.flatten(alone_after.opt_state[0].mu).items():
            np.testing.assert_allclose(tree.flatten(moments)[path], moment, rtol=1e-4, atol=1e-7, err_msg=path)
    means = [np.mean(measured['loss_members']) for measured in together]
    np.testing.assert_allclose([measured['loss'] for measured in together], means, rtol=1e-6)
    assert np.all(np.isfinite(means)) and together[-1]['loss_members'][0] < together[0]['loss_members'][0]
    assert len({round(float(x), 3) for x in together[-1]['loss_members']}) == len(chosen)  # they are not one run
    if 'orders' in lists:  # the sweep continues while one member does, and counts the skipped steps of the other
        assert together[-1]['skipped'] > 5 and together[-1]['skipped_in_a_row'] == 0
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(last.trainable))


def test_members_have_own_trainable_leaves_and_one_base():
    create, _, _ = parts()
    chosen = members(seeds=(0, 1))
    start = first(chosen)
    create = jax.jit(create)
    base = create(jax.random.key(OWN['seed']))
    for path, leaf in tree.flatten(start.frozen).items():
        np.testing.assert_allclose(leaf, tree.flatten(base.frozen)[path], rtol=1e-6, err_msg=path)
    for index, seed in enumerate((0, 1)):
        alone, one = create(jax.random.key(seed)), sweep.member(start, index)
        np.testing.assert_array_equal(one.rng, alone.rng)
        for path, leaf in tree.flatten(alone.trainable).items():
            np.testing.assert_allclose(tree.flatten(one.trainable)[path], leaf, rtol=1e-6, err_msg=path)
    assert start.step.shape == () and start.counters['skipped'].shape == (2,)


def test_members_are_sharded_as_alone():
    create, _, _ = parts()
    mesh = sharding.mesh(2, 2, 2, 1)
    alone = sharding.shardings(jax.eval_shape(create, jax.random.key(0)), mesh)
    chosen = members(seeds=(0, 1, 2))
    on = sweep.shardings(jax.eval_shape(first, chosen), mesh)
    assert alone.trainable['layers']['mlp']['up']['kernel'].spec == PartitionSpec(None, 'fsdp', 'tensor')
    assert on.trainable['layers']['mlp']['up']['kernel'].spec == PartitionSpec(None, None, 'fsdp', 'tensor')
    assert on.opt_state[0].mu['layers']['mlp']['up']['kernel'].spec == PartitionSpec(None, None, 'fsdp', 'tensor')
    assert on.frozen == alone.frozen


def test_summary_is_the_mean():
    assert sweep.summary([{'loss': 1.0}, {'loss': 2.0}, {'loss': 6.0}, {'loss': 11.0}])['loss'] == 5.0  # no median


def test_only_members_of_one_learning_rate_are_repetitions():
    chosen = members((0, 1, 0), (0.1, 0.1, 0.2), (0,), zipped=True)
    evaluation = sweep.summary([{'loss': 1.0}, {'loss': 2.0}, {'loss': 6.0}])
    assert evaluation == {'loss': 3.0, 'loss_members': [1.0, 2.0, 6.0]}
    result = sweep.results(chosen, evaluation)['sweep']
    assert result['members'][2] == {'seed': 0, 'learning_rate': 0.2, 'order': 0, 'loss': 6.0}
    same, other = result['intervals']
    assert (same['learning_rate'], same['members'], same['loss'][0]) == (0.1, 2, 1.5)
    assert same['loss'][1] < 1.0 and same['loss'][2] > 2.0
    assert other == {'learning_rate': 0.2, 'members': 1, 'loss': (6.0, None, None)}


@pytest.fixture
def config(tmp_path):
    for number in range(40):
        words = 'the cat sat on a mat and saw that dog run to his red ball'.split()
        (tmp_path / 'text').mkdir(exist_ok=True)
        drawn = np.random.default_rng(number).choice(words, 40)
        (tmp_path / 'text' / f'{number}.txt').write_text(' '.join(drawn))
    config = tiny.get_config()
    config.data.source, config.data.cache = str(tmp_path / 'text'), str(tmp_path / 'cache')
    config.data.validation = 0.2
    config.budget.steps = 8
    config.model.num_layers = 1
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.sample.max_tokens = 4
    return config


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_means_are_over_the_members_of_the_best_rate():
    chosen = members((0, 1), (0.1, 0.2))
    own = {'loss': 3.0, 'loss_members': [4.0, 4.0, 1.0, 3.0], 'skipped': 2, 'skipped_members': [1, 1, 0, 0]}
    values = sweep.of_best_rate(chosen, own | {'sources': {'a': {'loss': 9.0, 'loss_members': [1.0, 1.0, 5.0, 7.0]}}})
    assert (values['loss'], values['skipped'], values['sources']['a']['loss']) == (2.0, 2, 6.0)
    assert sweep.best_member(chosen, own['loss_members']) == 2
    assert sweep.line(chosen, own) == 'rate 0.1: mean loss 4.0000; rate 0.2: mean loss 2.0000'
    same = members((0, 1))
    assert sweep.of_best_rate(same, {'loss': 2.5, 'loss_members': [1.0, 4.0]})['loss'] == 2.5


def test_member_whose_updates_are_all_skipped_has_no_loss():
    """Its parameters are finite, and so is their loss."""
    own = {'loss': 3.0, 'loss_members': [2.0, 4.0], 'targets': 8.0, 'targets_members': [8.0, 8.0]}
    own |= {'sources': {'a': {'loss': 1.5, 'loss_members': [1.0, 2.0]}}}
    marked = sweep.without_diverged(own, [5, 4], 5)
    assert marked['targets_members'] == [8.0, 8.0] and marked['loss_members'][1] == 4.0
    for values in (marked, marked['sources']['a']):
        assert math.isnan(values['loss']) and math.isnan(values['loss_members'][0])
    chosen = sweep.of_best_rate(members((0,), (0.1, 0.2)), marked)
    assert (chosen['loss'], chosen['sources']['a']['loss']) == (4.0, 2.0)
    assert own['loss_members'] == [2.0, 4.0] and sweep.without_diverged(own, [0, 4], 5) == own


@pytest.mark.parametrize('broken', [0, 1])
def test_rate_that_diverges_is_never_the_best(config, tmp_path, monkeypatch, broken):
    """Even if its last finite parameters have the lower loss; alone it would have ended."""
    config.sweep.learning_rates = (1e30, 1e-2) if not broken else (1e-2, 1e30)
    config.schedule.warmup, config.evaluate.every_steps, config.sample.prompts = 0.0, 8, ()
    run_evaluation = evaluate.evaluate

    def finite(*arguments):
        losses = [9.0, 9.0]
        losses[broken] = 1.0
        return run_evaluation(*arguments) | {'loss_members': losses}

    monkeypatch.setattr(evaluate, 'evaluate', finite)
    results = train.train(config, tmp_path / 'run')
    assert results['sweep']['best'] == 1 - broken and results['validation']['loss'] == 9.0
    assert math.isnan(results['sweep']['members'][broken]['loss'])
    assert choose.choose(tmp_path / 'run').member == 1 - broken

    def refused(constant):
        raise ValueError(f'{constant} is no JSON')

    text = (tmp_path / 'run' / 'results.json').read_text(encoding='utf-8')
    saved = json.loads(text, parse_constant=refused)['sweep']
    assert saved['members'][broken]['loss'] == saved['intervals'][broken]['loss'][0] == 'nan'
    again = train.train(config, tmp_path / 'run')  # finished: it reads the file
    assert again['sweep']['best'] == 1 - broken and math.isnan(again['sweep']['members'][broken]['loss'])
    assert '| nan |' in (tmp_path / 'run' / 'report.md').read_text(encoding='utf-8')


@pytest.mark.slow
def test_sweep_trains_and_reports_all_members(config, tmp_path, capsys):
    rates = (1e-3, 3e-3)
    config.sweep.seeds, config.sweep.learning_rates, config.log.tensorboard = (4, 5), rates, True
    results = train.train(config, tmp_path / 'sweep')
    printed = capsys.readouterr().out
    written = lines(tmp_path / 'sweep')
    # Where everything learns there is no base, and a member is the whole run of its seed.
    config.sweep.seeds = config.sweep.learning_rates = ()
    config.log.tensorboard = False
    config.seed, config.optimizer.learning_rate = 5, rates[1]
    alone = train.train(config, tmp_path / 'alone')
    for mine, own in zip(written, lines(tmp_path / 'alone'), strict=True):
        for name in {'loss', 'validation_loss'} & own.keys():
            assert mine[f'{name}_members'][3] == pytest.approx(own[name], rel=1e-5)
    assert results['sweep']['members'][3]['loss'] == pytest.approx(alone['validation']['loss'], rel=1e-5)
    again = load.evaluate_split(tmp_path / 'sweep', 'validation', member=3)  # all of it, not some batches
    own = load.evaluate_split(tmp_path / 'alone', 'validation')
    texts = {name for name, value in own.items() if isinstance(value, str)}
    assert {name: again.pop(name) for name in texts} == {name: own.pop(name) for name in texts}
    errors = {name for name in own if name.endswith('_stderr')}  # differences of sums of squares
    assert {name: again.pop(name) for name in errors} == pytest.approx(
        {name: own.pop(name) for name in errors}, rel=0.01
    )
    assert again == pytest.approx(own, rel=1e-5)
    of_rate = {group['learning_rate']: group['loss'][0] for group in results['sweep']['intervals']}
    assert results['validation']['loss'] == pytest.approx(min(of_rate.values()))  # of no mean over rates
    best = sweep.best_member(members((4, 5), rates), [row['loss'] for row in results['sweep']['members']])
    assert load.load_run(tmp_path / 'sweep').config.seed == results['sweep']['members'][best]['seed']
    for member, loaded in enumerate(load.load_members(tmp_path / 'sweep', results['cost']['steps'])):
        one = load.load_run(tmp_path / 'sweep', results['cost']['steps'], member)
        assert loaded.member == member and loaded.config.to_dict() == one.config.to_dict()
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), loaded.params, one.params))
    assert member == 3
    report = (tmp_path / 'sweep' / 'report.md').read_text(encoding='utf-8')
    assert '## Members' in report and '| 1 | 0.001 | 5 |' in report
    for page in (printed, ' '.join(report.split())):
        assert f'of it member {best} (seed' in page
    ending = printed[printed.rindex('validation') :].splitlines()
    assert max(len(line) for line in ending if str(tmp_path) not in line) <= 80
    labels = {path.name for path in (tmp_path / 'sweep' / 'tensorboard').iterdir() if path.is_dir()}
    assert labels == {f'rate_{rate:g}_seed_{seed}' for rate in rates for seed in (4, 5)}
    with pytest.raises(ValueError, match='member 4: the sweep has the members 0 to 3'):
        load.load_run(tmp_path / 'sweep', member=4)
    with pytest.raises(ValueError, match='member 1: .* is no sweep'):
        load.load_run(tmp_path / 'alone', member=1)


def test_invalid_lists_are_refused_before_compilation(config):
    config.sweep.seeds = (1, 1)
    with pytest.raises(ValueError, match='config.sweep has .*twice'):
        build.build(*resolve.resolve(config))
