import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from lmtrain.data.tokenizers.base import Bytes
from lmtrain.data.tokenizers.hf_files import wordpiece
from lmtrain.data.tokenizers.load import open_tokenizer
from lmtrain.tasks import span

SCORES = jnp.array([[[1.0, 0.0], [2.0, 5.0], [0.0, 1.0], [9.0, 9.0]]])
CONTEXT = 'the cat sat on the cat'
INSIDE = jnp.array([[1.0, 1.0, 1.0, 0.0]])


def forward(batch):
    return {'logits': SCORES}


def test_loss_by_hand_over_the_context():
    batch = {'spans': jnp.array([[1, 2]]), 'label_weights': INSIDE}  # of which the first token is a part
    values, weights = span.loss(forward, batch)
    start = np.log(np.exp([1, 2, 0]).sum()) - 2
    end = np.log(np.exp([0, 5, 1]).sum()) - 1
    np.testing.assert_allclose(values['loss'], [(start + end) / 2], rtol=1e-6)
    assert values['accuracy'].tolist() == [0] and weights.tolist() == [1]
    values, _ = span.loss(forward, batch | {'spans': jnp.array([[1, 1]])})
    assert values['accuracy'].tolist() == [1]


def test_window_without_the_answer_is_trained_on_the_first_token():
    """As BERT's authors do for SQuAD 2: the first token competes with the context, in the loss alone."""
    batch = {'spans': jnp.array([[0, 0]]), 'label_weights': jnp.array([[0.0, 1.0, 1.0, 0.0]])}
    values, weights = span.loss(forward, batch)
    start, end = np.log(np.exp([1, 2, 0]).sum()) - 1, np.log(np.exp([0, 5, 1]).sum()) - 0
    np.testing.assert_allclose(values['loss'], [(start + end) / 2], rtol=1e-6)
    assert weights.tolist() == [1]
    spans, score, null = jax.jit(functools.partial(span.predict, forward))(batch)
    assert spans.tolist() == [[1, 1]] and score.tolist() == [7] and null.tolist() == [1]


def test_row_of_padding_has_weight_zero():
    values, weights = span.loss(forward, {'spans': jnp.array([[-1, -1]]), 'label_weights': INSIDE})
    assert weights.tolist() == [0] and np.isfinite(values['loss']).all()


def test_predicted_span_starts_before_it_ends():
    scores = jnp.array([[[0.0, 9.0], [9.0, 0.0], [0.0, 1.0]]])
    batch = {'label_weights': jnp.ones((1, 3))}
    predict = jax.jit(functools.partial(span.predict, lambda batch: {'logits': scores}), static_argnames='longest')
    spans, best, null = predict(batch)
    assert spans.tolist() == [[1, 2]] and best.tolist() == [10.0] and null.tolist() == [9.0]
    spans, *_ = predict(batch, longest=1)
    assert spans.tolist() in ([[0, 0]], [[1, 1]])
    spans, *_ = jax.jit(functools.partial(span.predict, forward))({'label_weights': INSIDE})
    assert spans.tolist() == [[1, 1]]  # not the token outside of the context, which scores highest


# --- rows -> examples

FIELDS = ('question', 'context'), 'answers'


@pytest.fixture
def question(row):
    """A function from an answer to a row."""

    def make(start, text, context=CONTEXT):
        return row(question='the', context=context, answers=[{'answer_start': start, 'text': text}])

    return make


@pytest.fixture
def spans(bert, form):
    """A function from rows to their examples."""
    return lambda rows, **over: span.encode(rows, form(bert, *FIELDS, policy='cut', **over)).examples


def test_answer_is_aligned_to_tokens(words_of, question, spans):
    (example,) = spans([question(15, 'the cat')])
    assert words_of(example.tokens) == '[CLS] the [SEP] the cat sat on the cat [SEP]'
    assert example.values['spans'].tolist() == [7, 8]
    assert example.flat['label_weights'].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert example.flat['offsets'][7].tolist() == [15, 18]
    assert example.flat['token_types'].tolist() == [0] * 3 + [1] * 7
    (part,) = spans([question(16, 'he c')])  # an answer that cuts words takes them whole
    assert part.values['spans'].tolist() == [7, 8]


