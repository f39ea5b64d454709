"""Generation equals full forward passes, does not depend on other prompts, and has the requested distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain.inference import decode, sample
from lmtrain.models import Transformer
from lmtrain.parallel import sharding

END, VOCAB = 40, 41  # of the tokenizer; the embedding has 64 rows
GREEDY = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'end_ids': [END], 'vocab_size': VOCAB}
DRAWN = GREEDY | {'temperature': 1.0}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [END], [27], [3, 1, 4]]


def transformer(**changes) -> Transformer:
    config = base.get_config().model
    config.update({'vocab_size': 64, 'max_len': 48, 'num_layers': 2, 'width': 16, 'num_heads': 4, 'num_kv_heads': 2})
    config.update({'head_dim': 4, 'mlp_dim': 32, 'unroll': 2, 'window': 5} | changes)
    return Transformer(**config)


@functools.cache
def parameters(model: Transformer):
    """Large enough that the most likely token is not always the same."""
    batch = {'tokens': np.zeros((1, 4), np.int32)}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)['params'])
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.7, leaf.shape), leaf.dtype), shapes)


def generate(model, prompts, max_tokens=20, params=None, **settings):
    params = parameters(model) if params is None else params
    return [text.ids for text in sample.generate(model, params, prompts, max_tokens=max_tokens, **settings)]


@functools.partial(jax.jit, static_argnames='model')
def logits_of(model, params, tokens_1T, length):
    real_1T = (jnp.arange(tokens_1T.shape[1]) < length).astype(jnp.int32)[None]
    return model.apply({'params': params}, {'tokens': tokens_1T, 'segment_ids': real_1T})['logits'][0, length - 1]


def recomputed(model, prompt, max_tokens, params=None):
    """Greedy text from a full forward pass for every token."""
    made = []
    while len(made) < max_tokens and len(prompt + made) <= model.max_len:
        padded = np.zeros((1, model.max_len), np.int32)
        padded[0, : len(prompt + made)] = prompt + made
        token = int(jnp.argmax(logits_of(model, params or parameters(model), padded, len(prompt + made))[:VOCAB]))
        if token == END:
            break
        made.append(token)
    return made


@pytest.mark.parametrize('every', [8, 3])
def test_a_text_longer_than_the_original_context_of_longrope_is_prefilled_again(every):
    """Prompts shorter than it, as long, and longer; the new angles change all previous positions."""
    longrope = {'rope_type': 'longrope', 'factor': 4.0, 'original_max_position_embeddings': 12}
    longrope |= {'short_factor': (1.0, 1.1), 'long_factor': (6.0, 9.0)}
    model = transformer(rope_scaling=tuple(longrope.items()), window=0)
    random = np.random.default_rng(3)
    prompts = [random.integers(0, END, length).tolist() for length in (4, 9, 11, 12, 13, 16)]
    table = parameters(model)['embed']['embedding']
    params = parameters(model) | {'embed': {'embedding': table.at[END].set(0)}}  # no text ends
    expected = [recomputed(model, prompt, 20, params) for prompt in prompts]
    texts = [[] for _ in prompts]
    for row, ids, _ in sample.stream(model, params, prompts, max_tokens=20, every=every, **GREEDY):
        texts[row] += ids
    assert texts == expected
    assert min(map(len, expected)) == 20
    # A row of 46 tokens runs out of context before another one is prefilled again.
    assert generate(model, [[7] * 46, prompts[0]], params=params, **GREEDY)[1] == expected[0]


LEARNED = {'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu', 'bias': True}
SHAPES = {
    'rotary, grouped, window': {},
    'window of some layers': {'global_layers': (1,), 'local_rope_theta': 50.0},
    'learned, biases, scan': LEARNED | {'tied': False, 'window': 0, 'unroll': 1},
    'ungrouped, remat, dropout': {'tied': False, 'num_kv_heads': 4, 'remat': 'full', 'dropout': 0.5},
}


@pytest.mark.parametrize('changes', SHAPES.values(), ids=SHAPES)
def test_cached_generation_equals_full_forward_passes(changes):
    model = transformer(**changes)
    texts = generate(model, PROMPTS, **GREEDY)
    assert texts == [recomputed(model, prompt, 20) for prompt in PROMPTS]
    assert len(set(map(tuple, texts))) > 1 and len(set(sum(texts, []))) > 2


def test_generation_does_not_use_a_kernel_without_cache():
    splash = transformer(attention='splash')
    assert generate(splash, PROMPTS, params=parameters(transformer()), **GREEDY) == generate(
        transformer(), PROMPTS, **GREEDY
    )


@pytest.mark.parametrize(
    'settings', [GREEDY, DRAWN, DRAWN | {'top_k': 9, 'top_p': 0.9}], ids=['greedy', 'drawn', 'cut']
)
def test_a_text_does_not_depend_on_other_prompts(settings):
    together = generate(transformer(), PROMPTS, **settings)
    assert together == [generate(transformer(), [prompt], **settings)[0] for prompt in PROMPTS]
    assert together == generate(transformer(), PROMPTS[::-1], **settings)[::-1]


@pytest.mark.parametrize('settings', [GREEDY, DRAWN], ids=['greedy', 'drawn'])
def test_a_long_prompt_pads_its_own_batch_alone(monkeypatch, settings):
    model, shapes = transformer(), []
    prompts = [*PROMPTS, [5] * 40, [27], *([row, 2, 3] for row in range(5)), [27], [27]]
    texts = generate(model, prompts, **settings)
    # One call for each prompt, and one for those that are equal: their texts depend on their number.
    for row, prompt in enumerate(prompts):
        before = prompts[:row].count(prompt)
        assert texts[row] == generate(model, [prompt] * (before + 1), **settings)[before]

    def record(*arguments, original=sample.states):
        shapes.append(arguments[2].tokens.shape)
        return original(*arguments)

    monkeypatch.setattr(sample, 'states', record)
    assert generate(model, prompts, batch_size=4, **settings) == texts
    assert shapes == [(4, 48), (4, 16), (4, 16), (4, 16)]
    shapes.clear()
    pieces = list(sample.stream(model, parameters(model), prompts, max_tokens=20, batch_size=4, **settings))
    streamed = [sum((ids for row, ids, _ in pieces if row == wanted), []) for wanted in range(len(prompts))]
    assert streamed == texts
    assert shapes == [(4, 16), (4, 48), (4, 16), (4, 16)]
    firsts = list(dict.fromkeys(row for row, _, _ in pieces))
    assert firsts == sorted(firsts)  # a stream begins with the first prompts
    with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
        generate(model, prompts, batch_size=0, **settings)


def test_equal_prompts_get_different_texts_and_equal_seeds_equal_ones():
    texts = generate(transformer(), [[7]] * 4, **DRAWN)
    assert len(set(map(tuple, texts))) == 4
    assert generate(transformer(), [[7]] * 4, **DRAWN) == texts
    one = texts[0]
    assert generate(transformer(), [[7]], **DRAWN | {'seed': 1}) != [one]


@pytest.mark.parametrize('every', [1, 3, 50])
def test_a_stream_yields_the_text_in_pieces(every):
    pieces = list(sample.stream(transformer(), parameters(transformer()), PROMPTS, max_tokens=20, every=every, **DRAWN))
    texts = [sum((ids for row, ids, _ in pieces if row == wanted), []) for wanted in range(len(PROMPTS))]
    assert texts == generate(transformer(), PROMPTS, **DRAWN)
    for wanted in range(len(PROMPTS)):
        mine = [(len(ids), reason) for row, ids, reason in pieces if row == wanted]
        assert [bool(reason) for _, reason in mine] == [False] * (len(mine) - 1) + [True]
        assert all(count <= every for count, _ in mine)


def test_few_programs_serve_all_settings():
    """One prefill and one decode for each way to draw, whatever the lengths and the values of the settings."""

    def sizes():
        return decode.prefill._cache_size(), decode.decode._cache_size()

    model, before = transformer(), None
    for settings in (GREEDY, DRAWN, DRAWN | {'top_k': 3}):
        generate(model, [[1]], **settings)
    before = sizes()
    for options in (GREEDY, DRAWN, DRAWN | {'temperature': 0.3, 'top_k': 5, 'top_p': 0.5, 'seed': 9}):
        for prompt, max_tokens in (([1, 2, 3, 4], 17), ([END], 31), (list(range(16)), 20)):
            generate(model, [prompt], max_tokens, **options | {'end_ids': [END, *prompt][:5]})
            list(sample.stream(model, parameters(model), [prompt], max_tokens=max_tokens, **options))
    assert sizes() == before
    generate(model, [[1]] * 4, **GREEDY)
    assert max(np.subtract(sizes(), before)) <= 1


def caches(model, tokens, samples=1, room=32):
    """Shapes of (past, cache) after a prefill of prompts [P, T]."""
    prompts, settings = [[1]] * tokens[0], GREEDY | {'max_tokens': room}
    batch = sample.prompt_batch(model, parameters(model), prompts, settings, rows=tokens[0], samples=samples)
    state = decode.start(batch.settings, batch.room, batch.method)
    prefill = functools.partial(decode.prefill, decode.for_decoding(model)[0], method=batch.method)
    arrays = np.zeros(tokens, np.int32), np.ones(tokens[0], np.int32)
    past, cache, _ = jax.eval_shape(prefill, parameters(model), *arrays, state, batch.settings)
    return past, cache


def test_the_cache_is_in_the_compute_dtype():
    past, cache = caches(transformer(dtype='bfloat16', window=0), (2, 16))
    assert {x.dtype for x in (*past['key'], *cache['value'])} == {jnp.dtype(jnp.bfloat16)}
    assert [x.shape for x in cache['key']] == [(2, 2, 32, 4)] * 2


def test_samples_share_the_keys_of_their_prompt():
    past, cache = caches(transformer(window=0), (3, 16), samples=4)
    assert [x.shape for x in past['key']] == [(3, 2, 16, 4)] * 2
    assert [x.shape for x in cache['key']] == [(12, 2, 32, 4)] * 2


def test_a_cache_is_not_longer_than_the_window():
    past, cache = caches(transformer(window=5), (2, 16))
    assert past['key'][0].shape[2] == cache['key'][0].shape[2] == 5
    past, cache = caches(transformer(window=5, global_layers=(1,)), (2, 16))
    assert [x.shape[2] for x in cache['key']] == [5, 32]


def test_the_cache_is_donated(monkeypatch):
    run, arguments = decode.decode, []
    monkeypatch.setattr(decode, 'decode', lambda *args: arguments.append(args[3]) or run(*args))
    list(sample.stream(transformer(), parameters(transformer()), PROMPTS, max_tokens=20, **GREEDY))
    assert len(arguments) > 1 and all(x.is_deleted() for cache in arguments for x in cache['key'] + cache['value'])


def steered(model, order):
    """Parameters with which the most likely token after any text is the first of `order`, then the second, ..."""
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameters(model))
    params['embed']['embedding'][:, 0] = 1
    params['final_norm']['scale'][:] = 1
    params['head']['kernel'][0, order] = -np.arange(model.vocab_size)
    return params


def test_the_padding_of_the_vocabulary_is_never_drawn():
    model = transformer(tied=False)
    params = steered(model, [*range(VOCAB, 64), *range(END), END])  # all padding first
    assert generate(model, [[1]] * 4, 40, params, **GREEDY) == [[0] * 40] * 4
    hot = DRAWN | {'temperature': 1e6}
    drawn = {token for text in generate(model, [[1]] * 4, 40, params, **hot) for token in text}
    assert len(drawn) > 20 and drawn <= set(range(END))


def test_entries_of_a_tokenizer_without_a_row_are_never_drawn():
    """A tokenizer of 70 entries on an embedding of 64 rows."""
    model = transformer(tied=False)
    params = steered(model, [63, *range(63)])
    wide = {'vocab_size': 70, 'end_ids': [66]}
    assert generate(model, [[1]], 5, params, **GREEDY | wide) == [[63] * 5]
    drawn = {t for text in generate(model, [[1]] * 4, 40, params, **DRAWN | wide | {'temperature': 1e6}) for t in text}
    assert len(drawn) > 40 and drawn <= set(range(64))


def test_ids_that_a_tokenizer_skips_are_never_drawn():
    model = transformer(tied=False)
    params = steered(model, [7, 3, *(token for token in range(64) if token not in (3, 7))])
    wide = {'vocab_size': 70, 'end_ids': [66]}
    assert generate(model, [[1]], 5, params, **GREEDY | wide | {'absent': (7, 68)}) == [[3] * 5]
    hot = DRAWN | wide | {'absent': (7, 9), 'temperature': 1e6}
    drawn = {token for text in generate(model, [[1]] * 4, 40, params, **hot) for token in text}
    assert len(drawn) > 40 and not drawn & {7, 9}


@pytest.mark.parametrize('ends', [[END], [9, END], [END, 3, 9]], ids=str)
def test_a_text_ends_at_the_first_of_several_end_tokens(ends):
    """Equals the text without end tokens, cut; finish_reason tells which texts ended."""
    free = {'max_tokens': 20} | DRAWN
    whole = sample.generate(transformer(), parameters(transformer()), PROMPTS * 8, **free | {'end_ids': []})
    texts = sample.generate(transformer(), parameters(transformer()), PROMPTS * 8, **free | {'end_ids': ends})
    for text, uncut in zip(texts, whole, strict=True):
        cut = next((i for i, token in enumerate(uncut.ids) if token in ends), None)
        assert text == (uncut.ids[:cut], 'length' if cut is None else 'stop')
        assert uncut.finish_reason == 'length' and len(uncut.ids) == 20
    assert {text.finish_reason for text in texts} == {'stop', 'length'}


def test_a_text_ends_before_the_end_token():
    model = transformer(tied=False)
    params = steered(model, [END, *range(END), *range(VOCAB, 64)])
    assert generate(model, [[1], [END], [END, 2]], 40, params, **GREEDY) == [[], [], []]
    texts = sum((generate(transformer(), PROMPTS, **DRAWN | {'seed': seed}) for seed in range(8)), [])
    assert all(END not in text for text in texts)
    assert min(map(len, texts)) < 20  # some drew it


def test_a_text_ends_at_the_end_of_the_context():
    model = transformer(tied=False)
    params = steered(model, [5, *range(5), *range(6, 64)])
    prompts = [[1] * 48, [1] * 47, [END], [1]]
    assert list(map(len, generate(model, prompts, 100, params, **GREEDY))) == [1, 2, 48, 48]
    assert [sample.max_new_tokens(model, prompt) for prompt in prompts] == [1, 2, 48, 48]
    texts = sample.generate(model, params, prompts[1:3], max_tokens=48, **GREEDY)
    assert [text.finish_reason for text in texts] == ['context', 'length']


def test_one_candidate_is_greedy():
    wanted = generate(transformer(), PROMPTS, **GREEDY)
    assert generate(transformer(), PROMPTS, **DRAWN | {'top_k': 1}) == wanted
    assert generate(transformer(), PROMPTS, **DRAWN | {'top_p': 1e-6}) == wanted
    assert generate(transformer(), PROMPTS, **DRAWN | {'temperature': 1e-30}) == wanted


def test_parameters_on_a_mesh():
    mesh = sharding.mesh(data=2, fsdp=4, tensor=1, sequence=1)
    params = parameters(transformer())
    on_mesh = jax.device_put(params, sharding.shardings(params, mesh))
    assert generate(transformer(), PROMPTS, params=on_mesh, **GREEDY) == generate(transformer(), PROMPTS, **GREEDY)


WRONG = {
    'max_tokens': (0, 'max_tokens=0'),
    'temperature': (-0.1, 'temperature=-0.1'),
    'top_k': (-1, 'top_k=-1'),
    'top_p': (1.5, 'top_p=1.5'),
    'seed': (-1, 'seed=-1'),
    'vocab_size': (0, r'vocab_size=0 must lie in \[1, '),
    'end_ids': ([3, VOCAB], r'end_ids\[1\]=41'),
}


@pytest.mark.parametrize('name', WRONG)
def test_arguments_out_of_range_are_rejected(name):
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        generate(transformer(), [[1]], **{'max_tokens': 4} | GREEDY | {name: value})


@pytest.mark.parametrize('name', ['temperature', 'top_p'])
def test_nan_is_out_of_range(name):
    with pytest.raises(ValueError, match=name):
        generate(transformer(), [[1]], **GREEDY | {name: float('nan')})


def test_invalid_prompts_are_rejected():
    with pytest.raises(ValueError, match=r'prompt 1 has 49 tokens.*max_len=48: shorten it'):
        generate(transformer(), [[1], [1] * 49], **GREEDY)
    with pytest.raises(ValueError, match='prompt 0 has the token 41, .*has 41 entries and the embedding 64 rows'):
        generate(transformer(), [[1, 41]], **GREEDY)
    with pytest.raises(ValueError, match='prompt 0 has the token 64, .*has 70 entries and the embedding 64 rows'):
        generate(transformer(), [[63, 64]], **GREEDY | {'vocab_size': 70})
    with pytest.raises(ValueError, match='prompt 1 is empty: begin it'):
        generate(transformer(), [[1], []], **GREEDY)
    with pytest.raises(ValueError, match='end_ids has 17 tokens, but at most 16 are supported'):
        generate(transformer(), [[1]], **GREEDY | {'end_ids': range(17)})
    with pytest.raises(ValueError, match='no prompt'):
        generate(transformer(), [], **GREEDY)
    with pytest.raises(ValueError, match='top_p=0 leaves no token'):
        generate(transformer(), [[1]], **GREEDY | {'top_p': 0.0})
    with pytest.raises(ValueError, match="model.head='classify' continues no text: `lmtrain predict`"):
        sample.generate(
            transformer(head='classify', num_labels=2), parameters(transformer()), [[1]], max_tokens=4, **GREEDY
        )
    with pytest.raises(ValueError, match='masked language model'):
        sample.generate(transformer(causal=False), parameters(transformer()), [[1]], max_tokens=4, **GREEDY)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('settings', [GREEDY, GREEDY | {'vocab_size': 64}], ids=['part', 'whole'])
def test_one_logit_that_is_not_finite_generates_no_text(value, settings):
    model = transformer(tied=False)
    params = steered(model, range(64))
    params['head']['kernel'][0, 20] = value
    with pytest.raises(FloatingPointError, match='broken'):
        generate(model, [[1]], params=params, **settings)


def test_nan_parameters_generate_no_text():
    model = transformer()
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, parameters(model))
    with pytest.raises(FloatingPointError, match='broken'):
        generate(model, PROMPTS, params=params, **GREEDY)
