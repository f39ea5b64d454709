"""A policy run from its prompts to its report: its columns, its log, its reference, and how it resumes."""

import contextlib
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmtrain
from configs import grpo, tiny
from lmtrain import tree
from lmtrain.cost import passes
from lmtrain.cost.query import cache_bytes
from lmtrain.errors import InputError
from lmtrain.parallel import sharding
from lmtrain.report.run_config import WrongRun
from lmtrain.runtime import lifecycle
from lmtrain.tasks.task import with_settings
from lmtrain.training import init_from, loop, pipeline, rollout_cost, rollouts, workdir
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

REWARD = (
    'def reward(prompts, completions):\n    return [sum(c in "0123456789" for c in text) for text in completions]\n'
)
# Of half of the prompts all rewards are equal.
ODD_PROMPTS = 'def reward(p, c): return [len(set(text)) * (int(q[4:-1]) % 2) for q, text in zip(p, c)]'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with rows, a reward that counts digits, and `sft`, a run that was trained on the rows for a moment."""
    root = tmp_path_factory.mktemp('policy')
    rows = [{'prompt': f'say {n}:', 'completion': f'{n * 37}', 'answer': str(n)} for n in range(1, 41)]
    (root / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    (root / 'reward.py').write_text(REWARD, encoding='utf-8')
    config = tiny.get_config()
    config.data.update(root=str(root), cache=str(root / 'cache'), seq_len=24, batch_size=16)
    config.task.update(name='chat', train=('rows.jsonl',), validation=('rows.jsonl',), test=('rows.jsonl',))
    config.model.update(num_layers=1, width=32, num_heads=2)
    config.optimizer.learning_rate, config.budget.steps, config.sample.prompts = 0.02, 30, ()
    config.log.tensorboard = False
    lmtrain.train(config, root / 'sft')
    return root


@pytest.fixture
def config(folder):
    return recipe(folder)


def recipe(folder):
    """A config of four rollouts with four steps each."""
    config = grpo.get_config()
    config.data.update(root=str(folder), cache=str(folder / 'cache'), seq_len=16, batch_size=8)
    config.task.update(train=('rows.jsonl',), validation=('rows.jsonl',), test=('rows.jsonl',))
    config.init.base = str(folder / 'sft')
    config.reward.update(verifier='', file='reward.py')
    config.policy.update(prompts=4, samples=4, max_tokens=6, epochs=2, show_every=2)
    config.objective.kl_weight, config.optimizer.learning_rate = 0.02, 0.003
    config.budget.steps, config.log.every_steps, config.log.tensorboard = 16, 1, False
    config.evaluate.every_steps = config.checkpoint.every_steps = 8
    config.evaluate.max_batches = 0
    return config


def lines(workdir, name='metrics'):
    return [json.loads(line) for line in (workdir / f'{name}.jsonl').read_text(encoding='utf-8').splitlines()]


def built(config, data=1, fsdp=1, tensor=1, sequence=1):
    config.mesh.update(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence)
    return build(*resolve(config), jax.devices()[: data * fsdp * tensor * sequence])


@pytest.fixture(scope='module')
def whole(folder, request):
    """{task: the folder of a run that nothing interrupted}."""
    return {}


def of_task(config, task):
    """The config of a task; the KL weight of 'ppo' is adapted, so that it is part of what a run must resume.

    'ppo' also measures whether an answer is right, which is not rewarded.
    """
    config.task.name, config.policy.kl_target = task, 0.5 if task == 'ppo' else 0.0
    if task == 'ppo':
        config.reward.update(verifier='exact', weights=(('file', 1.0), ('exact', 0.0)))
    return config


def trained(config, whole, folder, task):
    if task not in whole:
        lmtrain.train(of_task(config, task), folder / task)
        whole[task] = folder / task
    return whole[task]


@pytest.mark.slow
def test_first_ratio_is_one_in_bfloat16(config, folder, monkeypatch):
    """The log-probabilities of rollout and step are of two programs, which round differently: `scorer_gap`.

    On a CPU those of a model as small as this one agree, so the former are rounded once more.
    """
    scorer = rollouts.scorer

    def rounded(run):
        score = scorer(run)
        return lambda *batch: {name: x.astype(jnp.bfloat16).astype(x.dtype) for name, x in score(*batch).items()}

    monkeypatch.setattr(rollouts, 'scorer', rounded)
    config.model.dtype, config.budget.steps = 'bfloat16', 8
    lmtrain.train(config, folder / 'bfloat16')
    steps = [line for line in lines(folder / 'bfloat16') if 'loss' in line]
    assert all(line['first_ratio'] == 1.0 for line in steps) and steps[0]['clip_fraction'] == 0.0
    assert [line['ratio_deviation'] == 0.0 for line in steps] == [True, False, False, False] * 2
    assert all(0.0 < line['scorer_gap'] < 0.1 for line in steps)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['policy', 'ppo'])
def test_run_learns_and_logs(config, whole, folder, task, capsys):
    workdir = trained(config, whole, folder, task)
    steps = [line for line in lines(workdir) if 'loss' in line]
    assert all(line['first_ratio'] == 1.0 for line in steps)
    assert [line['ratio_deviation'] == 0.0 for line in steps] == [True, False, False, False] * 4
    assert all(line['scorer_gap'] < 1e-6 for line in steps)
    assert steps[0]['kl'] == 0.0 and steps[-1]['kl'] > 0.0 and steps[0]['entropy'] > 0.0
    assert steps[-1]['reward'] > steps[0]['reward']
    assert {'reward_std', 'length', 'ended', 'no_signal', 'rollout_kl', 'rollout_entropy', 'kl_weight'} <= steps[
        0
    ].keys()
    assert lines(workdir, 'timings')[-1].keys() >= {'rollout_seconds', 'training_seconds'}
    held_out = {line['step']: line['validation_reward'] for line in lines(workdir) if 'validation_reward' in line}
    assert list(held_out) == [0, 8, 16] and held_out[16] > held_out[0]
    results = json.loads((workdir / 'results.json').read_text(encoding='utf-8'))
    assert results['validation']['reward'] == held_out[16] and results['cost']['rollout_seconds'] > 0
    measured = {'reward_exact', 'reward_exact_error'} if task == 'ppo' else set()
    assert {name for name in results['validation'] if 'exact' in name} == measured
    assert 'best: step 16, the last, has the highest reward of 3' in (workdir / 'report.md').read_text('utf-8')
    shown = capsys.readouterr().out
    if shown:
        assert 'reference' in shown and 'completion' in shown
        assert max(len(line) for line in shown.splitlines() if 'tok/s' not in line and str(folder) not in line) <= 80
    assert (steps[-1]['kl_weight'] != steps[0]['kl_weight']) == (task == 'ppo') and steps[0]['sampler_gap'] < 1e-5
    samples = lines(workdir, 'completions')
    assert [line['step'] for line in samples] == [1] * 4 + [9] * 4
    assert samples[0]['prompt'].startswith('say ') and '## Completions' in (workdir / 'report.md').read_text('utf-8')


@pytest.mark.slow
@pytest.mark.parametrize('task', ['policy', 'ppo'])
def test_policy_is_evaluated_and_exported_as_a_language_model(config, whole, folder, task, tmp_path):
    workdir = trained(config, whole, folder, task)
    results = json.loads((workdir / 'results.json').read_text(encoding='utf-8'))
    scores = lmtrain.evaluate(workdir, split='validation')
    assert scores['reward'] == pytest.approx(results['validation']['reward'])
    lmtrain.export(workdir, tmp_path / 'hf', format='hf')
    one, other = (
        lmtrain.load(each).generate(['say 7:'], max_tokens=4, temperature=0) for each in (workdir, tmp_path / 'hf')
    )
    assert one[0].ids == other[0].ids


KILLS = [('policy', 'in_rollout@13'), ('ppo', 'kill@15')]


@pytest.fixture(scope='module')
def killed(folder, kill):
    """The folders of runs that `kill -9` ended, by task and fault."""
    folders = {key: folder / '-'.join(key) for key in KILLS}
    run = 'lambda values, workdir: train.train(config_of(values), workdir)'
    kill([(key[1], run, of_task(recipe(folder), key[0]).to_dict(), str(path)) for key, path in folders.items()])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(('task', 'fault'), KILLS)
def test_run_killed_in_a_rollout_or_its_epochs_resumes_bit_identically(config, whole, folder, killed, task, fault):
    expected = trained(config, whole, folder, task)
    workdir = killed[task, fault]
    left = len(lines(workdir))
    lmtrain.train(of_task(config, task), workdir)
    assert left < len(lines(workdir))
    assert lines(workdir) == lines(expected) and lines(workdir, 'completions') == lines(expected, 'completions')
    one, other = (lmtrain.load(each).params for each in (workdir, expected))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))
    one, other = (json.loads((each / 'results.json').read_text('utf-8'))['cost'] for each in (workdir, expected))
    assert one['flops'] == other['flops'] and one['rollout_flops'] == other['rollout_flops'] > 0
    assert one['evaluation_flops'] == other['evaluation_flops'] > 0


@pytest.mark.slow
def test_cost_is_that_of_the_steps_and_of_all_that_was_drawn(config, folder, monkeypatch):
    config.adapt.method, config.budget.steps, config.policy.max_tokens = 'lora', 8, 5  # two rollouts
    run, call = built(config.copy_and_resolve_references(), data=8), rollouts.Sampler.__call__
    drawn, held_out = [], []

    def sampled(self, params, prompts, count, *rest, **keep):
        completions = call(self, params, prompts, count, *rest, **keep)
        (drawn if count > 1 else held_out).append((max(map(len, prompts.ids)), completions.lengths.max()))
        return completions

    monkeypatch.setattr(rollouts.Sampler, '__call__', sampled)
    cost = lmtrain.train(config, folder / 'cost')['cost']
    params, base = run.initial.shapes.params, run.initial.base.shapes
    each = [
        passes.sampling_flops(run.model, params, passes.SamplingShape(8, 4, 16, 16, length))  # a prompt for each device
        + sum(passes.pass_flops(run.model, scored, 16, 16) for scored in (params, base))
        for longest, length in drawn
    ]
    assert len(each) == 2 and cost['rollout_flops'] == pytest.approx(sum(each))
    assert cost['flops'] == pytest.approx(8 * run.flops_per_step.total + sum(each))
    assert cost['executed_flops'] == pytest.approx(8 * run.cost_per_step['executed_flops'] + sum(each))
    calls = [
        passes.sampling_flops(run.model, params, passes.SamplingShape(16, 1, 16, 16, length)) for _, length in held_out
    ]
    assert len(calls) == 2 * 3  # before the first step and after the last, 40 prompts in batches of 16
    assert cost['evaluation_flops'] == pytest.approx(sum(calls))
    most = run.spent(8)
    assert most['flops'] >= cost['flops'] > 8 * run.flops_per_step.total
    timings = lines(folder / 'cost', 'timings')[-1]
    assert timings['seconds_per_step'] * timings['flops_per_second'] == pytest.approx(cost['flops'] / 8)


def test_budget_in_flops_ends_by_what_was_spent(config, folder, capsys):
    """Three rollouts and 10.5 steps, all completions as long as they can be; the schedule has ended too."""
    config.policy.max_tokens, config.schedule.final = 3, 0.0
    run = built(config.copy_and_resolve_references(), data=8)
    step, rollout = run.flops_per_step.total, run.rollout_flops
    config.budget.steps, config.budget.flops = None, 10.5 * step + 3 * rollout
    results = lmtrain.train(config, folder / 'flops')
    assert results['cost']['steps'] == 11 < config.budget.flops / step - 2  # which only steps would have
    assert results['cost']['rollout_flops'] == pytest.approx(3 * rollout)
    rates = [line['learning_rate'] for line in lines(folder / 'flops') if 'learning_rate' in line]
    assert rates[-1] < 1e-9 < min(rates[:-1])
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'of which a step takes at most' in shown and 'FLOP at most; meanwhile a device holds' in shown
    again = lmtrain.train(config, folder / 'flops')
    assert again['cost'] == results['cost'] and 'the budget is spent' in capsys.readouterr().out


def test_signal_is_obeyed_between_two_rollouts(config, folder, monkeypatch):
    """A signal during the epochs of the first rollout: the run is saved after them, and resumes."""
    log = loop.Loop.log

    def logged(self, step, *rest):
        if step == 2:
            self.signals.received = 'SIGTERM'
        return log(self, step, *rest)

    monkeypatch.setattr(loop.Loop, 'log', logged)
    with pytest.raises(lifecycle.RunEnded, match='step 4 is saved'):
        lmtrain.train(config, folder / 'signal')


@pytest.mark.slow
def test_run_resumes_where_its_reward_file_fails(config, folder, monkeypatch):
    """The call of a process that follows a checkpoint is counted; that of a new run is an error."""
    (folder / 'later.py').write_text(
        'import pathlib\n'
        f'def reward(p, c):\n    if pathlib.Path({str(folder / "fails")!r}).exists(): raise KeyError("oh")\n'
        '    return [len(text) for text in c]\n',
        encoding='utf-8',
    )
    config.reward.file, config.budget.steps, config.evaluate.every_steps = 'later.py', 8, 100
    log = loop.Loop.log

    def logged(self, step, *rest):
        if step == 2:
            self.signals.received = 'SIGTERM'
        return log(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, 'log', logged)
        with pytest.raises(lifecycle.RunEnded, match='step 4 is saved'):
            lmtrain.train(config, folder / 'fails_later')
    (folder / 'fails').touch()
    lmtrain.train(config, folder / 'fails_later')
    assert [line['reward_failures'] for line in lines(folder / 'fails_later') if 'reward_failures' in line][-1] == 16
    with pytest.raises(InputError, match="the first call failed: KeyError: 'oh'"):
        lmtrain.train(config, folder / 'fails_at_once')


def test_rollout_is_a_function_of_seed_and_number():
    first = [rollouts.chosen(10, 4, seed=3, number=number) for number in range(5)]
    assert sorted(sum(first, [])) == sorted(list(range(10)) * 2)
    assert first == [rollouts.chosen(10, 4, seed=3, number=number) for number in range(5)]
    assert first != [rollouts.chosen(10, 4, seed=4, number=number) for number in range(5)]


# --- the reference


def test_reference_of_an_adapter_is_the_base_without_a_copy(config):
    config.adapt.method = 'lora'
    run = built(config)
    state = run.initial.on_mesh()
    base, frozen = tree.flatten(rollouts.reference(run)(state)), tree.flatten(state.frozen)
    assert base and all(leaf is frozen[path] for path, leaf in base.items())
    assert not any('lora' in path for path in base)


def test_reference_of_full_fine_tuning_is_a_copy_of_the_base(config, folder):
    run = built(config)
    reference, state = rollouts.reference(run), run.initial.on_mesh()
    changed = state.replace(trainable=jax.tree.map(lambda leaf: leaf + 1, state.trainable))
    base = init_from.open_run(folder / 'sft')
    expected = base.load(lambda path, leaf: jnp.asarray(leaf))
    got = reference(changed)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(expected)))


def test_full_fine_tuning_without_a_kl_weight_has_no_reference(config, capsys, tmp_path):
    config.objective.kl_weight, config.budget.steps = 0.0, 4
    results = lmtrain.train(config, tmp_path / 'run')
    assert results['cost']['epochs'] == 4 / 40  # one rollout of 4 prompts
    printed = ' '.join(capsys.readouterr().out.split())
    assert 'none, since objective.kl_weight = 0' in printed and ' of copied layers and ' in printed
    assert not any('kl' in line for line in lines(tmp_path / 'run'))


def test_policy_with_lora_has_the_arguments_of_sft_with_lora(config, folder):
    """Argument bytes of the compiled step: one copy of the base."""
    config.adapt.method = 'lora'
    policy = built(config).train_steps()
    sft = config.copy_and_resolve_references()
    sft.task.name, sft.task.buckets = 'chat', 1
    (one,), (other,) = (each.values() for each in (policy, built(sft).train_steps()))
    sizes = [each.memory_analysis().argument_size_in_bytes for each in (one, other)]
    assert sizes[0] <= 1.05 * sizes[1]


def test_memory_counts_what_a_rollout_copies(config):
    """The copy of the layers and keys and values, as far as they exceed gradients and activations."""
    run = built(config)
    layers, m = tree.size(run.shapes.params['layers']), run.model
    token = 2 * 4 * m.num_layers * m.num_kv_heads * m.head_dim
    assert run.rollout_bytes == (layers, 4 * (16 + 4 * 16) * token)
    assert run.memory['rollout'] == 0 and run.memory['reference'] == tree.size(run.shapes.trainable)
    config.policy.samples, config.adapt.method = 256, 'lora'
    run = built(config)
    assert run.rollout_bytes[1] == 4 * (16 + 256 * 16) * token
    less = run.memory['gradients'] + run.memory['activations']
    assert run.memory['rollout'] == sum(run.rollout_bytes) - less > 0
    assert run.memory['reference'] == 0
    assert run.memory['total'] == sum(size for part, size in run.memory.items() if part != 'total')
    config.mesh.data = 2
    assert built(config, data=2).rollout_bytes[1] == 2 * (16 + 256 * 16) * token


# --- meshes


@functools.cache
def steps_of(folder, objective, mesh, accumulate=1):
    """(figures of the first rollout on a mesh, the values of its steps)."""
    config = recipe(folder)
    config.task.name, config.objective.name = 'ppo' if objective == 'ppo' else 'policy', objective
    config.optimizer.accumulate = accumulate
    run = built(config, *mesh)
    state, values = run.initial.on_mesh(), []
    figures, batches = rollout_of(run, state)
    step = run.train_step()
    for batch in batches:
        state, measured = step(state, batch, np.float32(0.5))
        values.append(jax.device_get(measured))
    return figures, values


@pytest.mark.slow
@pytest.mark.parametrize(
    ('objective', 'mesh', 'accumulate'),
    [
        ('grpo', (8, 1, 1, 1), 1),
        ('grpo', (2, 2, 2, 1), 1),
        ('grpo', (1, 2, 1, 4), 1),
        ('grpo', (1, 1, 1, 1), 2),
        ('ppo', (2, 2, 2, 1), 2),
        ('rloo', (1, 2, 1, 4), 2),
    ],
)
def test_steps_on_a_mesh_equal_those_on_one_device(folder, objective, mesh, accumulate):
    """Up to float32 rounding, which is absolute where terms of magnitude 1 cancel: in the loss and the divergence."""
    (one, values), (other, others) = (
        steps_of(folder, objective, (1, 1, 1, 1)),
        steps_of(folder, objective, mesh, accumulate),
    )
    assert one['reward'] == other['reward'] and other['sampler_gap'] < 1e-5
    assert others[0]['ratio_deviation'] == 0.0 and others[0]['scorer_gap'] < 1e-6 and values[-1]['kl'] > 1e-3
    for number, (own, expected) in enumerate(zip(others, values, strict=True)):
        for name in ('loss', 'kl', 'entropy', 'grad_norm', *(['value_loss'] if objective == 'ppo' else [])):
            what = f'{name}, step {number}'
            np.testing.assert_allclose(own[name], expected[name], rtol=1e-6, atol=1e-6, err_msg=what)


# --- the columns


def rollout_of(run, state):
    """(figures, the batches) of the first rollout."""
    place = sharding.place(run.mesh)
    with contextlib.closing(rollouts.Sampler(run)) as sampler:
        batches = rollouts.Rollouts(sampler, 0, lambda batch: (place(batch), ''), {}, lambda *_: None)
        placed = [batches.take(state)[1][0] for _ in range(run.steps_per_rollout)]
    return batches.figures, placed


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_sampler_and_trainer_compute_the_same_log_probabilities(config, temperature):
    config.policy.temperature = temperature
    run = built(config)
    state = run.initial.on_mesh()
    figures, (batch, *_) = rollout_of(run, state)
    assert figures['sampler_gap'] < 1e-5
    plain = {name: column for name, column in batch.items() if name != 'temperature'}
    logits = run.model.apply({'params': state.params}, plain)['logits'] / temperature
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), batch['targets'][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(batch['old_logprob'], expected * batch['loss_mask'], atol=1e-5)


def test_every_completion_is_in_each_epoch(config):
    config.objective.name = 'rloo'
    run = built(config)
    _, placed = rollout_of(run, run.initial.on_mesh())
    rows = [np.concatenate([batch['targets'], batch['old_logprob']], axis=1) for batch in placed]
    one, other = (np.concatenate(rows[epoch : epoch + 2]) for epoch in (0, 2))
    assert sorted(map(bytes, one)) == sorted(map(bytes, other)) and not np.array_equal(one, other)


def test_truncated_completions_are_masked_or_penalised(config):
    config.policy.max_tokens = 4  # shorter than most answers
    batches = {}
    for choice in ('keep', 'mask', 'penalty'):
        config.policy.truncated, config.policy.penalty, config.policy.scale = choice, 10.0, 'none'
        run = built(config)
        figures, placed = rollout_of(run, run.initial.on_mesh())
        batches[choice] = {name: np.concatenate([batch[name] for batch in placed[:2]]) for name in placed[0]}
        assert 0 < figures['ended'] < 1
    tokens, keep = batches['keep']['targets'], batches['keep']['loss_mask']
    end = run.corpus.tokenizer.end_id
    ended = np.any((tokens == end) & (batches['keep']['old_logprob'] != 0), axis=1)
    used = keep.any(axis=1)
    assert np.array_equal(batches['mask']['loss_mask'].any(axis=1), used & ended)
    change = (batches['penalty']['advantages'] - batches['keep']['advantages']).sum(axis=1)
    assert (change[ended] >= -1e-5).all() and (change[~ended] <= 1e-5).all() and (np.abs(change) > 1).any()


@pytest.mark.parametrize('truncated', ['keep', 'mask'])
def test_entropy_of_a_rollout_is_that_of_all_completions(config, folder, truncated):
    """Groups without a signal and truncated completions are left out of the mask and of no figure of the rollout."""
    (folder / 'half.py').write_text(ODD_PROMPTS, encoding='utf-8')
    config.reward.file, config.objective.kl_weight = 'half.py', 0.0
    config.policy.update(prompts=16, max_tokens=4, truncated=truncated)
    run = built(config)
    figures, placed = rollout_of(run, run.initial.on_mesh())
    columns = {name: np.concatenate([batch[name] for batch in placed[:8]]) for name in placed[0]}
    sampled = columns['old_logprob'] != 0  # also where the loss has no mask
    assert 0 < columns['loss_mask'].sum() < sampled.sum() and figures['no_signal'] > 0
    assert figures['rollout_entropy'] == pytest.approx(-columns['old_logprob'][sampled].mean(), rel=1e-5)
    assert figures['rollout_entropy'] != pytest.approx(
        -columns['old_logprob'][columns['loss_mask'] > 0].mean(), rel=1e-3
    )


def test_a_reward_reads_the_prompts_that_the_score_of_a_pipeline_reads(config, folder):
    """Of a conversation the last message: not the ids of the template, and not without the beginning that is cut."""
    turns = [{'role': 'user', 'content': text} for text in ('5 + 5 + 5?', '1 + 1?')]
    turns.insert(1, {'role': 'assistant', 'content': '15'})
    rows = [{'messages': turns, 'answer': '2'}, {'messages': turns[-1:], 'answer': '2'}]
    rows += [{'prompt': 'a long prompt', 'answer': '3'}]
    (folder / 'turns.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    read = []

    def recorded(prompts, completions, rows):
        read.append(list(prompts))
        return SimpleNamespace(total=np.zeros(len(prompts)), failures={})

    config.task.update(train=('turns.jsonl',), validation=('turns.jsonl',), test=('turns.jsonl',))
    config.task.too_long, config.policy.max_tokens = 'cut', 8
    run = built(config)
    texts = rollouts.prompts_of(run, 'test').texts
    model = lmtrain.load(str(folder / 'sft'))._replace(template=run.template)
    pipeline.score(model, run.corpus.rows['test'], (), recorded, 8)
    assert read == [texts] * 2 and texts == ['1 + 1?', '1 + 1?', 'a long prompt']
    assert any('cut' in note for note in run.corpus.notes)


@pytest.mark.parametrize('too_long', ['cut', 'drop'])
def test_prompts_leave_room_for_their_completions(config, too_long):
    """Of the rows 'say 1:' to 'say 40:', 8 tokens are too many beside completions of 10 in rows of 16."""
    config.task.too_long, config.task.lengths = too_long, (16,)
    whole = built(config.copy_and_resolve_references()).corpus
    config.policy.max_tokens = 10
    run = built(config)
    prompts = rollouts.prompts_of(run, 'train')
    assert whole.seq_len == 16 and {len(ids) for ids in prompts.ids} == {7}
    assert {ids[0] for ids in prompts.ids} == {run.corpus.tokenizer.begin_id}
    assert prompts.texts[8:10] == ['say 9:', *(['say 10:'] if too_long == 'cut' else [])]  # a reward reads all of it
    action = 'cut' if too_long == 'cut' else 'left out'
    note = f'train: 31 rows of more than 7 tokens {action}'
    assert note in run.corpus.notes
    _, batches = rollout_of(run, run.initial.on_mesh())
    assert all(batch['loss_mask'].any() for batch in batches)


# --- bad input


def test_a_changed_reward_is_another_run(config, folder, tmp_path):
    """The file and the model of a reward are among the hashes that a resumed run must find unchanged."""
    (folder / 'first.py').write_text(REWARD, encoding='utf-8')
    config.reward.file = 'first.py'
    run = built(config)
    workdir.bind(tmp_path, run.resolved, run.fingerprints)
    assert workdir.bind(tmp_path, run.resolved, built(config).fingerprints) == []
    (folder / 'first.py').write_text(REWARD.replace('0123456789', '02468'), encoding='utf-8')
    changed = built(config)
    with pytest.raises(WrongRun, match='fingerprint of reward'):
        workdir.bind(tmp_path, changed.resolved, changed.fingerprints)

    older = json.loads((tmp_path / 'fingerprints.json').read_text())
    del older['reward']  # a version that did not record it
    (tmp_path / 'fingerprints.json').write_text(json.dumps(older), encoding='utf-8')
    assert workdir.bind(tmp_path, changed.resolved, changed.fingerprints) == []


def test_rewards_are_identified_by_file_and_model(config, folder, monkeypatch):
    one = built(config).reward_hash
    opened = init_from.open_base(str(folder / 'sft'))
    monkeypatch.setattr(rollout_cost, 'open_reward_model', lambda config: opened._replace(hash='abc'))
    monkeypatch.setattr(rollout_cost, 'reward_flops', lambda *arguments: 0.0)  # the model has no score
    assert built(config).reward_hash.split() == ['abc', one]
    config.reward.update(verifier='regex', file='', pattern='1')
    monkeypatch.undo()
    run = built(config)
    assert run.reward_hash == '' and 'reward' not in run.fingerprints


@pytest.mark.parametrize(
    'task, objective, kl_weight',
    [('policy', '', 0.0), ('policy', '', 0.02), ('policy', 'rloo', 0.02), ('ppo', '', 0.02)],
)
def test_rewards_without_a_signal_are_counted(config, folder, task, objective, kl_weight):
    """All rewards are 0, of which one could not be scored: groups are skipped only if no KL term learns from them.

    The policy has left the base, so that the KL divergences of completions differ.
    """
    config.objective.name, config.objective.kl_weight = objective, kl_weight
    (folder / 'odd.py').write_text('def reward(p, c): return [float("nan")] + [0] * (len(c) - 1)', encoding='utf-8')
    config.reward.file = 'odd.py'
    run = built(of_task(config, task))
    start = run.initial.on_mesh()
    moved = start.replace(trainable=jax.tree.map(lambda leaf: 1.05 * leaf, start.trainable))
    figures, placed = rollout_of(run, moved)
    assert figures['reward'] == figures['reward_std'] == 0.0 and figures['reward_failures'] == 1
    assert figures['no_signal'] == 1
    assert {bool(batch['loss_mask'].any()) for batch in placed} == {kl_weight > 0}


@pytest.mark.parametrize('kl_weight', [0.0, 0.02])
@pytest.mark.parametrize('aggregation', ['dapo', 'grpo', 'dr_grpo'])
def test_a_group_without_a_signal_has_the_gradient_of_the_kl_term(config, folder, aggregation, kl_weight):
    """d k3 / d log p = 1 - p_ref / p, in the mean over all completions; without the term the group is left out."""
    (folder / 'half.py').write_text(ODD_PROMPTS, encoding='utf-8')
    config.reward.file, config.objective.aggregation = 'half.py', aggregation
    config.objective.kl_weight, config.data.batch_size = kl_weight, 32
    config.policy.update(prompts=16, samples=2)  # two different rewards are both unlike their mean
    run = built(config)
    start = run.initial.on_mesh()
    moved = start.replace(trainable=jax.tree.map(lambda leaf: 1.05 * leaf, start.trainable))
    figures, (batch, *_) = rollout_of(run, moved)
    batch, settings = jax.device_get(batch), config.objective.to_dict() | {'max_tokens': 6}
    signal, mask = batch['advantages'].any(axis=1), batch['loss_mask']
    assert figures['no_signal'] == 1 - signal.mean() and 0 < signal.mean() < 1
    assert mask[signal].any(axis=1).all() and (mask[~signal].any(axis=1) == (kl_weight > 0)).all()

    def mean(logprob):
        values, weights = with_settings(run.task.loss('grpo'), settings)(lambda batch: {'logprob': logprob}, batch)
        return jnp.sum(values['loss'] * weights) / jnp.sum(weights)

    gradient = jax.grad(mean)(batch['old_logprob'])[~signal]
    if kl_weight:
        per_sequence = {'dapo': mask.sum(), 'dr_grpo': 6 * len(mask), 'grpo': len(mask) * mask.sum(1, keepdims=True)}
        weights = (mask / per_sequence[aggregation])[~signal]
        ratio = np.exp(batch['ref_logprob'] - batch['old_logprob'])[~signal]
        np.testing.assert_allclose(gradient, kl_weight * (1 - ratio) * weights, rtol=1e-4, atol=1e-9)
    assert bool(gradient.any()) == (kl_weight > 0)


@pytest.mark.parametrize('devices', [1, 2])
def test_held_out_prompts_fill_at_most_the_memory_of_a_rollout(config, monkeypatch, devices):
    """Keys and values of every prompt and completion, which share none; before, 16 prompts were read at once."""
    run, call, counts = built(config, data=devices), rollouts.Sampler.__call__, []

    def sampled(self, params, prompts, count, *rest, **keep):
        counts.append(count * len(prompts.ids))
        return call(self, params, prompts, count, *rest, **keep)

    monkeypatch.setattr(rollouts.Sampler, '__call__', sampled)
    with contextlib.closing(rollouts.Sampler(run)) as sampler:
        results = rollouts.held_out(sampler, 'validation')(run.initial.on_mesh().params)
    assert counts == [10] * 4 and results['targets'] == 40  # one program for all
    token = cache_bytes(run.model, 1)
    assert 10 // devices * (16 + 16) * token == run.rollout_bytes[1]  # prompts and completions are padded to 16 tokens


def test_failures_on_held_out_prompts_are_counted_in_all_batches(config, folder):
    """10 prompts are scored at once, and a prompt without a score is in some batches alone."""
    (folder / 'some.py').write_text(
        'def reward(p, c): return [None if text.startswith(("say 1:", "say 2")) else 1.0 for text in p]',
        encoding='utf-8',
    )
    config.reward.file = 'some.py'
    run = built(config)
    with contextlib.closing(rollouts.Sampler(run)) as sampler:
        results = rollouts.held_out(sampler, 'validation')(run.initial.on_mesh().params)
    unscored = sum(row.fields['prompt'].startswith(('say 1:', 'say 2')) for row in run.corpus.rows['validation'])
    assert results['reward_failures'] == unscored == 12
    assert results['reward'] == pytest.approx(1 - 12 / 40)


def test_evaluation_of_an_empty_split_is_refused(config):
    """As of other tasks; before, a ValueError of range."""
    config.task.test, config.data.test = (), 0.0
    message = 'the test split is empty: name its rows in config.task.test, or give data.test a share'
    with contextlib.closing(rollouts.Sampler(built(config))) as sampler, pytest.raises(InputError, match=message):
        rollouts.held_out(sampler, 'test')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'policy.prompts': 3}, '12 completions, which data.batch_size = 8 does not divide'),
        ({'policy.samples': 1, 'policy.prompts': 16}, 'policy.samples = 1'),
        ({'init.base': '', 'data.tokenizer': 'bytes', 'model.vocab_size': 300}, 'init.base is empty'),
        ({'policy.max_tokens': 12}, "set data.seq_len to 19, policy.max_tokens lower, or task.too_long to 'cut' or"),
        ({'policy.max_tokens': 17, 'task.too_long': 'cut'}, 'policy.max_tokens = 17 with data.seq_len = 16'),
        ({'model.dropout': 0.1}, 'model.dropout = 0.1 and adapt.dropout = 0.0 with a policy'),
        ({'adapt.dropout': 0.2, 'adapt.method': 'lora'}, 'adapt.dropout = 0.2 with a policy'),
        ({'policy.truncated': 'drop'}, "policy.truncated = 'drop' is none of keep, mask, penalty"),
        ({'objective.aggregation': 'mean'}, "objective.aggregation = 'mean'"),
        ({'policy.temperature': 0.0}, 'policy.temperature = 0.0'),
        ({'sweep.seeds': (1, 2)}, 'config.sweep'),
        ({'policy.kl_target': 5.0}, 'policy.kl_target = 5.0: this objective'),
        ({'reward.file': '', 'reward.verifier': 'exact', 'reward.field': 'key'}, "'key'"),
        ({'reward.file': ''}, 'config.reward gives no reward'),
        (
            {'reward.model': 'sft'},
            "config.reward.model = sft: 'reward' needs a head for it; the model has model.head='lm'",
        ),
    ],
)
def test_bad_input(config, changes, message):
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        build(*resolve(config), jax.devices()[:1])
