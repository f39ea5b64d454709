"""Log-likelihoods of texts after prompts, independent of the other texts of a batch."""

import collections
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.errors import InputError, NonFiniteOutput
from lmtrain.inference import prompts, sample
from lmtrain.inference.questions import Question
from lmtrain.tree import Params

SHORTEST = 16  # tokens; rows are padded to powers of two from here on, so that few programs are compiled
SHORTEST_CHOICE = 4  # the same for the scored part of a row


Encoded = list[tuple[np.ndarray, int]]  # (ids of a prompt and a choice, index at which scoring starts), per choice


def text_before(question: Question, demonstrations: Sequence[Question], separator: str) -> str:
    """The demonstrations and the text up to the answer. InputError: one of them is a conversation."""
    for each in (question, *demonstrations):
        if each.messages:
            raise InputError(
                f'{each.place}: a conversation needs a chat template: name one, or a template with fields of the row'
            )
    return separator.join([*(each.context + each.answer for each in demonstrations), question.context])


def prompt(tokenizer: Tokenizer, separator: str, question: Question, demonstrations: Sequence[Question]) -> Encoded:
    """[(BEGIN and the prompt, its length)]. A space at its end is removed: it is part of the next word's token."""
    ids = np.array(prompts.encode(text_before(question, demonstrations, separator).rstrip(' '), tokenizer), np.int32)
    return [(ids, len(ids))]


def turns(question: Question, demonstrations: Sequence[Question], system: str) -> Conversation:
    """The messages up to the answer: turns of the demonstrations, then of the question; one system message, first.

    A question in one text is one turn of the user, without the whitespace at its end that would precede the answer.
    """
    first = [{'role': 'system', 'content': system}] if system else []
    messages: list[dict] = []
    for each in (*demonstrations, question):
        own = list(each.messages) or [{'role': 'user', 'content': each.context.rstrip()}]
        if own[0]['role'] in ('system', 'developer'):
            own, first = own[1:], [own[0]]
        messages += own
        if each is not question:
            messages.append({'role': 'assistant', 'content': each.answer.strip()})
    return Conversation(first + messages, (len(first + messages),), tools=question.tools)


def prompt_chat(
    tokenizer: Tokenizer, template: Template, system: str, question: Question, demonstrations: Sequence[Question]
) -> Encoded:
    """[(the conversation up to the answer of the assistant, its length)]."""
    ids = np.array(prompts.encode(turns(question, demonstrations, system), tokenizer, template), np.int32)
    return [(ids, len(ids))]


def choices_chat(
    tokenizer: Tokenizer, template: Template, system: str, question: Question, demonstrations: Sequence[Question]
) -> Encoded:
    """(the conversation with a choice as its answer, rendered as in training; index of the answer), for each choice.

    The token that ends the answer is scored too: it distinguishes 'no' from the beginning of 'not'.
    """
    before = turns(question, demonstrations, system)
    encoded = []
    for choice in question.choices:
        answer = {'role': 'assistant', 'content': choice.strip()}
        dialogue = before._replace(messages=[*before.messages, answer])
        _, [(ids, learned, _)] = encoding.encode_conversation(dialogue, tokenizer, template, question.place)
        scored = np.flatnonzero(learned)
        encoded.append((np.array(ids[: scored[-1] + 1], np.int32), int(scored[0])))
    return encoded


def choices(tokenizer: Tokenizer, separator: str, question: Question, demonstrations: Sequence[Question]) -> Encoded:
    """(BEGIN, the prompt and a choice; index at which scoring starts), for each choice.

    Prompt and choice are encoded as one text, because a token may contain the end of one and the beginning of the other
    (' ' + 'yes', or ':' + ')'). All choices are scored from the first index at which one of their encodings, or that of
    the prompt alone, differs from another. Before it all have the same tokens, and after it all have the same rest of
    the prompt and then a choice, so their log-likelihoods are comparable.
    """
    text = text_before(question, demonstrations, separator)
    alone, *wholes = tokenizer.encode_batch([text, *(text + choice for choice in question.choices)])
    common = len(alone)
    for whole in wholes:
        differ = np.flatnonzero(whole[:common] != alone[: min(common, len(whole))])
        common = int(differ[0]) if len(differ) else min(common, len(whole))
    if any(len(whole) == common for whole in wholes):
        raise InputError(f'{question.place}: a choice of {question.choices} adds no token to the prompt')
    return [(np.insert(whole, 0, tokenizer.begin_id), 1 + common) for whole in wholes]


def log_likelihoods(
    model,
    params: Params,
    prompts: Sequence[Sequence[tuple[np.ndarray, int]]],
    context: int,
    batch_size: int,
    place=dict,
) -> list[list[float]]:
    """log p(ids[start:] | ids[:start]) in nats of every (ids, start), nested the same as `prompts`.

    Rows of similar length are computed together, padded to a power of two (at most `context`). A row's program depends
    only on its own length, and so does its result. Equal rows are computed once.
    """
    groups = collections.defaultdict(dict)
    for ids, start in (each for encoded in prompts for each in encoded):
        T = sample.bucket(len(ids) - 1, SHORTEST, context)
        groups[T, sample.bucket(len(ids) - start, SHORTEST_CHOICE, T)][ids.tobytes(), start] = ids, start
    known = {}
    for (T, M), members in sorted(groups.items()):
        names, members = list(members), list(members.values())
        for first in range(0, len(members), batch_size):
            some = members[first : first + batch_size]
            batch = _batch(some + some[-1:] * (batch_size - len(some)), T, M)  # filled with copies of the last row
            nats = np.asarray(_nats(model, params, place(batch)), np.float64)
            known |= zip(names[first : first + batch_size], nats.tolist())
    if not all(map(math.isfinite, known.values())):
        raise NonFiniteOutput('the model gives log-likelihoods that are not finite: its parameters are broken')
    return [[known[ids.tobytes(), start] for ids, start in encoded] for encoded in prompts]


def _batch(rows: Sequence[tuple[np.ndarray, int]], T: int, M: int) -> dict[str, np.ndarray]:
    """Columns of (ids, start): M positions are selected, of which `loss_mask` marks those that count."""
    shapes = {'tokens': T, 'segment_ids': T, 'select': M, 'targets': M, 'loss_mask': M}
    batch = {name: np.zeros((len(rows), size), np.int32) for name, size in shapes.items()}
    batch['loss_mask'] = batch['loss_mask'].astype(np.float32)
    for row, (ids, start) in enumerate(rows):
        length, count = len(ids) - 1, len(ids) - start
        batch['tokens'][row, :length], batch['segment_ids'][row, :length] = ids[:-1], 1
        batch['select'][row, :count], batch['targets'][row, :count] = np.arange(start - 1, length), ids[start:]
        batch['loss_mask'][row, :count] = 1
    return batch


@functools.partial(jax.jit, static_argnames='model')
def _nats(model, params, batch):
    """float32 [B]."""
    outputs = model.apply({'params': params}, batch)
    return jnp.sum(outputs['logprob'] * batch['loss_mask'], axis=1)
