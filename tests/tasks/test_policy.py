"""Policy losses: TRL's trajectories, and that padding, packing and the division of a batch change nothing."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.data.chat.load import open_template
from lmtrain.data.chat.template import Template
from lmtrain.data.examples import LengthPolicy
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError
from lmtrain.tasks import TASKS, ppo
from lmtrain.tasks.advantages import Sampled, group_relative, leave_one_out
from lmtrain.tasks.policy import dialogue, encode, grpo, rloo
from lmtrain.tasks.task import RowFormat

GOLDENS = json.loads((pathlib.Path(__file__).parent / 'policy_goldens.json').read_text(encoding='utf-8'))
INPUTS = {name: np.array(x, np.float32) for name, x in GOLDENS['inputs'].items()}


def sums(loss, logprob, batch, **settings):
    """The step's reduction, ({name: sum}, weight)."""
    values, weights = loss(lambda batch: {'logprob': logprob, 'value': 0.3 * logprob[..., None]}, batch, **settings)
    return {name: jnp.sum(x * weights) for name, x in values.items()}, jnp.sum(weights)


def mean(loss, logprob, batch, **settings):
    values, weight = sums(loss, logprob, batch, **settings)
    return values['loss'] / weight


def batch_of(advantages, columns=('old_logprob', 'ref_logprob')):
    batch = {name: INPUTS[name] for name in columns} | {'loss_mask': INPUTS['mask'], 'advantages': advantages}
    batch |= {'first': np.zeros(len(INPUTS['mask']), np.float32)}
    return batch | {'segment_ids': np.ones(INPUTS['mask'].shape, np.int32)}


def sampled():
    mask, old, ref = INPUTS['mask'], INPUTS['old_logprob'], INPUTS['ref_logprob']
    return Sampled(INPUTS['rewards'], mask, GOLDENS['samples'], old, ref)


def check_trajectory(golden, loss, credit, **settings):
    advantages = credit.columns['advantages'].astype(np.float32)
    np.testing.assert_allclose(advantages[:, 0], golden['advantages'], rtol=1e-5, atol=1e-6)
    batch = batch_of(advantages)
    step = jax.jit(jax.value_and_grad(lambda logprob: mean(loss, logprob, batch, **settings)))
    logprob, losses = INPUTS['logprob'], []
    for number in range(len(golden['loss'])):
        value, gradient = step(logprob)
        if number == 0:
            np.testing.assert_allclose(gradient, golden['gradient'], atol=1e-5)
        losses.append(float(value))
        logprob = logprob - GOLDENS['rate'] * gradient
    np.testing.assert_allclose(losses, golden['loss'], atol=1e-5)


@pytest.mark.parametrize('name', GOLDENS['cases'])
def test_grpo_has_the_trajectory_of_trl(name):
    golden = GOLDENS['cases'][name]
    settings = dict(golden['settings'])
    settings |= {'kl_weight': settings.pop('beta'), 'max_tokens': GOLDENS['max_tokens']}
    check_trajectory(golden, grpo, group_relative(sampled()), **settings)


@pytest.mark.parametrize('weight', GOLDENS['rloo'])
def test_rloo_has_the_trajectory_of_trl(weight):
    credit = leave_one_out(sampled(), kl_weight=float(weight), kl_estimator='k1')
    check_trajectory(GOLDENS['rloo'][weight], rloo, credit, clip_low=0.2, clip_high=0.28)


# --- the reduction of the step


LOSSES = {
    'grpo': functools.partial(grpo, aggregation='grpo', kl_weight=0.1),
    'dapo': functools.partial(grpo, aggregation='dapo', kl_weight=0.1, kl_estimator='k2'),
    'dr_grpo': functools.partial(grpo, aggregation='dr_grpo', max_tokens=9),
    'sequence': functools.partial(grpo, ratio='sequence', aggregation='grpo'),
    'rloo': rloo,
    'ppo': functools.partial(ppo.loss, value_clip=0.1, value_weight=0.5),
}


