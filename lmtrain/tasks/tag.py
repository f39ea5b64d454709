"""Token tagging: a tag for each word, read at its first sub-token."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data.examples import LABEL, Example, trim_offsets
from lmtrain.data.labels import class_id
from lmtrain.data.preview import Batch, render_row
from lmtrain.data.rows import Row, check_text, place_of, value_of
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.files import json_type
from lmtrain.tasks.task import Encoded, RowFormat, Task

OUTSIDE = 'O'
BEGINS, CONTINUES, ENDS = ('B', 'S', 'U'), ('I', 'E', 'L'), ('E', 'L', 'S', 'U')  # prefixes of tags; BIOES, BILOU


def loss(forward, batch, *, head: str = 'logits'):
    """Cross-entropy of `batch['labels']` int32 [B, T] in nats, weighted by `batch['label_weights']` float32 [B, T].

    Args:
      forward: Batch -> {head: Array}; reads `outputs[head]` float32 [B, T, C].

    Returns:
      ({'loss', 'accuracy'}, weights), each [B, T]. Entities are counted on the host (`score`).
    """
    logits = forward(batch)[head]
    labels = batch['labels']
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[..., None], axis=-1)[..., 0]
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {'loss': nats, 'accuracy': correct}, batch['label_weights']


def predict(forward, batch, *, head: str = 'logits'):
    """int32 [B, T]: the most likely tag of each token."""
    return jnp.argmax(forward(batch)[head], axis=-1).astype(jnp.int32)


def infer(forward, batch, *, head: str = 'logits'):
    """(int32 [B, T], float32 [B, T]): the most likely tag of each token, and its probability."""
    shares = jax.nn.softmax(forward(batch)[head].astype(jnp.float32), axis=-1)
    return jnp.argmax(shares, axis=-1).astype(jnp.int32), jnp.max(shares, axis=-1)


# --- rows -> examples


def tags_of(row: Row, words: str, label: str) -> tuple[list[str], list]:
    """(words, tags) of a row. Raises InputError if they are not lists of the same length."""
    lists = []
    for name, field in ((words, 'config.task.text'), (label, LABEL)):
        value = value_of(row, name, field)
        if not isinstance(value, list):
            raise InputError(f'{row.place}: {name!r} must be an array, one entry a word; here it is {json_type(value)}')
        lists.append(value)
    texts, tags = lists
    if len(texts) != len(tags):
        raise InputError(f'{row.place}: {len(texts)} words in {words!r} and {len(tags)} tags in {label!r}')
    if not texts:
        raise InputError(f'{row.place}: no word in {words!r}')
    return [check_text(word, f'{row.place}: {words!r} [{i}]') for i, word in enumerate(texts)], tags


def words_of(row: Row, words: str) -> list[str]:
    """The words of a row without tags: a list, or a text whose words are separated by blanks."""
    value = value_of(row, words, 'config.task.text')
    value = value.split() if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise InputError(f'{row.place}: {words!r} must be an array of words or a text; here it is {json_type(value)}')
    return [check_text(word, f'{row.place}: {words!r} [{i}]') for i, word in enumerate(value)]


def row_labels(row: Row, text: tuple[str, ...], label: str) -> Iterator[tuple[str, Any]]:
    """The tags of a row."""
    for index, tag in enumerate(tags_of(row, text[0], label)[1]):
        yield place_of(row, index), tag


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Words joined by blanks, the label of each at its first sub-token.

    Columns: `labels` int32 and `label_weights` float32 [n] (0 at all other tokens), `word` int32 [n], the index of the
    word that begins at the token, else -1. A word at which no token begins has no label.
    """
    if len(form.text) != 1:
        raise InputError(f"config.task.text is {form.text!r}; one field is expected, such as ('tokens',)")
    prefix, _, suffix, _ = form.tokenizer.layout
    capacity = form.length.seq_len - len(prefix) - len(suffix)
    words = form.text[0]
    tagged = [tags_of(row, words, form.label) if form.label else (words_of(row, words), ()) for row in rows]
    encoded = form.tokenizer.encode_with_offsets([' '.join(words) for words, _ in tagged])
    examples = []
    for index, (row, (words, tags), (ids, offsets)) in enumerate(zip(rows, tagged, encoded, strict=True)):
        labels = [class_id(tag, form.labels, place_of(row, i)) for i, tag in enumerate(tags)] or [0] * len(words)
        word = first_tokens(words, ids, offsets)
        if not form.length.fits(row, len(prefix) + len(ids) + len(suffix)):
            continue
        ids, word = ids[:capacity], word[:capacity]
        word = np.concatenate([np.full(len(prefix), -1), word, np.full(len(suffix), -1)]).astype(np.int32)
        begins = word >= 0
        aligned = np.where(begins, np.array(labels, np.int32)[np.maximum(word, 0)], 0).astype(np.int32)
        tokens = np.concatenate([prefix, ids, suffix]).astype(np.int32)
        flat = {'labels': aligned, 'label_weights': begins.astype(np.float32), 'word': word}
        examples.append(Example(index, tokens, flat, {}))
    return Encoded(examples, _scheme_notes(form.labels) if form.label and form.training else ())


def _scheme_notes(labels: Sequence[str]) -> list[str]:
    """A line for the user if no tag marks an entity, as of parts of speech: `score` counts entities."""
    if any(name.partition('-')[0] in (*BEGINS, *CONTINUES) for name in labels):
        return []
    return ['no tag begins with B-, I- or another mark of an entity: entity_f1 is 0, accuracy counts words']


