"""What predictions are worth in the measures of the field: whole entities, answers, classes, counted on the host.

Predictions are a list with one entry an example of a split, as `lmtrain.evaluation.predictions.predictions` gives it.
"""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

from lmtrain.data.labels import class_of

OUTSIDE = 'O'


def score(task, split: str, predicted: Sequence) -> dict[str, float]:
    """The measures of a task: classify {'macro_f1'}, regress {'pearson'}, tag {'entity_f1', 'entity_precision',
    'entity_recall'} (CoNLL: a whole entity of the right kind), span {'exact_match', 'answer_f1'} (SQuAD's).
    """
    return {'classify': _classes, 'regress': _numbers, 'tag': _tags, 'span': _answers}[task.name](
        task, split, predicted
    )


def _classes(task, split, predicted):
    wanted, found = np.asarray(task.examples[split].values['labels']), np.array(predicted)
    each = []
    for label in np.unique(np.concatenate([wanted, found])):
        right = np.sum((wanted == label) & (found == label))
        each.append(2 * right / (np.sum(wanted == label) + np.sum(found == label)))
    return {'macro_f1': float(np.mean(each))}


def _numbers(task, split, predicted):
    wanted, found = np.asarray(task.examples[split].values['labels'], np.float64), np.array(predicted, np.float64)
    spread = wanted.std() * found.std()
    return {'pearson': float(np.mean((wanted - wanted.mean()) * (found - found.mean())) / spread) if spread else 0.0}


def _tags(task, split, predicted):
    """Over all words: one that was cut off, or has no token, counts as outside of every entity."""
    examples = task.examples[split]
    wanted, found = [], []
    for example, source in enumerate(examples.source.tolist()):
        begin, end = examples.begins[example : example + 2]
        words = examples.flat['word'][begin:end]
        tags = task.rows[split][source].fields[task.label]
        names = [task.labels[class_of(tag, task.labels, '')] for tag in tags]
        guessed = [OUTSIDE] * len(tags)
        for at in np.flatnonzero(words >= 0):
            guessed[words[at]] = task.labels[predicted[example][at]]
        wanted.append(names)
        found.append(guessed)
    return entity_scores(wanted, found)


def entity_scores(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of the entities in sentences tagged by B-, I- and O, as conlleval counts them."""
    truth = {(number, *entity) for number, tags in enumerate(wanted) for entity in entities(tags)}
    guess = {(number, *entity) for number, tags in enumerate(found) for entity in entities(tags)}
    right = len(truth & guess)
    precision, recall = right / max(len(guess), 1), right / max(len(truth), 1)
    f1 = 2 * right / max(len(truth) + len(guess), 1)
    return {'entity_f1': f1, 'entity_precision': precision, 'entity_recall': recall}


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """[(kind, first word, word after the last)]; an I- that goes on nothing of its kind begins an entity."""
    found, kind, begin = [], None, 0
    for at, tag in enumerate([*tags, OUTSIDE]):
        mark, _, this = tag.partition('-')
        inside = mark in ('B', 'I')
        if kind is not None and not (mark == 'I' and this == kind):
            found.append((kind, begin, at))
            kind = None
        if inside and kind is None:
            kind, begin = this, at
    return found


def _answers(task, split, predicted):
    """The window with the best score answers for its context.

    If some question of the task has no answer, as in SQuAD 2, a context has none if the lowest score of its null spans
    is above the best score (transformers' run_qa.py with version_2_with_negative).
    """
    examples = task.examples[split]
    best: dict[int, tuple[float, str]] = {}
    null: dict[int, float] = {}
    for example, source in enumerate(examples.source.tolist()):
        (first, last), score, without = predicted[example]
        at = examples.flat['offsets'][examples.begins[example] :]
        text = task.rows[split][source].fields[task.text[1]][at[first, 0] : at[last, 1]]
        best[source] = max(best.get(source, (-np.inf, '')), (float(score), text))
        null[source] = min(null.get(source, np.inf), float(without))
    may_lack = not all(_texts(row.fields[task.label]) for rows in task.rows.values() for row in rows)
    exact, f1 = [], []
    for source, (score, text) in best.items():
        text = '' if may_lack and null[source] > score else text
        truths = _texts(task.rows[split][source].fields[task.label]) or ['']
        exact.append(max(normal(text) == normal(truth) for truth in truths))
        f1.append(max(word_f1(text, truth) for truth in truths))
    return {'exact_match': float(np.mean(exact)), 'answer_f1': float(np.mean(f1))}


def _texts(answers) -> list[str]:
    return answers['text'] if isinstance(answers, dict) else [answer['text'] for answer in answers]


def normal(text: str) -> str:
    """An answer in lower case without punctuation, articles and needless blanks (SQuAD's evaluation script)."""
    plain = ''.join(c for c in text.lower() if c not in string.punctuation)
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', plain).split())


def word_f1(found: str, wanted: str) -> float:
    """F1 of the words that two answers share."""
    one, other = normal(found).split(), normal(wanted).split()
    shared = sum((collections.Counter(one) & collections.Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if one and other else float(one == other)