def wide(pad_left=0, pad_right=0):
    """(logprob, batch) whose columns have junk outside of the completions."""
    rng = np.random.default_rng(1)
    batch = batch_of(rng.normal(size=INPUTS['mask'].shape).astype(np.float32))
    batch |= {'returns': rng.normal(size=INPUTS['mask'].shape).astype(np.float32)}
    batch |= {'old_values': rng.normal(size=INPUTS['mask'].shape).astype(np.float32)}

    def padded(x, filling):
        return np.pad(x, ((0, 0), (pad_left, pad_right)), constant_values=filling) if x.ndim > 1 else x

    filling = {'loss_mask': 0, 'segment_ids': 0, 'old_logprob': -9, 'ref_logprob': -0.5}
    return padded(INPUTS['logprob'], -3), {name: padded(x, filling.get(name, 2)) for name, x in batch.items()}


@functools.partial(jax.jit, static_argnums=0)
def reduced(name, logprob, batch):
    return jax.value_and_grad(lambda x: mean(LOSSES[name], x, batch))(logprob)


@pytest.mark.parametrize('name', LOSSES)
def test_padding_on_either_side_changes_nothing(name):
    logprob, batch = wide()
    value, gradient = reduced(name, logprob, batch)
    padded_value, padded_gradient = reduced(name, *wide(3, 4))
    np.testing.assert_allclose(padded_value, value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(padded_gradient[:, 3:-4], gradient, atol=1e-6)
    assert not padded_gradient[:, :3].any() and not padded_gradient[:, -4:].any() and abs(float(value)) > 1e-3


@pytest.mark.parametrize('name', LOSSES)
def test_packing_changes_nothing(name):
    """Row i and row i + 4 become one row of two sequences."""
    logprob, batch = wide()
    packed = {column: np.concatenate([x[:4], x[4:]], axis=1) for column, x in batch.items() if x.ndim > 1}
    packed['first'] = batch['first'][:4]
    packed['segment_ids'] = np.concatenate([batch['segment_ids'][:4], 1 + batch['segment_ids'][4:]], axis=1)
    value, gradient = reduced(name, logprob, batch)
    packed_value, packed_gradient = reduced(name, np.concatenate([logprob[:4], logprob[4:]], axis=1), packed)
    np.testing.assert_allclose(packed_value, value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(np.concatenate(np.split(np.asarray(packed_gradient), 2, axis=1)), gradient, atol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_division_into_micro_batches_changes_nothing(name):
    logprob, batch = wide()
    whole, weight = sums(LOSSES[name], logprob, batch)
    for parts in (2, 4):
        each = [
            sums(LOSSES[name], logprob[part::parts], {column: x[part::parts] for column, x in batch.items()})
            for part in range(parts)
        ]
        np.testing.assert_allclose(sum(w for _, w in each), weight, rtol=1e-6)
        for key in whole:
            np.testing.assert_allclose(sum(values[key] for values, _ in each), whole[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_completions_that_are_not_used_change_nothing(name):
    """A row without a mask weighs nothing, whatever its columns have."""
    logprob, batch = wide()
    value, _ = reduced(name, logprob[:6], {column: x[:6] for column, x in batch.items()})
    batch['loss_mask'] = np.where(np.arange(8)[:, None] < 6, batch['loss_mask'], 0)
    unused, gradient = reduced(name, logprob, batch)
    np.testing.assert_allclose(unused, value, rtol=1e-6, atol=1e-7)
    assert not gradient[6:].any()


def test_policy_that_sampled_has_ratio_one_and_the_gradient_of_reinforce():
    logprob, batch = wide()
    batch['old_logprob'] = logprob
    batch['advantages'] = np.repeat(batch['advantages'][:, :1], logprob.shape[1], axis=1)
    for name in LOSSES:
        values, _ = sums(LOSSES[name], logprob, batch)
        assert float(values['ratio_deviation']) == 0.0 and float(values['clip_fraction']) == 0.0
    _, gradient = jax.jit(jax.value_and_grad(lambda x: mean(rloo, x, batch)))(logprob)
    np.testing.assert_allclose(gradient, -batch['advantages'] * batch['loss_mask'] / len(logprob), atol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_first_step_of_a_rollout_has_ratio_one_whatever_another_program_rounds(name):
    """As TRL: its loss and gradient are those with log p as `old_logprob`, whose distance from log p is logged."""
    logprob, batch = wide()
    expected = reduced(name, logprob, batch | {'old_logprob': logprob})
    first = batch | {'first': np.ones(len(logprob), np.float32)}
    for got, whole in zip(reduced(name, logprob, first), expected, strict=True):
        np.testing.assert_allclose(got, whole, rtol=1e-6, atol=1e-7)
    values, weight = sums(LOSSES[name], logprob, first)
    assert float(values['ratio_deviation']) == 0.0 and float(values['scorer_gap'] / weight) > 0.1
    values, _ = sums(LOSSES[name], logprob, batch)
    assert float(values['ratio_deviation']) > 0.0 and float(values['scorer_gap']) == 0.0


@pytest.mark.parametrize(
    'advantage, ratio, moves', [(1, 1.5, False), (1, 0.5, True), (-1, 0.5, False), (-1, 1.5, True)]
)
def test_clip_ends_the_gradient_only_where_the_objective_would_go_on(advantage, ratio, moves):
    batch = {'old_logprob': np.full((1, 1), -1.0, np.float32), 'loss_mask': np.ones((1, 1), np.float32)}
    batch |= {'advantages': np.full((1, 1), advantage, np.float32), 'segment_ids': np.ones((1, 1), np.int32)}
    batch |= {'first': np.zeros(1, np.float32)}
    logprob = np.full((1, 1), -1.0 + np.log(ratio), np.float32)
    gradient = jax.grad(lambda x: mean(grpo, x, batch))(logprob)
    assert bool(gradient.any()) == moves
    values, _ = grpo(lambda batch: {'logprob': logprob}, batch)
    assert float(values['clip_fraction'][0, 0]) == (not moves)


def test_value_loss_is_the_larger_of_two_errors():
    """V = -0.3, clipped to V_old - 0.1 = 0.4: with return 1 max(1.3^2, 0.6^2) / 2, with -1 max(0.7^2, 1.4^2) / 2."""
    one = np.ones((1, 2), np.float32)
    batch = {'old_logprob': -one, 'loss_mask': one, 'advantages': 0 * one, 'segment_ids': np.ones((1, 2), np.int32)}
    batch |= {'returns': np.array([[1, -1]], np.float32), 'old_values': 0.5 * one, 'first': np.zeros(1, np.float32)}
    values, _ = LOSSES['ppo'](lambda batch: {'logprob': -one, 'value': -0.3 * one[..., None]}, batch)
    np.testing.assert_allclose(values['value_loss'][0], [1.3**2 / 2, 1.4**2 / 2], rtol=1e-6)
    np.testing.assert_allclose(values['loss'], 0.5 * values['value_loss'], rtol=1e-6)


def test_every_objective_has_an_estimator():
    for task in TASKS.values():
        assert task.on_policy == bool(task.estimators)
        assert not task.on_policy or task.estimators.keys() == task.losses.keys()


def test_a_conversation_without_a_template_is_named():
    row = Row('rows.jsonl line 3', {'messages': [{'role': 'user', 'content': 'Hi'}]})
    form = RowFormat((), '', (), Bytes(), None, LengthPolicy('error', 8), True)
    with pytest.raises(InputError, match=r"rows.jsonl line 3: a conversation, and config.task.template is 'none'"):
        encode([row], form)


def test_a_prompt_that_is_too_long_is_cut_after_its_first_token_or_left_out():
    rows, tokenizer = [Row(f'rows.jsonl:{n}', {'prompt': 'abcdefghij'[:n]}) for n in (3, 4, 8)], Bytes()

    def encoded(policy, limit=4):
        form = RowFormat((), '', (), tokenizer, None, LengthPolicy(policy, limit), True)
        return [each.tokens.tolist()[:-1] for each in encode(rows, form).examples]

    begin = tokenizer.begin_id
    assert encoded('cut') == [[begin, *b'abc'], [begin, *b'bcd'], [begin, *b'fgh']]
    assert encoded('cut', 1) == [[begin]] * 3
    assert encoded('drop') == [[begin, *b'abc']]
    message = 'rows.jsonl:4: a prompt of 5 tokens, and data.seq_len is 4, .*policy.max_tokens'
    with pytest.raises(InputError, match=message):
        encoded('error')


@pytest.mark.parametrize(
    ('fields', 'prompt'),
    [
        ({'question': 'a', 'answer': 'b'}, 'a'),
        ({'instruction': 'a', 'input': 'c', 'response': 'b'}, 'a\n\nc'),
        ({'instruction': 'a', 'output': 'b', 'input': ''}, 'a'),
        ({'instruction': 'a', 'output': 'b', 'input': 'c'}, 'a\n\nc'),
    ],
)
def test_the_question_of_a_pair_is_a_turn_as_in_supervised_training(fields, prompt):
    row, tokenizer = Row('rows.jsonl:1', fields | {'system': 's'}), Bytes()
    assert dialogue(row, (), '', None).messages[:2] == [
        {'role': 'system', 'content': 's'},
        {'role': 'user', 'content': prompt},
    ]
    form = RowFormat((), '', (), tokenizer, open_template('plain', tokenizer, ''), LengthPolicy('error', 32), True)
    [own], [supervised] = (each([row], form).examples for each in (encode, TASKS['chat'].encode))
    size = len(own.tokens) - 1  # without its end token
    assert supervised.tokens[:size].tolist() == own.tokens[:size].tolist()
    assert np.flatnonzero(supervised.flat['loss_mask'])[0] == size - 1


def test_a_conversation_has_its_system_text_and_its_tools():
    messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b', 'weight': 1}]
    tools = [{'type': 'function', 'function': {'name': 'f'}}]
    template = Template('{{ tools[0].function.name }}{% for m in messages %}{{ m.content }}{% endfor %}', 'own')
    for field in ('prompt', 'messages'):
        row = Row('rows.jsonl:1', {field: messages, 'system': 's', 'tools': tools})
        whole = dialogue(row, (), '', None)
        assert [each['role'] for each in whole.messages] == ['system', 'user', 'assistant'] and whole.tools == tools
        form = RowFormat((), '', (), Bytes(), template, LengthPolicy('error', 32), True)
        assert bytes(encode([row], form).examples[0].tokens[1:-1].tolist()) == b'fsa'


@pytest.mark.parametrize('system', ['system', 'system_prompt', ''])
@pytest.mark.parametrize('history', [[['q', 'r']], [{'question': 'q', 'answer': 'r'}], []])
def test_a_text_prompt_is_a_turn_after_the_system_text_and_the_history(system, history):
    fields = {'prompt': 'a', 'history': history} | ({system: 's'} if system else {})
    turns = [
        *turn('system', 's' * bool(system)),
        *turn('user', 'q' * bool(history)),
        *turn('assistant', 'r' * bool(history)),
    ]
    row = Row('rows.jsonl:1', fields)
    if not turns:
        assert dialogue(row, (), '', None).texts[0] == 'a'
        return
    assert dialogue(row, (), '', None).messages[:-1] == [*turns, *turn('user', 'a')]
    assert dialogue(row, ('prompt',), '', None).texts[0] == 'a'  # a named field is read alone
    form = RowFormat((), '', (), Bytes(), None, LengthPolicy('error', 8), True)
    with pytest.raises(InputError, match="rows.jsonl:1: a conversation, and config.task.template is 'none'"):
        encode([row], form)


def turn(role, content):
    return [{'role': role, 'content': content}] if content else []


def test_a_text_in_a_field_that_is_read_by_its_name_is_continued():
    assert dialogue(Row('rows.jsonl:1', {'prompt': 'a', 'answer': 'b'}), (), '', None).texts[0] == 'a'
    assert dialogue(Row('rows.jsonl:1', {'question': 'a', 'answer': 'b'}), ('question',), '', None).texts[0] == 'a'
