"""KTO: closed forms, TRL's losses, groups of rows that share an estimate of the KL divergence."""

import functools

import jax
import numpy as np
import pytest

from experiments.parity import preference_cases
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError
from lmtrain.tasks import unpaired

M = 4


def rows(count, size=3):
    return [
        Row(f'rows.jsonl:{n}', {'prompt': f'{n} ', 'completion': 'abc'[n % 3] * size, 'label': n % 2 == 0})
        for n in range(count)
    ]


def test_losses_of_two_texts():
    """r = 2 and -1, r of their mismatched texts 3 and -1: the estimate is 1."""
    batch = {
        'segment_ids': np.array([[1, 2, 3, 4]]),
        'loss_mask': np.ones((1, 4), np.float32),
        'scored': np.array([[1, 2, 3, 4]]),
        'labels': np.array([[1, 0, 0, 0]], np.float32),
        'label_weights': np.array([[1, 0, 1, 0]], np.float32),
        'ref_logprob': np.array([[-4, -4, -4, -4]], np.float32),
    }
    own = np.array([[-2, -1, -5, -5]], np.float32)
    values, weights = unpaired.kto(lambda _: {'logprob': own}, batch, beta=0.5, desirable=2.0, undesirable=3.0)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    np.testing.assert_allclose(values['loss'], [[2 * (1 - sigmoid(0.5)), 3 * (1 - sigmoid(1.0))]], rtol=1e-6)
    np.testing.assert_array_equal(values['kl'], [[1, 1]])
    np.testing.assert_array_equal(values['rewards/accuracies'], [[1, 1]])
    np.testing.assert_array_equal(values['rewards/signed'], [[1.0, 0.5]])
    np.testing.assert_array_equal(weights, [[1, 1]])
    lower, _ = unpaired.kto(lambda _: {'logprob': own - 2}, batch, beta=0.5)
    np.testing.assert_array_equal(lower['kl'], [[0, 0]])  # never negative


def test_groups_pair_every_prompt_with_the_completion_before(form):
    encoded = unpaired.encode(rows(5), form(Bytes(), (), '')._replace(group=3))
    texts = [bytes(each.tokens[1:-1].tolist()).decode() for each in encoded.examples]
    assert texts[:6] == ['0 aaa', '0 ccc', '1 bbb', '1 aaa', '2 ccc', '2 bbb']
    assert texts[6:] == ['2 ccc', '2 bbb', '3 aaa', '3 ccc', '4 bbb', '4 aaa']  # the last group is completed
    values = {name: [each.values[name].item() for each in encoded.examples] for name in encoded.examples[0].values}
    assert values['scored'] == [1, 2, 3, 4, 5, 6] * 2
    assert values['label_weights'] == [1, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0]
    assert values['labels'] == [1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0]
    assert encoded.notes == ['5 rows of prompt + completion + label', '3 desirable, 2 undesirable completions']


def test_system_text_is_written_by_the_template_of_the_run(form):
    source = '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}'
    template = Template(source + "{{ '<a>' if add_generation_prompt }}", 'a template')
    with_system = [row._replace(fields=row.fields | {'system': 'be'}) for row in rows(2)]
    for own, text in ((template, '<s>be<u>0 <a>aaa'), (None, 'be\n0 \naaa')):
        encoded = unpaired.encode(with_system, form(Bytes(), (), '', seq_len=96)._replace(group=2, template=own))
        assert bytes(encoded.examples[0].tokens[1:-1].tolist()).decode() == text
        assert encoded.templated is bool(own)
        assert bool(unpaired.dialogue(with_system[0], (), '', own).messages) is bool(own)


