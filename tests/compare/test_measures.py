"""What is measured of a trial: later rows, and the tokens of a query."""

import numpy as np
import pytest

from lmtrain.compare import choice_scores, measures, predictors, trials
from lmtrain.data.chat.template import Template
from lmtrain.inference import likelihood

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def test_blocks_are_the_rows_that_the_subset_lacks_and_are_scored_once(small):
    shared, selected = small('blocks', ('few_shot',))
    trial = trials.listed(shared, selected)[0]
    asked, classes = [], shared.task.classes

    def predict(rows):
        asked.append([row.fields['place'] for row in rows])
        return np.log(np.full((len(rows), len(classes)), 1 / 3))

    [block] = measures.blocks(shared, trial, predict)
    assert (block['seed'], block['begin'], block['end']) == (1, 4, 16)
    assert block['nats'] == pytest.approx(12 * np.log(3))
    assert asked == [[row.fields['place'] for row in shared.subset(16, 1)[4:]]]
    assert not {*asked[0]} & {row.fields['place'] for row in shared.subset(4, 1)}
    own = block | {'nats': 1.0}
    assert measures.blocks(shared, trial, predict, [own]) == [own] and len(asked) == 1


@pytest.mark.parametrize(('select', 'shots'), [('fixed', 4), ('bm25', 4), ('fixed', 0)])
def test_a_cached_query_reads_its_own_tokens_alone(small, monkeypatch, select, shots):
    shared, _ = small('cached', ('few_shot',))
    pool = shared.subset(16, 1)
    form = predictors.settings(shared.task, shots=shots, select=select)
    predict = predictors.by_likelihood(shared.model, pool, form, {'score': 'sum', 'temperature': 1.0, 'bias': []})
    [whole], read = predict(shared.task.selection[:1]), []
    log_likelihoods = likelihood.log_likelihoods

    def recorded(model, params, prompts, batch_size):
        values = log_likelihoods(model, params, prompts, batch_size)
        read.append((len(prompts[0].context_ids), values.computed_tokens))
        return values

    def timed(answer, queries):
        np.testing.assert_allclose(answer(queries[0])[0], whole, atol=1e-4)
        return float(read[-1][1])

    monkeypatch.setattr(likelihood, 'log_likelihoods', recorded)
    monkeypatch.setattr(measures, 'query_seconds', timed)
    seconds = measures.latencies(shared, predict, form)
    every, cached = (seconds[name] for name in ('query_seconds', 'query_seconds_cached'))
    query = measures.query_of_prompt(shared, shared.model, pool, form, ['sum'])
    if select == 'fixed' and shots:
        assert every - cached == pytest.approx(query.shared, abs=8) and cached < every / 2
    else:
        assert cached == every
    predict(shared.task.selection[:1])
    assert read[-1][1] == every  # nothing is kept outside of the measurement


def test_a_query_reads_no_more_than_the_context(small):
    shared, _ = small('tokens', ('few_shot',), sizes=(64,))
    form = predictors.settings(shared.task, shots=-1, select='random')
    query = measures.query_of_prompt(shared, shared.model, shared.subset(64, 1), form, ['sum'])
    longest = max(query.choices)
    assert query.shared + query.row + longest == pytest.approx(shared.model.model.max_len)
    few = measures.query_of_prompt(shared, shared.model, shared.subset(64, 1), form._replace(shots=1), ['sum'])
    assert few.row < query.row / 3


@pytest.mark.parametrize('shots', [0, 1])
@pytest.mark.parametrize('instruction', ['', 'Cats?'])
@pytest.mark.parametrize('source', [CHATML, None])
def test_the_tokens_of_a_query_are_those_that_are_read(small, monkeypatch, source, shots, instruction):
    shared, _ = small('read_tokens', ('few_shot',))
    template = source and Template(source, 'ChatML')
    options = {'shots': shots, 'select': 'first', 'instruction': instruction, 'chat_template': template}
    form, pool, prompts = predictors.settings(shared.task, **options), shared.subset(4, 1)[:1], []
    read = likelihood.log_likelihoods
    monkeypatch.setattr(likelihood, 'log_likelihoods', lambda *own: prompts.extend(own[2]) or read(*own))
    choice_scores.of_rows(shared.model, pool, form, shared.task.selection, ['sum'])
    query = measures.query_of_prompt(shared, shared.model, pool, form, ['sum'])
    tokens = np.mean([len(each.context_ids) + sum(map(len, each.continuations)) for each in prompts])
    assert query.tokens == pytest.approx(tokens) and len(prompts) == 8
    texts = [row.fields['prompt'] for row in shared.task.selection]
    own = np.mean([len(ids) for ids in shared.model.tokenizer.encode_batch(texts)])
    after = len('<|im_end|>\n<|im_start|>assistant\n') if template else 0  # of bytes
    assert query.row == pytest.approx(own + after)


def test_demonstrations_are_counted_as_they_were_read(small, monkeypatch):
    """Those that are retrieved for long rows are longer than those of the whole pool."""
    shared, _ = small('retrieved', ('bm25',), sizes=(64,))
    pool = shared.subset(64, 1)
    pool = [
        row._replace(fields=row.fields | {'prompt': 'mice ' * 30 + row.fields['prompt']}) for row in pool[:3]
    ] + pool
    asked = [row._replace(fields=row.fields | {'text': 'mice', 'prompt': 'mice '}) for row in shared.task.selection]
    shared = shared._replace(task=shared.task._replace(selection=asked))
    form, prompts = predictors.settings(shared.task, shots=1, select='bm25'), []
    read = likelihood.log_likelihoods
    monkeypatch.setattr(likelihood, 'log_likelihoods', lambda *own: prompts.extend(own[2]) or read(*own))
    scored = choice_scores.of_rows(shared.model, pool, form, asked, ['sum'])
    query = measures.query_of_prompt(shared, shared.model, pool, form, ['sum'], scored.prompt_tokens)
    tokens = np.mean([len(each.context_ids) + sum(map(len, each.continuations)) for each in prompts])
    assert query.tokens == pytest.approx(tokens) and query.shared < query.row
    estimate = measures.query_of_prompt(shared, shared.model, pool, form, ['sum'])
    assert estimate.tokens < 0.8 * query.tokens


def test_a_head_reads_the_row_up_to_the_length_of_a_batch(small):
    shared, _ = small('heads', ('few_shot',))
    loaded = shared.model._replace(config=shared.config)
    whole, cut = (measures.query_of_head(shared, loaded, length) for length in (32, 8))
    assert cut.row == 8 < whole.row < 32 and whole.classes == 3 and not whole.choices
