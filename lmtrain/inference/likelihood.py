"""Log-likelihoods of texts after prompts, independent of the other texts of a batch."""

import collections
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

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
from lmtrain.models.virtual_tokens import num_virtual_tokens
from lmtrain.tree import Params

SHORTEST = 16  # tokens; rows are padded to powers of two from here on, so that few programs are compiled
SHORTEST_CHOICE = 4  # the same for the scored part of a row


class Prompt(NamedTuple):
    """A text as token ids, and the continuations whose likelihoods are compared, or () to generate one.

    Attributes:
      context_ids: int32 [C], C >= 1: the text that all continuations follow, with the begin token.
      continuations: int32 [L] each, L >= 1. A token that contains the end of the text and the beginning of a choice is
        part of the continuation, and so is whatever else is not the same in all of them.
    """

    context_ids: np.ndarray
    continuations: tuple[np.ndarray, ...] = ()


class Likelihoods(NamedTuple):
    """What `log_likelihoods` returns, in the order of the prompts and of their continuations.

    Attributes:
      nats: for each prompt float64 [continuations], the log-likelihood of each continuation after the context.
      tokens: for each prompt int64 [continuations], the number of tokens of each continuation.
      computed_tokens: number of tokens that the model has read to compute them, without padding. A context counts once
        for all of its continuations, and a common beginning of several prompts once for all of them.
    """

    nats: list[np.ndarray]
    tokens: list[np.ndarray]
    computed_tokens: int


def text_before(question: Question, demonstrations: Sequence[Question], separator: str, instruction: str = '') -> str:
    """Instruction, demonstrations and the text up to the answer. InputError: one of them is a conversation."""
    for each in (question, *demonstrations):
        if each.messages:
            raise InputError(
                f'{each.place}: a conversation needs a chat template: name one, or a template with fields of the row'
            )
    first = [instruction] if instruction else []
    return separator.join([*first, *(each.context + each.answer for each in demonstrations), question.context])


def prompt(
    tokenizer: Tokenizer,
    separator: str,
    question: Question,
    demonstrations: Sequence[Question],
    instruction: str = '',
) -> Prompt:
    """BEGIN and the prompt, without continuations.

    A space at its end is removed: it is part of the next word's token.
    """
    text = text_before(question, demonstrations, separator, instruction).rstrip(' ')
    ids = prompts.encode(text, tokenizer)
    return Prompt(np.array(ids, np.int32))


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
) -> Prompt:
    """The conversation up to the answer of the assistant, without continuations."""
    return Prompt(np.array(prompts.encode(turns(question, demonstrations, system), tokenizer, template), np.int32))


def choices_chat(
    tokenizer: Tokenizer, template: Template, system: str, question: Question, demonstrations: Sequence[Question]
) -> Prompt:
    """The conversation up to the answer, rendered as in training, and each choice as its answer.

    The token that ends the answer is scored too: it distinguishes 'no' from the beginning of 'not'.
    """
    before = turns(question, demonstrations, system)
    wholes, start = [], None
    for choice in question.choices:
        answer = {'role': 'assistant', 'content': choice.strip()}
        dialogue = before._replace(messages=[*before.messages, answer])
        _, [(ids, learned, _)] = encoding.encode_conversation(dialogue, tokenizer, template, question.place)
        scored = np.flatnonzero(learned)
        wholes.append(np.array(ids[: scored[-1] + 1], np.int32))
        start = int(scored[0]) if start is None else min(start, int(scored[0]))
    return _split(wholes, min(start, *map(len, wholes)))


def choices(
    tokenizer: Tokenizer,
    separator: str,
    question: Question,
    demonstrations: Sequence[Question],
    instruction: str = '',
) -> Prompt:
    """BEGIN and the prompt, and the choices as continuations.

    Prompt and choice are encoded as one text, because a token may contain the end of one and the beginning of the other
    (' ' + 'yes', or ':' + ')'). All choices are scored from the first index at which one of their encodings, or that of
    the prompt alone, differs from another. Before it all have the same tokens, and after it all have the same rest of
    the prompt and then a choice, so their log-likelihoods are comparable.
    """
    text = text_before(question, demonstrations, separator, instruction)
    alone, *wholes = tokenizer.encode_batch([text, *(text + choice for choice in question.choices)])
    common = min(common_length(alone, whole) for whole in wholes)
    if any(len(whole) == common for whole in wholes):
        raise InputError(f'{question.place}: a choice of {question.choices} adds no token to the prompt')
    return _split([np.insert(whole, 0, tokenizer.begin_id) for whole in wholes], 1 + common)


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal elements at the beginning.

    >>> common_length(np.array([1, 2, 3, 4]), np.array([1, 2, 5]))
    2
    """
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _split(wholes: Sequence[np.ndarray], start: int) -> Prompt:
    """Texts that are equal before `start`, or before an earlier index, as a context and its continuations."""
    start = min(start, *(common_length(wholes[0], whole) for whole in wholes))
    return Prompt(wholes[0][:start].astype(np.int32), tuple(whole[start:].astype(np.int32) for whole in wholes))


def log_likelihoods(model, params: Params, prompts: Sequence[Prompt], batch_size: int) -> Likelihoods:
    """log p(continuation | context) in nats of every continuation of every prompt.

    A context and a continuation together have at most as many tokens as the model's context, without the last, which
    is not read (`sample.max_new_tokens`). Up to `batch_size` contexts are computed together.
    The results do not depend on the batch size, nor on the other prompts, beyond rounding in float32.

    Raises NonFiniteOutput if a log-likelihood is not finite.
    """
    groups = collections.defaultdict(dict)
    context = model.max_len - num_virtual_tokens(params)
    rows = [
        [(np.append(each.context_ids, ids), len(each.context_ids)) for ids in each.continuations] for each in prompts
    ]
    for ids, start in (row for each in rows for row in each):
        T = sample.bucket(len(ids) - 1, SHORTEST, context)
        groups[T, sample.bucket(len(ids) - start, SHORTEST_CHOICE, T)][ids.tobytes(), start] = ids, start
    known = {}
    computed = 0
    for (T, M), members in sorted(groups.items()):
        names, members = list(members), list(members.values())
        computed += sum(len(ids) - 1 for ids, _ in members)
        for first in range(0, len(members), batch_size):
            some = members[first : first + batch_size]
            batch = _batch(some + some[-1:] * (batch_size - len(some)), T, M)  # filled with copies of the last row
            nats = np.asarray(_nats(model, params, batch), np.float64)
            known |= zip(names[first : first + batch_size], nats.tolist())
    if not all(map(math.isfinite, known.values())):
        raise NonFiniteOutput('the model gives log-likelihoods that are not finite: its parameters are broken')
    nats = [np.array([known[ids.tobytes(), start] for ids, start in each]) for each in rows]
    tokens = [np.array([len(ids) for ids in each.continuations]) for each in prompts]
    return Likelihoods(nats, tokens, computed)


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