def test_long_context_is_cut_into_overlapping_windows(words_of, question, spans):
    rows = [question(15, 'the cat')]
    every = spans(rows, seq_len=8, training=False)
    assert [words_of(each.tokens)[16:] for each in every] == ['the cat sat on [SEP]', 'sat on the cat [SEP]']
    for windows in (every, spans(rows, seq_len=8)):
        assert [each.values['spans'].tolist() for each in windows] == [[0, 0], [5, 6]]
    at = every[1].flat['offsets'][5:7]
    assert CONTEXT[at[0, 0] : at[1, 1]] == 'the cat'


def test_windows_and_spans_equal_run_qa(tmp_path, row, question, spans):
    """transformers' examples/pytorch/question-answering/run_qa.py, prepare_train_features, on `tokenizers` alone."""
    context = ' '.join(np.random.RandomState(0).choice(['the', 'cat', 'cats', 'sat', 'on', 'under'], 60))
    starts = [0, *np.flatnonzero(np.array(list(context)) == ' ') + 1]
    rows = [question(int(at), ' '.join(context[at:].split()[: 1 + at % 3]), context) for at in starts]
    rows.append(row(question='the', context=context, answers=[]))
    ours = spans(rows, seq_len=17)
    room = 17 - 4
    theirs = Tokenizer.from_str(wordpiece((tmp_path / 'vocab.txt').read_bytes()).decode())
    theirs.enable_truncation(17, stride=room - room // 2, strategy='only_second')
    expected = []
    for number, each in enumerate(rows):
        encoding = theirs.encode(each.fields['question'], context)
        for window in (encoding, *encoding.overflowing):
            inside = [i for i, kind in enumerate(window.sequence_ids) if kind == 1]
            answers = each.fields['answers']
            start = answers[0]['answer_start'] if answers else -1
            end = start + len(answers[0]['text']) if answers else -1
            first, last = window.offsets[inside[0]][0], window.offsets[inside[-1]][1]
            ends = [0, 0]
            if answers and first <= start and last >= end:
                ends = [max(i for i in inside if window.offsets[i][0] <= start)]
                ends.append(min(i for i in inside if window.offsets[i][1] >= end))
            expected.append((number, window.ids, ends))
    result = [(each.source, each.tokens.tolist(), each.values['spans'].tolist()) for each in ours]
    assert sorted(result) == sorted(expected) and len({tuple(ends) for *_, ends in result}) > 5


def test_answers_as_an_object_of_arrays(row, spans):
    one = row(question='the', context=CONTEXT, answers={'text': ['sat'], 'answer_start': [8]})
    assert spans([one])[0].values['spans'].tolist() == [5, 5]


@pytest.mark.parametrize(
    ('start', 'text', 'message'),
    [
        (20, 'cat', r"rows.jsonl:7: the answer 'cat' at 20 lies outside the text of 22 characters"),
        (-1, 'cat', 'lies outside the text'),
        ('4', 'cat', 'lies outside the text'),
        (5, 'cat', r"rows.jsonl:7: the answer 'cat' does not stand at 5: there is 'at '"),
        (4, '', 'lies outside the text'),
        (7, ' ', 'has no token of its own'),
    ],
)
def test_answer_outside_the_text_is_rejected(start, text, message, question, spans):
    with pytest.raises(ValueError, match=message):
        spans([question(start, text)])


def test_answer_that_no_window_holds_is_rejected_in_training(question, spans):
    with pytest.raises(
        ValueError, match="rows.jsonl:7: no window of 4 tokens holds the whole answer 'cat sat on the c"
    ):
        spans([question(4, 'cat sat on the cat')], seq_len=8)
    assert len(spans([question(4, 'cat sat on the cat')], seq_len=8, training=False)) == 2


def test_answers_of_another_form_are_rejected(row, spans):
    with pytest.raises(ValueError, match="rows.jsonl:7: 'answers' must be"):
        spans([row(question='the', context=CONTEXT, answers=['the'])])


def test_spans_of_xquad_give_its_answers(shared, form):
    from lmtrain.data.rows import read_rows

    rows = read_rows('xquad.en.json', str(shared / 'tasks' / 'xquad'))[:200]
    tokenizer = open_tokenizer(shared / 'tokenizers' / 'bert-uncased' / 'vocab.txt', False)
    windows = span.encode(rows, form(tokenizer, *FIELDS, seq_len=384, policy='cut')).examples
    answered = [each for each in windows if each.values['spans'].any()]
    exact = 0
    for each in answered:
        at, (first, last) = each.flat['offsets'], each.values['spans']
        fields = rows[each.source].fields
        text = fields['context'][at[first, 0] : at[last, 1]]
        assert fields['answers'][0]['text'] in text
        exact += fields['answers'][0]['text'] == text
    assert exact > 0.95 * len(answered)
    assert {each.source for each in answered} == set(range(200))
    assert all(each.tokens.dtype == np.int32 and len(each.tokens) <= 384 for each in answered)


# --- score


def test_answers_are_compared_as_in_squad():
    assert span.normal(' The  Cat-sat, on a mat! ') == 'catsat on mat'
    assert (
        span.word_f1('the black cat', 'a cat') == 2 / 3
        and span.word_f1('the', 'an') == 1
        and span.word_f1('cat', '') == 0
    )
    assert (
        span.word_f1('cat cat', 'cat dog cat') == 4 / 5 and span.word_f1('cat cat', 'cat') == 2 / 3
    )  # a word counts as often


def test_window_with_the_best_score_answers(task_data):
    context = 'bees make honey'
    rows = [{'q': '?', 'c': context, 'a': {'text': ['the honey', 'x'], 'answer_start': [0, 0]}}]
    offsets = np.array([[0, 0], [0, 4], [5, 9], [0, 0], [5, 9], [10, 15]])
    one = task_data(rows, [0, 3, 6], [0, 0], {'offsets': offsets}, text=('q', 'c'), label='a')
    right = [(np.array([1, 2]), 3.0, 9.0), (np.array([2, 2]), 5.0, 9.0)]
    assert span.score(one, 'test', right) == {'exact_match': 1, 'answer_f1': 1}
    wrong = [(np.array([1, 2]), 3.0, 9.0), (np.array([2, 2]), 2.0, 9.0)]
    assert span.score(one, 'test', wrong)['exact_match'] == 0


def test_questions_without_an_answer_as_in_squad_2(task_data):
    """The lowest null score of the windows is compared with the best score."""
    context = 'bees make honey'
    answers = [{'text': [], 'answer_start': []}, {'text': ['honey'], 'answer_start': [10]}]
    rows = [{'q': '?', 'c': context, 'a': each} for each in answers]
    offsets = np.array([[0, 0], [0, 4], [0, 0], [10, 15], [0, 0], [10, 15]])
    one = task_data(rows, [0, 2, 4, 6], [0, 0, 1], {'offsets': offsets}, text=('q', 'c'), label='a')
    at = np.array([1, 1])
    assert span.score(one, 'test', [(at, 3.0, 9.0), (at, 5.0, 5.5), (at, 2.0, 1.0)])['exact_match'] == 1
    assert span.score(one, 'test', [(at, 3.0, 9.0), (at, 5.0, 4.5), (at, 2.0, 1.0)])['exact_match'] == 0.5
    assert span.score(one, 'test', [(at, 3.0, 9.0), (at, 5.0, 5.5), (at, 2.0, 3.0)])['answer_f1'] == 0.5


# --- preview


def test_preview_marks_the_context_and_the_answer(cat):
    batch = cat | {'label_weights': np.array([[0, 1, 1, 1, 0, 0, 0, 0]]), 'spans': np.array([[2, 3]])}
    assert span.render(Bytes(), batch, 0) == '<|endoftext|>{c[at]}<|endoftext|>~~~'
    assert span.render(Bytes(), batch | {'spans': np.array([[0, 0]])}, 0) == '[<|endoftext|>]{cat}<|endoftext|>~~~'
    assert span.render(Bytes(), batch | {'spans': np.array([[-1, -1]])}, 0) == '<|endoftext|>{cat}<|endoftext|>~~~'
    assert '[...]' in span.legend(batch)
