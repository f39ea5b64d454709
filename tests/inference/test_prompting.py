"""Prompting: scores equal sums by hand, do not depend on other rows, and no demonstration contains the answer."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row, read_rows
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError
from lmtrain.inference import likelihood, prompting, questions, rendering, sample
from lmtrain.models import Transformer

BYTES = Bytes()


@dataclasses.dataclass(frozen=True)
class Bigram:
    """logits = table[token]: the log-likelihood of a choice is a sum by hand."""

    causal: bool = True
    head: str = 'lm'
    max_len: int = 256
    position_offset: int = 0
    vocab_size: int = BYTES.vocab_size
    dtype: str = 'float32'
    rope_scaling: tuple = ()
    unroll: int = 1
    remat: str = 'none'

    def apply(self, variables, batch, past=(), store=False):
        tokens = batch['tokens']
        if 'select' in batch:
            tokens = jnp.take_along_axis(tokens, batch['select'], axis=1)
        logits = variables['params']['table'][tokens]
        outputs = {'logits': logits, 'cache': None}
        if 'targets' in batch:
            logp = jax.nn.log_softmax(logits)
            outputs['logprob'] = jnp.take_along_axis(logp, batch['targets'][..., None], axis=-1)[..., 0]
        return outputs


def bigram(seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 1, (BYTES.vocab_size, BYTES.vocab_size)).astype(np.float32)
    return {'table': jnp.asarray(table), 'layers': {}}, np.asarray(jax.nn.log_softmax(table, axis=-1), np.float64)


def rows_of(*fields):
    return [Row(f'rows:{number}', each) for number, each in enumerate(fields, 1)]


QUIZ = rows_of(
    {'query': 'The sky is', 'choices': ['blue', 'a cow'], 'gold': 0},
    {'query': 'Two and two are', 'choices': ['three', 'four', 'ninety-nine'], 'gold': 1},
    {'query': 'Été is', 'choices': ['summer', 'winter'], 'gold': 'summer'},
    {'query': 'Grass grows, therefore', 'choices': ['rain', 'it is cut', 'no'], 'gold': 2},
    {'query': 'One', 'choices': ['one', 'two'], 'gold': '1'},
)
FORM = {'template': '{query} {gold}', 'choices': 'choices', 'answer': 'gold'}


def score(model, params, tokenizer, rows, demonstrations=(), end_ids=(), **settings):
    """`prompting.score` with the fields of its settings as keywords."""
    settings = prompting.PromptSettings(**settings)
    return prompting.score(model, params, tokenizer, rows, settings, demonstrations=demonstrations, end_ids=end_ids)


def test_scores_of_choices_equal_sums_by_hand():
    params, logp = bigram()
    scores = score(Bigram(), params, BYTES, QUIZ, **FORM)
    right, per_token, per_byte, chance = [], [], [], []
    for row, found in zip(QUIZ, scores.rows, strict=True):
        options, nats = row.fields['choices'], []
        for choice in options:
            ids = [BYTES.begin_id, *f'{row.fields["query"]} {choice}'.encode()]
            pairs = list(zip(ids[:-1], ids[1:], strict=True))[-len(choice.encode()) :]
            nats.append(sum(logp[pair] for pair in pairs))
        np.testing.assert_allclose(found['nats'], nats, rtol=1e-5)
        gold = row.fields['gold']
        gold = options.index(gold) if gold in options else int(gold)
        right.append(np.argmax(nats) == gold)
        per_token.append(np.argmax([x / n for x, n in zip(nats, found['tokens'], strict=True)]) == gold)
        per_byte.append(np.argmax([x / len(c.encode()) for x, c in zip(nats, options, strict=True)]) == gold)
        chance.append(1 / len(options))
        assert found['tokens'] == [len(choice.encode()) for choice in options]
        assert (found['right'], found['answer']) == (right[-1], options[gold])
        assert found['predicted'] == options[np.argmax(nats)]
        assert (found['right_per_token'], found['right_per_byte']) == (per_token[-1], per_byte[-1])
    results = scores.results
    p = np.mean(right)
    assert results['accuracy'] == p and results['accuracy_per_byte'] == np.mean(per_byte)
    assert results['accuracy_per_token'] == np.mean(per_token)
    about = {'engine': 'lmtrain', 'dtype': 'float32', 'attention': 'xla', 'batch_size': 32}
    assert {name: results[name] for name in about} == about
    assert results['accuracy_stderr'] == pytest.approx(np.std(right, ddof=1) / len(right) ** 0.5)
    assert results['chance'] == pytest.approx(np.mean(chance))
    assert {name: results[name] for name in ('rows', 'shots', 'dropped', 'cut')} == {'rows': 5} | dict.fromkeys(
        ('shots', 'dropped', 'cut'), 0
    )
    assert f'accuracy {100 * p:.1f} +- ' in prompting.line(results)
    # To a bigram only the last token before a choice is of any use.
    assert [found['nats'] for found in shot(shots=2).rows] == [found['nats'] for found in scores.rows]


def shot(rows=QUIZ, **options):
    return score(Bigram(), bigram()[0], BYTES, rows, **FORM | options)


def test_the_longer_of_two_choices_can_be_right():
    table = np.zeros((BYTES.vocab_size, BYTES.vocab_size), np.float32)
    for one, other in itertools.pairwise([*b't spam', BYTES.end_id]):
        table[one, other] = 20.0  # after 'not' the text goes on
    row = {'query': 'Buy now:', 'choices': ['not', 'not spam'], 'gold': 'not spam'}
    [answered] = score(Bigram(), {'table': jnp.asarray(table), 'layers': {}}, BYTES, rows_of(row), **FORM).rows
    assert answered['predicted'] == 'not spam' and answered['tokens'] == [len('not') + 1, len('not spam') + 1]


def test_a_token_without_a_row_in_the_embedding_is_named():
    small = dataclasses.replace(transformer(), vocab_size=257 - 1)
    with pytest.raises(ValueError, match=r"rows:1: it needs '<\|endoftext\|>', id 256, and the model has 256 tokens"):
        score(small, parameters(), BYTES, QUIZ, **FORM)


def test_equal_choices_are_one_answer():
    scores = shot(rows_of({'query': '', 'choices': ['same', 'same'], 'gold': 1}))
    assert scores.results['accuracy'] == 1.0  # a text that stands twice is one answer
    assert scores.results['accuracy_stderr'] is None


@functools.cache
def transformer(**changes):
    config = base.get_config().model
    config.update({'vocab_size': 320, 'max_len': 128, 'num_layers': 2, 'width': 16, 'num_heads': 4})
    config.update({'head_dim': 4, 'mlp_dim': 32, 'unroll': 2})
    return Transformer(**config)


@functools.cache
def parameters():
    """Large enough that the prompt decides the choice."""
    batch = {'tokens': np.zeros((1, 4), np.int32)}
    shapes = jax.eval_shape(lambda: transformer().init(jax.random.key(0), batch)['params'])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)


def arithmetic(count, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [(int(a), int(b)) for a, b in rng.integers(0, 100, (count, 2))]
    fields = [{'a': a, 'b': b, 'options': [f'{x:03}' for x in (a + b, abs(a - b), a * b % 1000)]} for a, b in drawn]
    return [Row(f'sums:{number}', each | {'sum': each['options'][0]}) for number, each in enumerate(fields)]


SUMS = {'template': '{a} and {b} are {sum}', 'choices': 'options', 'answer': 'sum', 'separator': '\n'}


def test_scores_do_not_depend_on_the_batch_size():
    found = [
        score(transformer(), parameters(), BYTES, arithmetic(9), shots=2, batch_size=size, **SUMS)
        for size in (1, 5, 32)
    ]
    for other in found[1:]:
        for one, same in zip(found[0].rows, other.rows, strict=True):
            np.testing.assert_allclose(one['nats'], same['nats'], rtol=1e-5)
            assert np.argsort(one['nats']).tolist() == np.argsort(same['nats']).tolist()
        assert other.results | {'batch_size': 1} == found[0].results
    assert len({np.argmax(row['nats']) for row in found[0].rows}) > 1


def test_scores_do_not_depend_on_the_order_of_rows():
    rows = arithmetic(12)
    mixed = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    scores = {}
    for some in (rows, mixed):
        found = score(transformer(), parameters(), BYTES, some, shots=3, seed=5, **SUMS).rows
        scores[some is rows] = {row['place']: row['nats'] for row in found}
    for place, nats in scores[True].items():
        np.testing.assert_allclose(scores[False][place], nats, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('chat', [False, True])
def test_shared_demonstrations_are_read_once(chat, computes):
    model, params, tokenizer = computes
    model = dataclasses.replace(model, max_len=512)
    rows, few = arithmetic(6), arithmetic(9, seed=1)[6:]
    options = SUMS | {'shots': 3, 'select': 'first'} | ({'chat_template': MARKED} if chat else {})
    scores = score(model, params, tokenizer, rows, few, **options)
    form = {name: SUMS[name] for name in ('template', 'answer', 'choices')}
    asked, shown = ([questions.question(row, **form) for row in part] for part in (rows, few))
    render = functools.partial(rendering.choices, tokenizer, '\n')
    if chat:
        render = functools.partial(rendering.choices_chat, tokenizer, MARKED, '')
    prompts = [render(each, shown) for each in asked]
    contexts = [prompt.context_ids for prompt in prompts]
    common = next(at for at, ids in enumerate(zip(*contexts, strict=False)) if len(set(ids)) > 1)
    rest = sum(len(own) - common for own in contexts)
    ends = sum(len(ids) - 1 for prompt in prompts for ids in prompt.continuations)
    assert common > 50 and scores.results['computed_tokens'] == common + rest + ends
    for row, found in zip(rows, scores.rows, strict=True):
        (alone,) = score(model, params, tokenizer, [row], few, **options).rows
        np.testing.assert_allclose(found['nats'], alone['nats'], rtol=1e-4)


@pytest.mark.parametrize('leaves', ['prompt', 'lora'])
def test_adapters_are_scored(leaves):
    model, params = transformer(), jax.tree.map(lambda x: x, parameters())
    rng = np.random.default_rng(3)

    def draw(*shape):
        return jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)

    if leaves == 'prompt':
        params['prompt'] = {'embedding': draw(5, 16)}
    else:
        query = params['layers']['attention']['query']
        query |= {'lora_a': draw(2, 16, 2), 'lora_b': draw(2, 2, 16), 'lora_scale': jnp.ones(2)}
    (row,) = arithmetic(1)
    (found,) = score(model, params, BYTES, [row], **SUMS).rows
    (plain,) = score(model, parameters(), BYTES, [row], **SUMS).rows
    texts = [f'{row.fields["a"]} and {row.fields["b"]} are {choice}'.encode() for choice in row.fields['options']]
    ids = np.zeros((3, 41), np.int32)  # longer than the rows that are scored, so that nothing is read beyond them
    for each, text in zip(ids, texts, strict=True):
        each[: 1 + len(text)] = BYTES.begin_id, *text
    outputs = jax.jit(model.apply)({'params': params}, {'tokens': ids[:, :-1], 'targets': ids[:, 1:]})
    for index, (text, choice) in enumerate(zip(texts, row.fields['options'], strict=True)):
        expected = float(outputs['logprob'][index, len(text) - len(choice) : len(text)].sum())
        assert found['nats'][index] == pytest.approx(expected, rel=1e-4)
        assert abs(found['nats'][index] - plain['nats'][index]) > 1e-2


def test_a_generation_must_equal_the_answer():
    rows = arithmetic(4)
    prompts = [[BYTES.begin_id, *f'{row.fields["a"]} and {row.fields["b"]} are'.encode()] for row in rows]
    greedy = {'max_tokens': 8, 'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0}
    made = sample.generate(transformer(), parameters(), prompts, **greedy, end_ids=[256], vocab_size=257)
    texts = [BYTES.decode_bytes(text.ids).decode('utf-8', 'replace') for text in made]
    cut = texts[0].strip()[2]  # ends the first generation, wherever else it stands
    rows[0].fields['sum'] = texts[0].strip().split(cut)[0]
    rows[1].fields['sum'] = texts[1].strip() + '!'
    options = SUMS | {'choices': (), 'max_tokens': 8}
    scores = score(transformer(), parameters(), BYTES, rows, stop=(cut,), **options)
    assert [row['right'] for row in scores.rows] == [True, False, False, False]
    assert scores.results['exact_match'] == 0.25
    assert scores.results['exact_match_stderr'] == pytest.approx((0.25 * 0.75 / 3) ** 0.5)
    assert all(cut not in row['predicted'] for row in scores.rows)


def test_generations_are_decoded_in_batches_of_that_size(monkeypatch):
    sizes = []

    def record(*arguments, original=sample.states):
        sizes.append(len(arguments[2].tokens))
        return original(*arguments)

    monkeypatch.setattr(sample, 'states', record)
    score(transformer(), parameters(), BYTES, arithmetic(5), **SUMS | {'choices': (), 'batch_size': 2})
    assert sizes == [2, 2, 2]


# --- demonstrations


@pytest.fixture
def scored(monkeypatch):
    """The prompts that are scored: [(text, [text with each choice])] as bytes without the begin token."""
    texts = []

    def record(model, params, prompts, *arguments, original=likelihood.log_likelihoods, **options):
        for prompt in prompts:
            start, *others = (bytes(ids.tolist()).decode() for ids in (prompt.context_ids[1:], *prompt.continuations))
            texts.append((start, [start + other for other in others]))
        return original(model, params, prompts, *arguments, **options)

    monkeypatch.setattr(likelihood, 'log_likelihoods', record)
    return texts


def test_demonstrations_are_whole_rendered_rows(scored):
    train = rows_of({'query': 'A b', 'gold': 'c'}, {'query': 'D e', 'gold': 'f'})
    form = {'template': 'Q: {query}\nA: {gold}', 'answer': 'gold', 'choices': 'gold', 'separator': '\n--\n'}
    asked = rows_of({'query': 'x', 'gold': 'c'})
    score(Bigram(), bigram()[0], BYTES, asked, shots=2, demonstrations=train, **form)
    ((alone, wholes),) = scored
    assert alone in ('Q: A b\nA: c\n--\nQ: D e\nA: f\n--\nQ: x\nA: ', 'Q: D e\nA: f\n--\nQ: A b\nA: c\n--\nQ: x\nA: ')
    assert wholes == [alone + 'c', alone + 'f']  # all the answers that demonstrations have


def test_demonstrations_are_dropped_until_the_prompt_fits(scored):
    model = Bigram(max_len=37)
    rows = rows_of({'query': 'a' * 10, 'gold': 'x'}, {'query': 'b' * 10, 'gold': 'y'}, {'query': 'c' * 10, 'gold': 'x'})
    form = FORM | {'choices': 'gold', 'shots': 2, 'separator': '\n'}
    score(Bigram(), bigram()[0], BYTES, rows, **form)
    whole, _ = zip(*scored, strict=True)
    scored.clear()
    scores = score(model, bigram()[0], BYTES, rows, **form)
    assert scores.results['dropped'] == 3  # one before each: BEGIN and 37 of 38 tokens would be read
    assert [text for text, _ in scored] == [text.split('\n', 1)[1] for text in whole]  # the first of them
    assert 'dropped to fit the context' in prompting.line(scores.results)
    model = Bigram(max_len=11)
    with pytest.raises(
        ValueError, match='rows:1: the prompt has 12 tokens even without.* room for 11 .* 3 such rows of 3'
    ):
        score(model, bigram()[0], BYTES, rows, **form | {'shots': 0})
    whole = score(Bigram(), bigram()[0], BYTES, rows, **form | {'shots': 0})
    part = score(model, bigram()[0], BYTES, rows, **form | {'cut': True, 'shots': 1})
    assert part.results['cut'] == part.results['dropped'] == 3  # and to a bigram the end of the prompt is all of it
    assert [row['nats'] for row in part.rows] == [row['nats'] for row in whole.rows]
    assert '3 prompts without their beginning' in prompting.line(part.results)
    model = Bigram(max_len=0)
    with pytest.raises(ValueError, match='rows:1: the prompt has 12 tokens'):
        score(model, bigram()[0], BYTES, rows, **form | {'cut': True, 'shots': 0})


def test_a_soft_prompt_shortens_the_context():
    params = parameters() | {'prompt': {'embedding': jnp.zeros((120, 16))}}
    with pytest.raises(ValueError, match='room for 8'):
        score(transformer(), params, BYTES, arithmetic(1), **SUMS)


# --- conversations

MARKED = Template(
    '{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}'
    '{% if add_generation_prompt %}<assistant>{% endif %}',
    'a template',
)
BEGIN = [BYTES.begin_id]


def turn(role, text):
    return [*f'<{role}>{text}'.encode(), BYTES.end_id]


def talk(*texts):
    roles = ['user', 'assistant'] * len(texts)
    return {'messages': [{'role': role, 'content': text} for role, text in zip(roles, texts, strict=False)]}


def test_scores_of_choices_in_a_chat_equal_sums_by_hand():
    """A row is one turn of the user, after the turns of demonstrations; a choice is scored with its end token."""
    params, logp = bigram()
    rows = rows_of({'query': 'One', 'choices': ['one', ' two'], 'gold': 1})
    scores = score(Bigram(), params, BYTES, rows, **FORM, chat_template=MARKED, system='s')
    for choice, nats in zip(['one', 'two'], scores.rows[0]['nats'], strict=True):
        answer = turn('assistant', choice)
        pairs = list(zip([ord('>'), *answer[11:-1]], answer[11:], strict=True))
        assert answer[11:] == [*choice.encode(), BYTES.end_id]
        assert nats == pytest.approx(sum(logp[pair] for pair in pairs), rel=1e-5)

    train = rows_of({'query': 'A', 'choices': ['x', 'y'], 'gold': 0})
    asked, shown = (questions.question(each[0], **FORM) for each in (rows, train))
    encoded = rendering.choices_chat(BYTES, MARKED, 's', asked, [shown])
    before = BEGIN + turn('system', 's') + turn('user', 'A') + turn('assistant', 'x') + turn('user', 'One')
    assert encoded.context_ids.tolist() == [*before, *b'<assistant>']
    assert [ids.tolist() for ids in encoded.continuations] == [[*b'one', BYTES.end_id], [*b'two', BYTES.end_id]]
    alone = rendering.prompt_chat(BYTES, MARKED, 's', asked, [shown])
    assert alone.context_ids.tolist() == encoded.context_ids.tolist() and not alone.continuations


def test_the_last_answer_of_a_conversation_is_compared():
    rows = rows_of(talk('a', 'b', 'c', ' d\n'), {'system': 's', **talk('e', 'f')}, {'prompt': 'g', 'completion': 'h'})
    first, second, third = (questions.question(row, '', '', ()) for row in rows)
    assert [len(first.messages), first.answer] == [3, ' d\n']
    assert [each['role'] for each in second.messages] == ['system', 'user'] and third[1:4] == ('g', (), 'h')
    whole = rendering.turns(first, [second, third], 'unused')
    assert [each['content'] for each in whole.messages] == ['s', 'e', 'f', 'g', 'h', 'a', 'b', 'c']
    assert whole.trained == (8,) and [each['role'] for each in whole.messages[:2]] == ['system', 'user']
    chosen = questions.question(rows_of(talk('a', 'b'))[0], '', '', ('b', 'c'))
    assert (chosen.choices, chosen.answer) == (('b', 'c'), 'b')
    for row, options, message in (
        (talk('a', 'b'), {'choices': ('c', 'd')}, "rows:1: 'the answer' is 'b', neither a choice"),
        (talk('a'), {}, 'rows:1: no message of the assistant'),
        (talk('a', 'b'), {'answer': 'x'}, "answer 'x' without a template"),
    ):
        with pytest.raises(ValueError, match=message):
            questions.question(rows_of(row)[0], **{'template': '', 'answer': '', 'choices': ()} | options)


def test_conversations_and_a_system_text_need_a_chat_template():
    for rows, options in (
        (rows_of(talk('a', 'b')), {}),
        (rows_of({'prompt': 'a', 'completion': 'b'}), {'system': 's'}),
    ):
        with pytest.raises(ValueError, match='needs a chat template: name one'):
            score(Bigram(), bigram()[0], BYTES, rows, template='', answer='', choices=('b', 'c'), **options)


def test_generations_of_a_chat_contain_newlines_and_end_at_any_end_token(monkeypatch):
    calls = []

    def generate(model, params, prompts, **settings):
        calls.append((prompts, settings))
        return [sample.Generated([*b' two\nlines'], 'stop'), sample.Generated([*b'other'], 'length')]

    monkeypatch.setattr(sample, 'generate', generate)
    rows = rows_of(talk('a', 'two\nlines'), talk('b', 'c'))
    form = {'template': '', 'answer': '', 'chat_template': MARKED, 'end_ids': [7, BYTES.end_id], 'shots': 1}
    scores = score(Bigram(), bigram()[0], BYTES, rows, **form)
    ((prompts, settings),) = calls
    assert prompts[0] == BEGIN + turn('user', 'b') + turn('assistant', 'c') + turn('user', 'a') + [*b'<assistant>']
    assert settings['end_ids'] == [BYTES.end_id, 7]
    assert [row['right'] for row in scores.rows] == [True, False]
    assert [row['finish_reason'] for row in scores.rows] == ['stop', 'length']
    assert scores.results['stopped'] == scores.results['exact_match'] == 0.5
    assert 'ended with an end token 50.0 %' in prompting.line(scores.results)


def test_no_row_is_among_its_own_demonstrations(scored):
    """Also if it occurs twice in the rows, or with another answer in the file of demonstrations."""
    rows = rows_of(*[{'query': f'q{i}.', 'choices': ['x', 'y'], 'gold': 0} for i in (0, 1, 2, 3, 3)])
    others = rows_of(*[{'query': f'q{i}.', 'choices': ['x', 'y'], 'gold': 1} for i in range(5)])
    for demonstrations in ((), others):
        score(Bigram(), bigram()[0], BYTES, rows, shots=3, demonstrations=demonstrations, **FORM)
    prompts = [text for text, _ in scored]
    assert len(prompts) == 10
    for prompt in prompts:
        asked = prompt.rsplit('\n\n', 1)[1].strip()
        assert prompt.count('q') == 4 and prompt.count(asked) == 1


# --- what bad input gets


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'template': '{query}'}, r"template '{query}' must end in {gold}"),
        ({'template': '{gold} {query} {gold}'}, 'and contain it only once'),
        ({'template': '{query} {gold}.'}, 'ends in text'),
        ({'template': '{query'}, "template '{query': "),
        ({'template': '{query!r} {gold}'}, r"rows:1: no field 'query!r'"),
        ({'template': '{} {gold}'}, 'a field without a name'),
        ({'template': ''}, "answer 'gold' without a template"),
        ({'template': '{query.__class__} {gold}'}, r"rows:1: no field 'query.__class__'"),
        ({'template': '{question} {gold}'}, r"rows:1: no field 'question'.*'query'.*Set template"),
        ({'choices': 'options'}, "rows:1: no field 'options'"),
        ({'choices': 'query'}, "rows:1: 'query' must hold a list"),
        ({'choices': ('no', 'yes')}, "rows:2: 'gold' is 2, neither a choice nor the index of one of 2: 'no', 'yes'"),
        ({'choices': ('no', '')}, 'an empty choice'),
        ({'shots': 2}, 'rows:1: shots=2 demonstrations, but there are only 1 other rows'),
        ({'shots': -2}, 'shots=-2'),
        ({'choices': (), 'stop': '\n'}, 'it is a tuple of texts'),
        ({'rows': []}, 'there is no row'),
    ],
)
def test_bad_input_is_named(changes, message):
    rows = rows_of(
        {'query': 'a', 'choices': ['x', 'y', 'z'], 'gold': 1}, {'query': 'b', 'choices': ['x'] * 3, 'gold': 2}
    )
    with pytest.raises(ValueError, match=message):
        shot(**{'rows': rows} | changes)


@pytest.mark.parametrize('gold', [True, 1.0, None, [0], '3', -1])
def test_an_answer_that_is_not_a_choice_is_rejected(gold):
    with pytest.raises(ValueError, match='rows:1: .*gold'):
        shot(rows_of({'query': 'a', 'choices': ['x', 'y'], 'gold': gold}))


@pytest.mark.parametrize(
    'labels',
    [range(12), range(1, 6), [1.5, 2.0, 10.0], [1, 2, 'neither']],
    ids=['sorted as texts', 'from 1', 'float', 'mixed'],
)
def test_numbers_that_are_classes_are_no_indices(labels):
    rows = rows_of(*({'query': f'{label}', 'gold': label} for label in labels))
    settings = prompting.PromptSettings('{query}: {gold}', 'gold', choices='gold')
    asked, _ = questions.ask(rows, settings)
    assert [q.answer for q in asked] == [str(label) for label in labels]
    again, _ = questions.ask(rows, settings._replace(choices=asked[0].choices))  # as a search of prompts gives them
    assert [q.answer for q in again] == [str(label) for label in labels]


def test_a_number_is_the_index_of_a_choice_of_its_own_row():
    form = {'template': '{query}: {gold}', 'answer': 'gold', 'choices': 'choices'}
    (row,) = rows_of({'query': 'a', 'choices': ['3', '2', '1'], 'gold': 1})
    assert questions.question(row, **form).answer == '2'
    assert questions.question(row, **form | {'choices': ['no', 'yes']}).answer == 'yes'
    with pytest.raises(InputError, match="'gold' is 1, which is none of the choices '2', '3'"):
        questions.question(row, **form | {'choices': ['2', '3']})  # neither 2 nor 3 is meant for sure


def test_an_encoder_cannot_be_prompted():
    model = Bigram(causal=False)
    with pytest.raises(ValueError, match='cannot be prompted'):
        score(model, {}, BYTES, QUIZ, **FORM)


def test_nan_parameters_are_reported():
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, bigram()[0])
    with pytest.raises(FloatingPointError, match='not finite'):
        score(Bigram(), params, BYTES, QUIZ, **FORM)


# --- real rows


FILES = {
    'arc_easy.jsonl': ({'template': '{query}\nAnswer: {gold}', 'choices': 'choices', 'answer': 'gold'}, 2376),
    'boolq.jsonl': ({'template': '{query}{gold}', 'choices': 'choices', 'answer': 'gold'}, 3270),
    'copa.jsonl': ({'template': '{query} {gold}', 'choices': 'choices', 'answer': 'gold'}, 100),
    'lambada_openai_small.jsonl': ({'template': '{context} {continuation}', 'answer': 'continuation'}, 8),
}


@pytest.mark.parametrize('name', FILES)
def test_public_files_are_questions(shared, name):
    form, count = FILES[name]
    rows = read_rows(name, str(shared / 'fewshot'))
    asked = [questions.question(row, **{'choices': ()} | form) for row in rows]
    assert len(asked) == count
    assert all(not q.choices or q.answer in q.choices for q in asked)
    first = json.loads((shared / 'fewshot' / name).read_text().splitlines()[0])
    assert asked[0].context.startswith(first.get('query', first.get('context')))


def test_classes_of_a_csv_are_choices(shared):
    rows = {split: read_rows(f'{split}.csv', str(shared / 'tasks' / 'banking77')) for split in ('train', 'test')}
    form = {'template': '{text} Intent: {category}', 'choices': 'category', 'answer': 'category', 'shots': 1}
    scores = score(Bigram(), bigram()[0], BYTES, rows['test'][:3], demonstrations=rows['train'], **form)
    assert scores.results['chance'] == pytest.approx(1 / 77)
    assert [len(row['nats']) for row in scores.rows] == [77] * 3
