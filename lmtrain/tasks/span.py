"""Extractive question answering: where in the context the answer starts and where it ends."""

import collections
import math
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data.examples import LABEL, Example, token_types, trim_offsets
from lmtrain.data.preview import Batch, render_row
from lmtrain.data.rows import Row, check_text, text_of, value_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.tasks.task import Encoded, RowFormat, Task

MASKED = -1e30  # finite: a row without candidates gives no NaN
NULL_SPAN = (0, 0)  # of a window without the answer


def loss(forward, batch, *, head: str = 'logits'):
    """Half the sum of the cross-entropies of start and end (arXiv 1810.04805, section 4.2).

    They are taken over the context and the row's first token, at which start and end lie if the context has no answer
    (the null span of section 4.3). Such windows are trained on because `predict` compares scores between windows.

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]` float32 [B, T, 2], scores of start and end.
      batch: `spans` int32 [B, 2], first and last token of the answer, (0, 0) without one, -1 in a row of padding (its
        weight is 0); `label_weights` float32 [B, T], 1 at the tokens among which an answer may lie.

    Returns:
      ({'loss', 'accuracy'}, weights), each [B]; accuracy: both ends are the most likely ones.
    """
    first = jnp.arange(batch['label_weights'].shape[1])[None] == 0
    scores = _mask(forward(batch)[head], (batch['label_weights'] > 0) | first)
    spans = batch['spans']
    weights = (spans[:, 0] >= 0).astype(jnp.float32)
    log_p = jax.nn.log_softmax(scores, axis=1)
    ends = jnp.maximum(spans, 0)[:, None, :]
    nats = -jnp.take_along_axis(log_p, ends, axis=1)[:, 0]
    correct = jnp.all(jnp.argmax(scores, axis=1) == spans, axis=1)
    return {'loss': jnp.mean(nats, axis=1), 'accuracy': correct.astype(jnp.float32)}, weights


