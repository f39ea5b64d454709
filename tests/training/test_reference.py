"""The reference model: cached on the disk or live in the step, with the same losses; one copy of the weights."""

import functools
import itertools
import json
import math

import jax
import numpy as np
import pytest

import lmtrain
from configs import tiny
from lmtrain.errors import InputError
from lmtrain.parallel import sharding
from lmtrain.training import reference
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

ROWS = [
    {'prompt': f'{n} ' * (1 + n % 3), 'chosen': 'yes ' * (1 + n % 2), 'rejected': 'no ' * (1 + n % 4)}
    for n in range(24)
]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The folder of a base that was trained for two steps, and of rows of preferences."""
    folder = tmp_path_factory.mktemp('preferences')
    labelled = [row | {'completion': row['chosen'], 'label': n % 3 > 0} for n, row in enumerate(ROWS)]
    for name, rows in (('rows', ROWS), ('labelled', labelled)):
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    config = recipe(folder)
    config.task.update(name='chat', text=('prompt',), label='chosen')
    config.task.template = 'none'
    config.init.base = ''
    config.data.tokenizer = 'bytes'
    lmtrain.train(config, folder / 'base')
    return folder


def recipe(folder, **more):
    config = tiny.get_config()
    config.data.update(root=str(folder), cache=str(folder / 'cache'), seq_len=64, batch_size=8, test=0.0)
    config.data.tokenizer = 'base'
    config.model.update(num_layers=1, width=16, vocab_size=257, unroll=1)
    config.task.update(
        name='preference', train=('rows.jsonl',), validation=('rows.jsonl',), text=(), label='', buckets=1
    )
    config.init.base = str(folder / 'base')
    config.budget.steps, config.optimizer.learning_rate, config.optimizer.accumulate = 2, 0.01, 1
    config.evaluate.max_batches, config.log.every_steps, config.log.tensorboard = 0, 1, False
    config.sample.prompts = ()
    config.update_from_flattened_dict(more)
    return config


def losses(run, steps=3, names=('loss', 'rewards/margins', 'grad_norm')):
    run = reference.complete(run)
    state, step, stream, place = run.initial.on_mesh(), run.train_step(), run.train_stream(), sharding.place(run.mesh)
    seen = []
    for index in range(steps):
        state, measured = step(state, place(stream.batch(index)), np.float32(index / steps))
        seen.append([measured[name].item() for name in names])
    return np.array(seen)


LORA = {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 2),)}


@pytest.mark.slow
def test_live_equals_cached_and_begins_with_the_loss_of_equal_models(base):
    cached = losses(build(*resolve(recipe(base, **LORA)), jax.devices()[:1]))
    assert cached[0, 0] == pytest.approx(np.log(2), abs=1e-6) and abs(cached[0, 1]) < 1e-5
    live = losses(build(*resolve(recipe(base, **LORA, **{'objective.reference': 'live'})), jax.devices()[:1]))
    np.testing.assert_allclose(live, cached, rtol=1e-4, atol=1e-5)
    assert cached[-1, 0] < cached[0, 0] - 1e-4


@pytest.mark.slow
def test_live_reference_needs_no_second_copy_of_the_weights(base):
    """Bytes of the arguments of the compiled step, against fine-tuning with the same adapter."""
    own = build(*resolve(recipe(base, **LORA, **{'objective.reference': 'live'})), jax.devices()[:1])
    sft = {'task.name': 'chat', 'task.text': ('prompt',), 'task.label': 'chosen', 'task.template': 'none'}
    tuned = build(*resolve(recipe(base, **LORA, **sft)), jax.devices()[:1])
    sizes = [next(iter(run.train_steps().values())).memory_analysis().argument_size_in_bytes for run in (own, tuned)]
    assert sizes[0] <= 1.05 * sizes[1]
    cached = build(*resolve(recipe(base, **LORA)), jax.devices()[:1]).flops_per_step
    more = own.flops_per_step.forward - cached.forward  # the forward pass without the adapter
    assert 0.8 * cached.forward < more < cached.forward and own.flops_per_step.backward == cached.backward


def test_live_reference_of_a_base_that_is_trained_is_refused(base):
    with pytest.raises(InputError, match=r"reference = 'live' with adapt.method = 'full': .* is trained.*='cached'"):
        build(*resolve(recipe(base, **{'objective.reference': 'live'})))
    with pytest.raises(InputError, match="objective.reference = 'warm' is none of cached, live"):
        build(*resolve(recipe(base, **{'objective.reference': 'warm'})))


@pytest.mark.slow
def test_log_probabilities_are_computed_once_and_kept(base, monkeypatch):
    run = build(*resolve(recipe(base)), jax.devices()[:1])
    assert np.isnan(run.stream('train').batch(0)['ref_logprob']).any()  # unknown before `complete`
    complete = reference.complete(run)
    column = complete.stream('train').batch(0)
    real = column['segment_ids'] > 0
    assert (column['ref_logprob'][real] < 0).all() and not column['ref_logprob'][~real].any()
    params = run.initial.on_mesh().params
    expected = np.asarray(run.model.apply({'params': params}, column)['logprob'])
    np.testing.assert_allclose(column['ref_logprob'][real], expected[real], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(reference, '_compute', lambda run: pytest.fail('computed again'))
    again = reference.complete(run).stream('train').batch(0)
    np.testing.assert_array_equal(again['ref_logprob'], column['ref_logprob'])


def test_methods_share_the_cache_if_they_round_the_same_leaves_of_the_base(base):
    keys = {
        dtype: [
            reference._key(build(*resolve(recipe(base, **method, **{'init.frozen_dtype': dtype})), jax.devices()[:1]))
            for method in ({}, LORA)
        ]
        for dtype in ('float32', 'bfloat16')
    }
    assert keys['float32'][0] == keys['float32'][1]
    assert len({*keys['float32'], *keys['bfloat16']}) == 3


def test_pass_of_the_reference_is_a_part_of_the_cost(base):
    run = build(*resolve(recipe(base, **LORA)), jax.devices()[:1])
    batches = sum(run.stream(split).steps_per_epoch for split in ('train', 'validation'))
    plain = reference.passes.pass_flops(run.model, run.initial.base.shapes, 8, round(run.stream('train').mean_length))
    assert run.reference_flops == batches * plain > 0 and reference.complete(run).reference_flops == batches * plain
    assert 1.0 < run.flops_per_step.forward / plain < 1.3  # with the adapter
    step = run.flops_per_step.total
    assert run.spent(5)['flops'] == run.reference_flops + 5 * step
    assert run.spent(5)['executed_flops'] == run.reference_flops + 5 * run.cost_per_step['executed_flops']
    budget = {'budget.steps': None, 'budget.flops': run.reference_flops + 6.5 * step}
    budget |= {'evaluate.every_steps': 4, 'checkpoint.every_steps': 4}
    assert build(*resolve(recipe(base, **LORA, **budget)), jax.devices()[:1]).total_steps == 7
    live = build(*resolve(recipe(base, **LORA, **{'objective.reference': 'live'})), jax.devices()[:1])
    assert live.reference_flops == 0 and live.flops_per_step.total > step
    with pytest.raises(InputError, match='budget.flops = .* are spent before the first step'):
        build(*resolve(recipe(base, **LORA, **budget | {'budget.flops': run.reference_flops})), jax.devices()[:1])


def test_members_of_a_sweep_share_the_reference(base):
    run = reference.complete(build(*resolve(recipe(base, **{'sweep.learning_rates': (0.01, 0.02)})), jax.devices()[:1]))
    state, step, place = run.initial.on_mesh(), run.train_step(), sharding.place(run.mesh)
    for index in range(2):
        state, measured = step(state, place(run.train_stream().batch(index)), np.float32(0.5))
        if not index:
            np.testing.assert_allclose(measured['loss_members'], [np.log(2)] * 2, atol=1e-6)
    assert np.ptp(measured['loss_members']) > 1e-4
    with pytest.raises(InputError, match='sweep.seeds with .* every member begins with other parameters'):
        build(*resolve(recipe(base, **SIZES, **{'sweep.seeds': (0, 1)})), jax.devices()[:1])


def test_reference_free_objectives_have_no_column(base):
    run = build(*resolve(recipe(base, **{'objective.name': 'simpo'})), jax.devices()[:1])
    assert reference.complete(run) is run and 'ref_logprob' not in run.stream('train').batch(0)


SIZES = {'model.num_heads': 8, 'model.num_kv_heads': 8, 'model.head_dim': 4, 'init.base': '', 'data.tokenizer': 'bytes'}
SIZES |= {'model.vocab_size': 264, 'data.seq_len': 96, 'data.batch_size': 16}
UNPAIRED = {'task.name': 'unpaired', 'task.train': ('labelled.jsonl',), 'task.validation': ('labelled.jsonl',)}
CHAT = {'task.name': 'chat', 'task.text': ('prompt',), 'task.label': 'chosen', 'task.template': 'none'}
TASKS = {
    'chat': CHAT,
    'preference': {},
    'reward': {'task.name': 'reward', 'task.pack': True, 'objective.centring': 0.01},
    'unpaired': UNPAIRED | {'task.group': 2, 'task.too_long': 'cut'},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('task', 'settings'),
    [
        ('chat', {'mesh.data': 2, 'mesh.sequence': 4}),
        ('preference', {'mesh.fsdp': 2, 'mesh.sequence': 4}),
        ('preference', {'mesh.tensor': 8}),
        ('preference', {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'optimizer.accumulate': 4}),
        ('reward', {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'optimizer.accumulate': 2}),
        ('unpaired', {'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.sequence': 2, 'optimizer.accumulate': 2}),
    ],
)
def test_meshes_and_accumulation_change_no_loss(base, task, settings):
    alone = losses_on_one_device(base, task)
    divided = losses(build(*resolve(recipe(base, **SIZES | TASKS[task] | settings))), 2, ('loss', 'grad_norm'))
    np.testing.assert_allclose(divided[0, 0], alone[0, 0], rtol=1e-6)
    np.testing.assert_allclose(divided, alone, rtol=1e-5)


MESHES = [mesh for mesh in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(mesh) == 8]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
def test_no_mesh_of_eight_devices_changes_the_loss_of_a_batch(base, mesh):
    one, other = batch_loss(base, (1, 1, 1, 1)), batch_loss(base, mesh)
    assert one.keys() == other.keys() and one['targets'] == other['targets'] > 0
    np.testing.assert_allclose(other['loss'], one['loss'], rtol=1e-6)


@functools.cache
def batch_loss(base, mesh):
    """The sums of DPO over the first batch, on a mesh."""
    axes = zip(('data', 'fsdp', 'tensor', 'sequence'), mesh, strict=True)
    config = recipe(base, **SIZES, **{f'mesh.{axis}': size for axis, size in axes})
    run = reference.complete(build(*resolve(config), jax.devices()[: math.prod(mesh)]))
    batch = sharding.place(run.mesh)(run.train_stream().batch(0))
    return jax.device_get(run.eval_step()(run.initial.on_mesh().params, batch))


@functools.cache
def losses_on_one_device(base, task):
    run = build(*resolve(recipe(base, **SIZES | TASKS[task])), jax.devices()[:1])
    return losses(run, 2, ('loss', 'grad_norm'))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'task.buckets': 3}, r'mesh.sequence = 3 with task.buckets = 3: .* multiples of 8; set task.buckets=1'),
        ({'task.lengths': (32, 64)}, r'mesh.sequence = 3 with task.lengths = \(32, 64\): .* multiples of 3'),
        ({'task.name': 'reward'}, r"mesh.sequence = 3 with task.name = 'reward'.* set mesh.sequence=1"),
    ],
)
def test_rows_that_are_not_divided_over_their_positions_are_refused(base, settings, message):
    with pytest.raises(InputError, match=message):
        build(*resolve(recipe(base, **SIZES | {'mesh.sequence': 3, 'mesh.data': 1} | settings)), jax.devices()[:3])


METHODS = {'full': {}, 'layers': {'adapt.layers.last': 1}, 'norms': {}, 'ia3': {}, 'prefix': {}, 'prompt': {}}
METHODS |= {'lora': {'adapt.lora.rank': LORA['adapt.lora.rank']}}
SAMPLED = {'task.name': 'policy', 'reward.verifier': 'exact', 'reward.field': 'chosen', 'objective.kl_weight': 0.1}
SAMPLED |= {'data.seq_len': 32, 'policy.prompts': 2, 'policy.samples': 4, 'policy.max_tokens': 4}
TRAINED = {
    'reward': TASKS['reward'],
    'dpo': {},
    'dpo, live': {'objective.reference': 'live'},
    'kto': TASKS['unpaired'],
    'grpo': SAMPLED,
    'ppo': SAMPLED | {'task.name': 'ppo'},
}


@pytest.mark.parametrize('objective', TRAINED)
@pytest.mark.parametrize('method', METHODS)
def test_every_method_has_a_step_of_every_objective(base, method, objective):
    """It is lowered; the refused ones are those that docs/rewards.md names."""
    config = recipe(base, **{'adapt.method': method} | METHODS[method] | TRAINED[objective])
    packed = method == 'prompt' and objective not in ('grpo', 'ppo')
    if packed or objective == 'dpo, live' and method in ('full', 'layers', 'norms'):
        message = f'adapt.method = {method!r} with several' if packed else f"= 'live' with adapt.method = {method!r}"
        with pytest.raises(InputError, match=message):
            build(*resolve(config), jax.devices()[:1])
        return
    steps = build(*resolve(config), jax.devices()[:1]).lowered()
    assert steps and all({'loss', 'grad_norm'} <= lowered.out_info[1].keys() for lowered in steps.values())


def test_trained_run_is_evaluated_with_its_reference(base, tmp_path):
    results = lmtrain.train(recipe(base, **LORA), tmp_path / 'run')
    assert results['cost']['flops'] > results['cost']['reference_flops'] > 0
    names = {'loss', 'rewards/chosen', 'rewards/rejected', 'rewards/accuracies', 'rewards/margins'}
    assert results['validation'].keys() >= names and results['validation']['targets'] == len(ROWS)
    scores = lmtrain.evaluate(tmp_path / 'run', split='validation')
    assert scores['loss'] == pytest.approx(results['validation']['loss'], rel=1e-5)
