"""Log-likelihoods of continuations equal those of whole texts, and what texts have in common is read once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain.inference import likelihood
from lmtrain.inference.likelihood import TokenPrompt
from lmtrain.models import Transformer

VOCAB, CONTEXT = 61, 96
LONGROPE = (
    ('rope_type', 'longrope'),
    ('factor', 4.0),
    ('original_max_position_embeddings', 40),
    ('short_factor', (1.0, 1.0)),
    ('long_factor', (2.0, 5.0)),
)
LENGTHS = 'angles that depend on the length'
CASES = {
    'rotary': {},
    'window': {'window': 6, 'num_kv_heads': 2},
    'learned': {'positions': 'learned'},
    'soft prompt': {'leaves': 'prompt', 'positions': 'learned'},
    'prefix in a window': {'leaves': 'prefix', 'window': 20},
    'lora': {'leaves': 'lora'},
    LENGTHS: {'rope_scaling': LONGROPE},
}


@functools.cache
def build(name):
    """(model, random parameters)."""
    settings = {name: value for name, value in CASES[name].items() if name != 'leaves'}
    leaves, config = CASES[name].get('leaves', ''), base.get_config()
    small = {'vocab_size': VOCAB, 'max_len': CONTEXT, 'num_layers': 2, 'width': 16, 'num_heads': 4, 'num_kv_heads': 4}
    config.model.update(small | {'head_dim': 4, 'mlp_dim': 24, 'unroll': 1} | settings)
    model = Transformer(**config.model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), {'tokens': jnp.zeros((1, 4), jnp.int32)})['params'])
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.normal(0.0, 0.5, shape), jnp.float32)

    params = jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)
    if leaves == 'prompt':
        params['prompt'] = {'embedding': draw(5, 16)}
    elif leaves == 'prefix':
        params['layers']['attention'] |= {f'prefix_{part}': draw(2, 3, 4, 4) for part in ('key', 'value')}
    elif leaves == 'lora':
        params['layers']['attention']['value'] |= {'lora_a': draw(2, 16, 2), 'lora_b': draw(2, 2, 16)}
        params['layers']['attention']['value'] |= {'lora_scale': jnp.ones(2)}
    return model, params


@functools.partial(jax.jit, static_argnames='model')
def logprob(model, params, tokens):
    return jax.nn.log_softmax(model.apply({'params': params}, {'tokens': tokens})['logits'])


def of_whole_texts(model, params, prompts):
    """(nats, greedy) by a forward pass over every text."""
    nats, greedy = [], []
    for context, ends in prompts:
        values = []
        for ids in ends:
            whole, count = np.append(context, ids)[:-1], len(context) + len(ids) - 1
            padded = np.zeros(
                count if model.rope_scaling else CONTEXT - 10, np.int32
            )  # padding would change the angles
            padded[:count] = whole
            logp = np.asarray(logprob(model, params, padded[None]))[0, len(context) - 1 : count]
            values.append((logp[np.arange(len(ids)), ids].sum(), np.array_equal(logp.argmax(axis=1), ids)))
        nats.append([value for value, _ in values])
        greedy.append([top for _, top in values])
    return nats, greedy


def texts(shared=50, seed=1):
    """Contexts with a common beginning, and continuations of 1 to 7 tokens; some begin like the context ends."""
    random = np.random.default_rng(seed)
    first, prompts = random.integers(0, VOCAB, shared), []
    for length, counts in ((3, (1, 1)), (1, (4, 1, 7)), (8, (2,)), (17, (3, 3, 2, 1, 5)), (2, (1,)), (4, (1, 2))):
        context = np.append(first, random.integers(0, VOCAB, length)).astype(np.int32)
        ends = [random.integers(0, VOCAB, count).astype(np.int32) for count in counts]
        ends[0][0] = context[-1]
        prompts.append(TokenPrompt(context, tuple(ends)))
    return prompts


@pytest.fixture(autouse=True)
def _share_short_beginnings(monkeypatch):
    monkeypatch.setattr(likelihood, 'LEAST_SAVED', 64)


@pytest.mark.parametrize('name', ['rotary', 'soft prompt'])
def test_a_prompt_reads_the_beginning_that_earlier_ones_have_left(name):
    model, params = build(name)
    [query, *others], other_params = texts(), jax.tree.map(lambda x: x + 1, params)
    [alone] = likelihood.log_likelihoods(model, params, [query], 1).nats
    with likelihood.kept_beginnings() as kept:
        likelihood.log_likelihoods(model, params, others, 4)
        assert [len(each.ids) for each in kept] == [50]
        values = likelihood.log_likelihoods(model, params, [query], 1)
        assert likelihood.log_likelihoods(model, other_params, [query], 1).computed_tokens == 50 + 3
    np.testing.assert_allclose(values.nats[0], alone, atol=1e-4)
    assert values.computed_tokens == 3 and len(query.context_ids) == 53
    assert likelihood.log_likelihoods(model, params, [query], 1).computed_tokens == 53


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'greedy'), [*((name, False) for name in CASES), ('rotary', True), (LENGTHS, True)])
def test_likelihoods_equal_those_of_whole_texts(name, greedy):
    model, params = build(name)
    prompts = texts(shared=50 if name != LENGTHS else 34)  # 40 tokens, where the angles change, are inside of texts
    last = prompts[-1].context_ids
    for _ in range(2):  # a continuation that is greedy
        most_likely = np.asarray(logprob(model, params, last[None]))[0, -1].argmax()
        last = np.append(last, most_likely).astype(np.int32)
    prompts[-1] = prompts[-1]._replace(continuations=(*prompts[-1].continuations, last[-2:]))
    values = likelihood.log_likelihoods(model, params, prompts, batch_size=4, greedy=greedy)
    expected, top = of_whole_texts(model, params, prompts)
    assert [each.tolist() for each in values.greedy] == (top if greedy else [])
    assert top[-1][-1] and not all(map(any, top))
    for own, other, prompt in zip(values.nats, expected, prompts, strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-5, atol=2e-5)
        assert own.shape == (len(prompt.continuations),)
    assert [tokens.tolist() for tokens in values.tokens] == [[len(ids) for ids in p.continuations] for p in prompts]
    assert np.ptp(np.concatenate(expected)) > 1


def test_what_texts_have_in_common_is_read_once():
    model, params = build('rotary')
    prompts = texts()
    values = likelihood.log_likelihoods(model, params, prompts, batch_size=4)
    rests = [len(ids) - 1 for each in prompts for ids in each.continuations]
    assert values.computed_tokens == 50 + sum(len(each.context_ids) - 50 for each in prompts) + sum(rests)
    apart = likelihood.log_likelihoods(model, params, texts(shared=0), batch_size=4)
    assert apart.computed_tokens == sum(len(each.context_ids) for each in texts(shared=0)) + sum(rests)
    twice = likelihood.log_likelihoods(model, params, [*prompts, *prompts], batch_size=4)
    assert twice.computed_tokens == values.computed_tokens and len(twice.nats) == 2 * len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize('shared', [50, 0])
def test_likelihoods_do_not_depend_on_batch_and_other_prompts(shared):
    model, params = build('rotary')
    prompts = texts(shared)
    all_together = likelihood.log_likelihoods(model, params, prompts, batch_size=8).nats
    for batch_size in (1, 3):
        for own, other in zip(
            likelihood.log_likelihoods(model, params, prompts[::-1], batch_size).nats[::-1], all_together, strict=True
        ):
            np.testing.assert_allclose(own, other, rtol=1e-5)
    for prompt, other in zip(prompts, all_together, strict=True):
        (own,) = likelihood.log_likelihoods(model, params, [prompt], 8).nats
        np.testing.assert_allclose(own, other, rtol=1e-5)


def test_many_choices_are_one_program():
    model, params = build('rotary')
    random = np.random.default_rng(2)
    rows = [random.integers(0, VOCAB, length).astype(np.int32) for length in (40, 45, 50)]
    choices = tuple(random.integers(0, VOCAB, 1 + number % 3).astype(np.int32) for number in range(77))
    programs = likelihood._nats, likelihood._encode
    sizes = [program._cache_size() for program in programs]
    values = likelihood.log_likelihoods(model, params, [TokenPrompt(row, choices) for row in rows], 32)
    sizes = [program._cache_size() - n for program, n in zip(programs, sizes, strict=True)]
    assert sizes == [1, 0]
    assert values.computed_tokens == 40 + 45 + 50 + 3 * sum(len(ids) - 1 for ids in choices)

    for own, other in zip(
        values.nats, of_whole_texts(model, params, [TokenPrompt(row, choices[:5]) for row in rows])[0]
    ):
        np.testing.assert_allclose(own[:5], other, rtol=2e-5, atol=2e-5)


def test_other_numbers_and_lengths_of_prompts_are_the_same_programs():
    model, params = build('rotary')
    random, size = np.random.default_rng(4), likelihood._nats._cache_size()
    ends = (np.array([1, 2, 3], np.int32), np.array([4, 5], np.int32))
    for count in (2, 5, 9, 14):  # of lengths that are padded to 32, 48 and 64
        contexts = [random.integers(0, VOCAB, length).astype(np.int32) for length in random.integers(5, 60, count)]
        likelihood.log_likelihoods(model, params, [TokenPrompt(each, ends) for each in contexts], batch_size=7)
    assert likelihood._nats._cache_size() - size <= 3


def test_a_prompt_without_continuations_has_no_likelihood():
    model, params = build('rotary')
    values = likelihood.log_likelihoods(model, params, [TokenPrompt(np.arange(3, dtype=np.int32))], 4)
    assert [x.tolist() for x in (*values.nats, *values.tokens)] == [[], []] and values.computed_tokens == 0


def saved(texts, groups):
    return sum((len(members) - 1) * length - likelihood.LEAST_SAVED for length, members in groups if length)


def test_groups_save_the_most_tokens():
    random = np.random.default_rng(3)
    for _ in range(30):
        texts = [np.repeat(random.integers(0, 2, 6), 30)[: random.integers(20, 181)] for _ in range(6)]
        groups = likelihood.shared_beginnings(texts)
        assert sorted(itertools.chain(*(members for _, members in groups))) == list(range(6))
        for length, members in groups:
            assert all(
                len(texts[i]) > length and np.array_equal(texts[i][:length], texts[members[0]][:length])
                for i in members
            )
        order = sorted(range(6), key=lambda i: texts[i].tobytes())
        best = 0
        for cuts in itertools.product([False, True], repeat=5):
            parts = np.split(order, [at + 1 for at in range(5) if cuts[at]])
            gains = []
            for part in parts:
                stacked = [texts[i] for i in part]
                length = min(likelihood.common_length(stacked[0], text) for text in stacked)
                length = min(length, *(len(text) - 1 for text in stacked))
                gains.append(max(0, (len(part) - 1) * length - likelihood.LEAST_SAVED))
            best = max(best, sum(gains))
        assert saved(texts, groups) == best