def predict(forward, batch, *, head: str = 'logits', longest: int = 30):
    """(spans int32 [B, 2], scores float32 [B], null float32 [B]).

    The span with the highest start + end among those of at most `longest` tokens of the context, its score, and the
    score of the null span.
    """
    outputs = forward(batch)[head]
    scores = _mask(outputs, batch['label_weights'] > 0)
    T = scores.shape[1]
    start, end = jnp.arange(T)[:, None], jnp.arange(T)[None]
    sums = scores[:, :, None, 0] + scores[:, None, :, 1]
    allowed = (start <= end) & (end < start + longest)
    flat = jnp.where(allowed[None], sums, 2 * MASKED).reshape(len(scores), T * T)
    best = jnp.argmax(flat, axis=1)
    spans = jnp.stack([best // T, best % T], axis=1).astype(jnp.int32)
    return spans, jnp.max(flat, axis=1), jnp.sum(outputs[:, 0], axis=-1)


def infer(forward, batch, *, head: str = 'logits', longest: int = 30):
    """(spans int32 [B, 2], log p float32 [B], null float32 [B]): `predict` with log-probabilities in place of scores.

    The probability of a span is that of its start times that of its end, each among the context and the row's first
    token, as in `loss`. The null span is the first token.
    """
    outputs = forward(batch)[head].astype(jnp.float32)
    spans, score, null = predict(lambda _: {head: outputs}, batch, head=head, longest=longest)
    first = jnp.arange(outputs.shape[1])[None] == 0
    log_z = jnp.sum(jax.nn.logsumexp(_mask(outputs, (batch['label_weights'] > 0) | first), axis=1), axis=-1)
    return spans, score - log_z, null - log_z


def _mask(scores, candidates):
    return jnp.where(candidates[..., None], scores, MASKED)


# --- rows -> examples


def answers_of(row: Row, label: str, context: str) -> list[tuple[int, str]]:
    """[(first character, text)] of the answers: SQuAD's array of objects, or an object of arrays; [] without any.

    Raises InputError if the context does not hold an answer at its place.
    """
    value = value_of(row, label, LABEL)
    try:
        if isinstance(value, dict):
            answers = list(zip(value['answer_start'], value['text'], strict=True))
        else:
            answers = [(answer['answer_start'], answer['text']) for answer in value]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{row.place}: {label!r} must be [{{'answer_start': 34, 'text': '308'}}, ...]") from None
    for start, text in answers:
        check_text(text, f'{row.place}: an answer')
        if type(start) is not int or not text or not 0 <= start <= len(context) - len(text):
            raise InputError(
                f'{row.place}: the answer {text!r} at {start!r} lies outside the text of {len(context)} characters'
            )
        there = context[start : start + len(text)]
        if there != text:
            raise InputError(f'{row.place}: the answer {text!r} does not stand at {start}: there is {there!r}')
    return answers


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Questions and their contexts, one example for each window of a context; windows overlap by half.

    Columns: `label_weights` float32 [n], 1 at the context; `offsets` int32 [n, 2], characters of the context; `spans`
    int32 [2], the first and last token of the first answer. A window that lacks a part of it, and a question without
    an answer (SQuAD 2), have the null span (0, 0), the first token of the row, as in transformers' run_qa.py.

    Raises InputError if no window of a training row holds the whole answer.
    """
    if len(form.text) != 2:
        raise InputError(
            f"config.task.text is {form.text!r}; the fields of question and context, ('question', 'context')"
        )
    prefix, between, _, _ = form.tokenizer.layout
    questions = form.tokenizer.encode_batch([text_of(row, form.text[0]) for row in rows])
    contexts = [text_of(row, form.text[1]) for row in rows]
    encoded = form.tokenizer.encode_with_offsets(contexts)
    examples = []
    for index, (row, question, (ids, offsets)) in enumerate(zip(rows, questions, encoded, strict=True)):
        offsets = trim_offsets(contexts[index], offsets)
        answers = answers_of(row, form.label, contexts[index]) if form.label else []
        answer = _tokens_of(answers[0], offsets, row.place) if answers else None
        head = np.concatenate([prefix, question, between]).astype(np.int32)
        capacity = _capacity(row, head, len(question), len(ids), form)
        if capacity is None:
            continue
        begins = list(_begins(len(ids), capacity))
        if form.training and answer and not any(_holds(begin, capacity, answer) for begin in begins):
            raise InputError(
                f'{row.place}: no window of {capacity} tokens holds the whole answer {answers[0][1][:60]!r}'
            )
        examples += [_window(index, head, ids, offsets, answer, begin, capacity, form) for begin in begins]
    null = sum(tuple(each.values['spans']) == NULL_SPAN for each in examples)
    return Encoded(examples, [f'{null:,} of {len(examples):,} windows hold no answer'] if null and form.label else [])


def _capacity(row: Row, head: np.ndarray, question: int, context: int, form: RowFormat) -> int | None:
    """Tokens of the context that a window holds; None if the row is dropped.

    question, context: their numbers of tokens. Raises InputError if the question leaves too few.
    """
    suffix = form.tokenizer.layout.suffix
    capacity = form.length.seq_len - len(head) - len(suffix)
    if not form.length.fits(row, len(head) + context + len(suffix)):
        return None
    if capacity < context and capacity < form.length.seq_len // 4:
        raise InputError(
            f'{row.place}: the question of {question} tokens leaves {capacity} tokens for '
            f'the context: increase data.seq_len={form.length.seq_len}'
        )
    return capacity


def _begins(size: int, capacity: int) -> Iterator[int]:
    """The first token of each window of a context of `size` tokens."""
    begin = 0
    yield begin
    while begin + capacity < size:
        begin += max(capacity // 2, 1)
        yield begin


def _holds(begin: int, capacity: int, answer: tuple[int, int] | None) -> bool:
    """Whether a window holds the whole answer, given by its first and last token."""
    return answer is not None and begin <= answer[0] and answer[1] < begin + capacity


def _window(index, head, ids, offsets, answer, begin: int, capacity: int, form: RowFormat) -> Example:
    """The example of row `index` with the tokens of the context from `begin` on; `answer`: (first, last) or None."""
    suffix = form.tokenizer.layout.suffix
    tokens = np.concatenate([head, ids[begin : begin + capacity], suffix]).astype(np.int32)
    context = slice(len(head), len(tokens) - len(suffix))
    weights = np.zeros(len(tokens), np.float32)
    weights[context] = 1
    characters = np.zeros((len(tokens), 2), np.int32)
    characters[context] = offsets[begin : begin + capacity]
    span = np.array(answer) + len(head) - begin if _holds(begin, capacity, answer) else np.array(NULL_SPAN)
    flat = {'label_weights': weights, 'offsets': characters}
    flat |= token_types(form.tokenizer, len(tokens), len(tokens) - len(head))
    return Example(index, tokens, flat, {'spans': span.astype(np.int32)})


def _tokens_of(answer: tuple[int, str], offsets: np.ndarray, place: str) -> tuple[int, int]:
    """The first and last token of an answer (first character, text); `offsets` [n, 2] are trimmed."""
    start, text = answer
    inside = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
    if not len(inside):
        raise InputError(f'{place}: the answer {text!r} has no token of its own')
    return int(inside[0]), int(inside[-1])


def legend(batch: Batch) -> str:
    """Explanation of the annotations in the preview of a batch."""
    return '[...] is the answer (the first token without one), {...} the context, ~ is padding'


def render(tokenizer: Tokenizer, batch: Batch, row: int, labels: tuple[str, ...] = ()) -> str:
    """One row of a batch, with annotations around the context and the answer."""
    before, after = {}, {}
    context = np.flatnonzero(batch['label_weights'][row]).tolist()
    if context:
        before[context[0]], after[context[-1]] = '{', '}'
    first, last = batch['spans'][row].tolist()
    if first >= 0:
        before[first], after[last] = before.get(first, '') + '[', ']' + after.get(last, '')
    return render_row(tokenizer, batch, row, before, after)


# --- score


def answers(data, split: str, predicted: Sequence) -> list[tuple[list[str], str]]:
    """[(accepted answers, predicted answer)] of the rows that have examples; '' is no answer.

    The window with the best score answers for its context. If some question of the task has no answer, as in SQuAD 2, a
    context has none if the lowest score of its null spans is above the best score (transformers' run_qa.py with
    version_2_with_negative).
    """
    examples = data.examples[split]
    best: dict[int, tuple[float, str]] = {}
    null: dict[int, float] = {}
    for example, source in enumerate(examples.source.tolist()):
        (first, last), span_score, null_score = predicted[example]
        offsets = examples.flat['offsets'][examples.begins[example] :]
        text = data.rows[split][source].fields[data.text[1]][offsets[first, 0] : offsets[last, 1]]
        best[source] = max(best.get(source, (-np.inf, '')), (float(span_score), text))
        null[source] = min(null.get(source, np.inf), float(null_score))
    may_lack = not all(answer_texts(row.fields[data.label]) for rows in data.rows.values() for row in rows)
    return [
        (
            answer_texts(data.rows[split][source].fields[data.label]) or [''],
            '' if may_lack and null[source] > span_score else text,
        )
        for source, (span_score, text) in best.items()
    ]


def describe(data, split: str, inferred: Sequence) -> dict[int, dict[str, Any]]:
    """{row: {'prediction', 'begin', 'end', 'probability', 'no_answer'}}.

    The answer is the span with the highest probability over the windows of the context, without blanks at its ends, at
    the characters from `begin` to before `end`; 'no_answer' is the lowest probability of the null span over windows.
    """
    examples, described = data.examples[split], {}
    for example, source in enumerate(examples.source.tolist()):
        (first, last), log_p, null = inferred[example]
        offsets = examples.flat['offsets'][examples.begins[example] :]
        begin, end = int(offsets[first, 0]), int(offsets[last, 1])
        text = data.rows[split][source].fields[data.text[1]][begin:end]
        begin += len(text) - len(text.lstrip())
        text = text.strip()
        answer = {'prediction': text, 'begin': begin, 'end': begin + len(text), 'probability': math.exp(log_p)}
        best = described.get(source)
        lowest = min(math.exp(null), best['no_answer'] if best else 1.0)
        described[source] = (best if best and best['probability'] >= answer['probability'] else answer) | {
            'no_answer': lowest
        }
    return described


def rate(answers: Sequence[tuple[list[str], str]]) -> dict[str, float]:
    """{'exact_match', 'answer_f1'} as in SQuAD, of (accepted answers, predicted answer)."""
    exact = [max(normal(text) == normal(each) for each in accepted) for accepted, text in answers]
    f1 = [max(word_f1(text, each) for each in accepted) for accepted, text in answers]
    return {'exact_match': float(np.mean(exact)), 'answer_f1': float(np.mean(f1))}


def score(data, split: str, predicted: Sequence) -> dict[str, float]:
    """{'exact_match', 'answer_f1'} of a split (`answers`, `rate`)."""
    return rate(answers(data, split, predicted))


def answer_texts(answers) -> list[str]:
    """The texts of SQuAD's answers, an array of objects or an object of arrays; or those of an array of texts."""
    if isinstance(answers, list) and all(isinstance(answer, str) for answer in answers):
        return answers
    return answers['text'] if isinstance(answers, dict) else [answer['text'] for answer in answers]


def normal(text: str) -> str:
    """An answer in lower case without punctuation, articles and extra blanks (SQuAD's evaluation script).

    Example:
      >>> normal(' The  Cat-sat, on a mat! ')
      'catsat on mat'
    """
    plain = ''.join(c for c in text.lower() if c not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', plain).split())


def word_f1(predicted: str, answer: str) -> float:
    """F1 of the words that two answers share."""
    one, other = normal(predicted).split(), normal(answer).split()
    shared = sum((collections.Counter(one) & collections.Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if one and other else float(one == other)


TASK = Task(
    name='span',
    head='span',
    columns=('spans', 'label_weights', 'token_types'),
    losses={'cross_entropy': loss},
    peft_type='QUESTION_ANS',
    legend=legend,
    render=render,
    encode=encode,
    num_outputs=2,
    predict=predict,
    score=score,
    answers=answers,
    rate=rate,
    rates_rows=True,
    infer=infer,
    describe=describe,
    version=2,
    unit='window',
)