def first_tokens(words: Sequence[str], ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[n] the index of the word that begins at each token, else -1; `offsets` [n, 2] are of the words joined by blanks.

    Each word begins at one token at most, and a token is the beginning of one word at most.
    """
    text = ' '.join(words)
    word_of_char = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
    word, last = np.full(len(ids), -1, np.int32), -1
    for token, (start, end) in enumerate(trim_offsets(text, offsets).tolist()):
        if start < end and word_of_char[start] > last:
            word[token] = last = word_of_char[start]
    return word


def legend(batch: Batch) -> str:
    """Explanation of the annotations in the preview of a batch."""
    return '{...} is the tag of the word that begins before it, ~ is padding'


def render(tokenizer: Tokenizer, batch: Batch, row: int, labels: tuple[str, ...]) -> str:
    """One row of a batch, with the tag behind the first token of each word."""
    words = np.flatnonzero(batch['label_weights'][row]).tolist()
    tags = {position: f'{{{labels[batch["labels"][row, position]]}}}' for position in words}
    return render_row(tokenizer, batch, row, after=tags)


# --- score


def answers(data, split: str, predicted: Sequence) -> list[tuple[list[str], list[str]]]:
    """[(tags of all words, predicted tags)] of the examples.

    A word that was cut off, or at which no token begins, is predicted as outside of every entity.
    """
    examples, pairs = data.examples[split], []
    for example, source in enumerate(examples.source.tolist()):
        begin, end = examples.begins[example : example + 2]
        words = examples.flat['word'][begin:end]
        tags = data.rows[split][source].fields[data.label]
        of_words = [OUTSIDE] * len(tags)
        for token in np.flatnonzero(words >= 0):
            of_words[words[token]] = data.labels[predicted[example][token]]
        pairs.append(([data.labels[class_id(tag, data.labels, '')] for tag in tags], of_words))
    return pairs


def describe(data, split: str, inferred: Sequence) -> dict[int, dict[str, Any]]:
    """{row: {'prediction': the tag of each word, 'probability' of each, 'entities'}}.

    An entity is {'type', 'text', 'begin', 'end'}: its words joined by blanks, the index of the first word and of the
    word after the last. A word that was cut off, or at which no token begins, is outside of every entity and has no
    probability (None).
    """
    examples, described = data.examples[split], {}
    for example, source in enumerate(examples.source.tolist()):
        begin, end = examples.begins[example : example + 2]
        words, (tags, shares) = words_of(data.rows[split][source], data.text[0]), inferred[example]
        of_words: list[str] = [OUTSIDE] * len(words)
        known: list[float | None] = [None] * len(words)
        first = examples.flat['word'][begin:end]
        for token in np.flatnonzero(first >= 0):
            of_words[first[token]], known[first[token]] = data.labels[tags[token]], float(shares[token])
        spans = [
            {'type': kind, 'text': ' '.join(words[start:stop]), 'begin': start, 'end': stop}
            for kind, start, stop in entities(of_words)
        ]
        described[source] = {'prediction': of_words, 'probability': known, 'entities': spans}
    return described


def rate(answers: Sequence[tuple[list[str], list[str]]]) -> dict[str, float]:
    """{'entity_f1', 'entity_precision', 'entity_recall'} of (tags, predicted tags)."""
    return entity_scores(*zip(*answers, strict=True))


def score(data, split: str, predicted: Sequence) -> dict[str, float]:
    """{'entity_f1', 'entity_precision', 'entity_recall'} over all words of a split."""
    return rate(answers(data, split, predicted))


def entity_scores(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities in sentences, as conlleval counts them. For tags see `entities`.

    Example:
      >>> entity_scores([['B-PER', 'I-PER', 'O', 'B-LOC']], [['B-PER', 'O', 'O', 'B-LOC']])['entity_f1']
      0.5
    """
    expected = {(sentence, *entity) for sentence, tags in enumerate(labels) for entity in entities(tags)}
    guessed = {(sentence, *entity) for sentence, tags in enumerate(predicted) for entity in entities(tags)}
    correct = len(expected & guessed)
    precision, recall = correct / max(len(guessed), 1), correct / max(len(expected), 1)
    f1 = 2 * correct / max(len(expected) + len(guessed), 1)
    return {'entity_f1': f1, 'entity_precision': precision, 'entity_recall': recall}


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """[(kind, first word, word after the last)] of tags in BIO, IOB, BIOES or BILOU.

    E- and L- are the last word of an entity, S- and U- the only one. An I-, E- or L- that continues no entity of its
    kind begins one.
    """
    spans, kind, begin = [], None, 0
    for index, tag in enumerate([*tags, OUTSIDE]):
        mark, _, this = tag.partition('-')
        if kind is not None and not (mark in CONTINUES and this == kind):
            spans.append((kind, begin, index))
            kind = None
        if kind is None and mark in (*BEGINS, *CONTINUES):
            kind, begin = this, index
        if mark in ENDS:
            spans.append((kind, begin, index + 1))
            kind = None
    return spans


TASK = Task(
    name='tag',
    head='tag',
    columns=('labels', 'label_weights'),
    losses={'cross_entropy': loss},
    peft_type='TOKEN_CLS',
    legend=legend,
    render=render,
    encode=encode,
    row_labels=row_labels,
    predict=predict,
    score=score,
    answers=answers,
    rate=rate,
    infer=infer,
    describe=describe,
    unit='word',
)