def test_completions_that_the_template_does_not_write_are_counted(form):
    template = Template('{% for m in messages %}{{ m.content }}{% endfor %}', 'a template')
    user, call = {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': '', 'tool_calls': [{'name': 'f'}]}
    whole = [Row(each.place, each.fields | {'prompt': [user]}) for each in rows(3)]
    whole[1].fields['completion'] = [call]
    encoded = unpaired.encode(whole, form(Bytes(), (), '')._replace(group=2, template=template))
    assert [each.source for each in encoded.examples] == [0, 0, 2, 2]
    assert encoded.notes[1] == '1 row left out, whose completion the template does not write: rows.jsonl:1'


def test_prompts_are_mismatched_with_completions_of_other_prompts(form):
    """Also in a file that has the good and the bad completion of a prompt in a row."""
    pairs = [
        Row('rows.jsonl', {'prompt': f'{n // 2} ', 'completion': 'abcd'[n], 'label': n % 2 == 0}) for n in range(4)
    ]
    encoded = unpaired.encode(pairs, form(Bytes(), (), '')._replace(group=4))
    texts = [bytes(each.tokens[1:-1].tolist()).decode() for each in encoded.examples]
    assert texts == ['0 a', '0 d', '0 b', '0 d', '1 c', '1 b', '1 d', '1 b']
    same = [each._replace(fields=each.fields | {'prompt': '0 '}) for each in pairs]
    encoded = unpaired.encode(same, form(Bytes(), (), '')._replace(group=2))
    assert bytes(encoded.examples[1].tokens[1:-1].tolist()) == b'0 b'
    repeated = unpaired.encode(rows(2), form(Bytes(), (), '')._replace(group=3))  # 0, 1, 0: not with itself
    assert bytes(repeated.examples[1].tokens[1:-1].tolist()) == b'0 bbb'


def test_fewer_rows_than_a_group_are_repeated(form):
    encoded = unpaired.encode(rows(2), form(Bytes(), (), '')._replace(group=3))
    weights = [each.values['label_weights'].item() for each in encoded.examples]
    assert len(weights) == 6 and sum(weights) == 2


def test_one_training_row_is_refused_and_one_of_another_split_left_out(form):
    """Before, a share of 0.05 of 20 rows, one test row, refused the run."""
    some = [*rows(1), Row('rows.jsonl:9', {'prompt': 'a', 'completion': ' ', 'label': True})]
    message = 'rows.jsonl:0: one training row is left of 2; the KL estimate needs the completion of another'
    with pytest.raises(InputError, match=message):
        unpaired.encode(some, form(Bytes(), (), '')._replace(group=3))
    long = [each._replace(fields=each.fields | {'prompt': 'p' * 20}) for each in some]
    for each in (some, long):
        held_out = form(Bytes(), (), '', training=False, policy='cut')._replace(group=3)
        encoded = unpaired.encode(each, held_out)
        assert encoded.examples == [] and encoded.templated is False and held_out.length.count == 0
        assert encoded.notes == [
            '1 row left out, with an empty completion: rows.jsonl:9',
            '1 row left out, alone in its split, without another completion for the KL estimate (give the split a '
            'second row): rows.jsonl:0',
        ]


def test_long_texts_follow_the_policy(form):
    long = [*rows(2), Row('rows.jsonl:9', {'prompt': 'p' * 20, 'completion': 'ok', 'label': True})]
    with pytest.raises(
        InputError, match=r'rows.jsonl:9: 23 tokens, and data.seq_len = 64 holds 4 texts of 16 .*group = 2'
    ):
        unpaired.encode(long, form(Bytes(), (), '')._replace(group=2))
    cut = unpaired.encode(long, form(Bytes(), (), '', policy='cut')._replace(group=2))
    assert max(len(each.tokens) for each in cut.examples) == 17
    dropped = unpaired.encode(long, form(Bytes(), (), '', policy='drop')._replace(group=2))
    assert '1 row left out, of more than 16 tokens: rows.jsonl:9' in dropped.notes


def stream(stream_of, **options):
    examples = preference_cases.labelled()
    texts, values = [], []
    for begin in range(0, len(examples), M):
        group = examples[begin : begin + M]
        for n, (prompt, completion, label) in enumerate(group):
            texts += [(prompt, completion), (prompt, group[n - 1][1])]
            for index in (0, 1):
                own = {'labels': np.float32(label), 'label_weights': np.float32(1 - index)}
                values.append({'scored': np.int32(1 + 2 * n + index)} | own)
    return stream_of(unpaired.TASK, texts, values, **options)


@pytest.mark.parametrize('name', preference_cases.KTO)
def test_six_steps_equal_those_of_trl(trl, stream_of, losses_of, name):
    goldens, load = trl
    model, params = load('causal')
    whole = stream(stream_of, size=128, rows=1)  # a row is a batch of TRL
    apply = jax.jit(model.apply)
    batches = [whole.batch(n) for n in range(3)]
    batches = [batch | {'ref_logprob': np.asarray(apply({'params': params}, batch)['logprob'])} for batch in batches]
    loss = functools.partial(unpaired.kto, **preference_cases.KTO[name])
    losses = losses_of(loss, model, params, batches)
    np.testing.assert_allclose(losses, goldens['kto'][name]['steps'], rtol=1e-5, atol=1e-5)


def test_padding_changes_no_loss(trl, stream_of):
    """Longer rows, and rows that are padded on the left."""
    model, params = trl[1]('causal')

    def mean(batch):
        size = batch['tokens'].shape[1]
        batch = batch | {'ref_logprob': np.full((3, size), -3, np.float32)}
        loss = functools.partial(unpaired.kto, lambda own: model.apply({'params': params}, own), beta=0.5)
        values, weights = jax.jit(loss)(batch)
        return {name: float(np.sum(value * weights) / np.sum(weights)) for name, value in values.items()}

    batch = stream(stream_of, size=128, rows=3).batch(0)
    left = {name: column.copy() for name, column in batch.items()}
    for row, size in enumerate((batch['segment_ids'] > 0).sum(axis=1)):
        for name in ('tokens', 'targets', 'segment_ids', 'positions', 'loss_mask'):
            left[name][row] = np.roll(left[name][row], 128 - size)
    assert not left['segment_ids'][:, 0].all() and abs(mean(batch)['loss']) > 0.1
    for other in (left, stream(stream_of, size=144, rows=3).batch(0)):
        for name, value in mean(other).items():
            np.testing.assert_allclose(value, mean(batch)[name], rtol=1e-6, atol=1e-6, err_msg=name)
