"""Prompting, the method that moves nothing: rows put to a model as text, with demonstrations before them, and scored.

A row is rendered by one template that ends in its answer, such as '{query}\\nAnswer: {gold}'. The prompt is BEGIN once,
`shots` rows rendered whole, each followed by the separator, and the row up to its answer. Choices are compared by
their log-likelihood after the prompt, the raw sum and the sum per byte of the choice; without choices the answer
is generated, greedily, and must be equal. Adapters, soft prompts and heads are leaves that the model finds: they are
scored by the same function.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row, value_of
from lmtrain.errors import InputError
from lmtrain.inference import likelihood, sample
from lmtrain.inference.questions import Pool, Question, question, text_of
from lmtrain.models import virtual_tokens
from lmtrain.tree import Params


class Scores(NamedTuple):
    """`results` of all rows, and what was found for each: {'place', 'answer', 'right'}; of choices 'nats', a list of
    their log-likelihoods, and 'per_byte', whether the choice with the highest nats per byte is right; of generations
    'text' and 'finish_reason' (`sample.Generated`)."""

    results: dict[str, Any]
    rows: list[dict[str, Any]]


def score(
    model,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    *,
    template: str,
    answer: str,
    choices: str | Sequence[str] = (),
    shots: int = 0,
    demonstrations: Sequence[Row] = (),
    separator: str = '\n\n',
    seed: int = 0,
    max_tokens: int = 16,
    stop: Sequence[str] | None = None,
    end_ids: Sequence[int] = (),
    chat_template: Template | None = None,
    system: str = '',
    cut: bool = False,
    batch_size: int = 32,
    place: Callable = dict,
) -> Scores:
    """How many rows a model answers rightly.

    Args:
      rows: from `lmtrain.data.rows.read_rows`.
      template: the text of a row, `{field}` standing for a field of it; `{answer}` stands last, and once. '' (with
        answer='') for rows of conversations, whose last answer is asked for.
      answer: the field with the answer: its text, or if there are choices the index of the right one.
      choices: the texts that are compared; or the field that holds a row's own list of them; or again the field
        `answer`, then they are all the answers that `demonstrations` (without any, `rows`) have. () generates.
      shots: demonstrations before each row.
      demonstrations: what they are drawn from; without any, the rows, but never one with the scored row's text.
      seed: of the draws, which depend on it, on the row's text and on what can be drawn, and on no order.
      max_tokens, stop: a generation ends after so many tokens, or before the first of these texts in it: None is a
        newline, with a chat template no text. Blanks around it do not count.
      end_ids: tokens that end a generation beside the tokenizer's.
      chat_template: writes each row as a user's turn, demonstrations as turns before it; None leaves texts as they are.
      system: a text of the system for conversations that begin with none; '' is none.
      cut: a prompt that has no room even without demonstrations loses its beginning (all but BEGIN); False: an error.
      batch_size: prompts computed together. It changes no score beyond rounding.
      place: puts a batch (numpy columns) on devices, as `sharding.place`; the default leaves that to the compiler.

    A prompt that does not fit into `model.max_len` loses its first demonstrations, whole ones, until it does;
    `results['dropped']` says how many were lost in all, `results['cut']` how many prompts lost their beginning.

    Returns:
      Scores; `results` holds 'rows', 'shots', 'dropped', 'cut', and of choices 'accuracy', 'accuracy_per_byte' and
      'chance', else 'exact_match' and 'stopped' (with an end token). These are shares, with '<name>_stderr'
      sqrt(p (1 - p) / (rows - 1)), None for one row.

    Raises ValueError, before anything compiles, naming a row's place where a field is missing or a prompt does not fit
    without any demonstration; FloatingPointError where a log-likelihood is not finite.
    """
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot be prompted')
    if shots < 0 or batch_size < 1 or max_tokens < 1:
        raise InputError(f'shots={shots}, batch_size={batch_size}, max_tokens={max_tokens}: at least 0, 1 and 1')
    if stop is None:
        stop = () if chat_template else ('\n',)
    if isinstance(stop, str) or '' in stop:
        raise InputError(f'stop={stop!r}: it is a tuple of texts, none of them empty')
    if system and not chat_template:
        raise InputError('a system text needs a chat template: name one, or leave the system text out')
    if not rows:
        raise InputError('there is no row to score')
    chosen = {'template': template, 'answer': answer, 'choices': choices}
    if choices and choices == answer:
        drawn_from = demonstrations or rows
        chosen['choices'] = sorted({text_of(row, answer, value_of(row, answer, 'answer')) for row in drawn_from})
    asked = [question(row, **chosen) for row in rows]
    pool = Pool([question(row, **chosen) for row in demonstrations] or asked, shots, seed)
    room = model.max_len - virtual_tokens.num_virtual_tokens(virtual_tokens.materialise(params))
    how = (tokenizer, chat_template, system) if chat_template else (tokenizer, separator)
    if choices:
        encode = functools.partial(likelihood.choices_chat if chat_template else likelihood.choices, *how)
        prompts, lost = _fit(asked, pool, encode, room, cut)
        _check_known(asked, prompts, tokenizer, model.vocab_size)
        nats = likelihood.log_likelihoods(model, params, prompts, room, batch_size, place)
        found = _likeliest(asked, nats)
    else:
        encode = functools.partial(likelihood.begun_chat if chat_template else likelihood.begun, *how)
        prompts, lost = _fit(asked, pool, encode, room + 1 - max_tokens, cut)
        _check_known(asked, prompts, tokenizer, model.vocab_size)
        greedy = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'max_tokens': max_tokens}
        known = {'end_ids': list(dict.fromkeys([tokenizer.end_id, *end_ids])), 'vocab_size': tokenizer.vocab_size}
        known |= {'absent': tokenizer.absent}
        texts = sample.generate(model, params, [ids.tolist() for ((ids, _),) in prompts], **greedy, **known)
        found = _equal(asked, texts, tokenizer, stop)
    named = {'accuracy': 'right', 'accuracy_per_byte': 'per_byte'} if choices else {'exact_match': 'right'}
    results = {'rows': len(asked), 'shots': shots} | lost
    for name, column in named.items():
        results |= share(name, [row[column] for row in found])
    if choices:
        results['chance'] = sum(1 / len(q.choices) for q in asked) / len(asked)
    else:
        results |= share('stopped', [row['finish_reason'] == 'stop' for row in found])
    return Scores(results, found)


def line(results: dict[str, Any]) -> str:
    """The results for a person."""
    said = []
    for name in ('accuracy', 'accuracy_per_byte', 'exact_match'):
        if name in results:
            error = results[f'{name}_stderr']
            margin = '' if error is None else f' +- {100 * error:.1f}'
            said.append(f'{name.replace("_", " ")} {100 * results[name]:.1f}{margin} %')
    if 'stopped' in results:
        said.append(f'ended with an end token {100 * results["stopped"]:.1f} %')
    if 'chance' in results:
        said.append(f'chance {100 * results["chance"]:.1f} %')
    about = [f'{results["rows"]:,} rows, {results["shots"]} shots']
    if results['dropped']:
        about.append(f'{results["dropped"]:,} demonstrations left out for want of room')
    if results['cut']:
        about.append(f'{results["cut"]:,} prompts without their beginning for want of room')
    return f'{", ".join(said)}  ({", ".join(about)})'


def share(name: str, hits: Sequence[bool]) -> dict[str, float | None]:
    """{name: the share of hits, '<name>_stderr': its standard error}."""
    n, p = len(hits), sum(map(bool, hits)) / len(hits)
    return {name: p, f'{name}_stderr': math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None}


def _fit(questions: Sequence[Question], pool: Pool, encode: Callable, room: int, cut: bool):
    """(the encodings of every question's prompt, at most `room` tokens to be read; how many were 'dropped', 'cut')."""
    prompts, lost = [], {'dropped': 0, 'cut': 0}
    for asked in questions:
        drawn = pool.draw(asked)
        while True:
            encoded = encode(asked, drawn)
            longest = max(len(ids) - (len(ids) > start) for ids, start in encoded)  # the last token of all is not read
            if longest <= room:
                break
            if drawn:
                drawn = drawn[1:]
                lost['dropped'] += 1
                continue
            over = longest - room
            if not cut or over >= min(start for _, start in encoded):
                raise InputError(
                    f'{asked.place}: the prompt has {longest} tokens even without demonstrations, and the model '
                    f'has room for {max(room, 0)}: leave the row out, take a model with a longer context, or have '
                    'such prompts lose their beginning (cut=True)'
                )
            encoded = [(np.delete(ids, slice(1, 1 + over)), start - over) for ids, start in encoded]
            lost['cut'] += 1
            break
        prompts.append(encoded)
    return prompts, lost


def _check_known(questions: Sequence[Question], prompts, tokenizer: Tokenizer, size: int) -> None:
    """Raises ValueError if a prompt needs a token that has no row in an embedding of `size` rows."""
    for asked, encoded in zip(questions, prompts, strict=True):
        largest = max(int(ids.max()) for ids, _ in encoded)
        if largest >= size:
            token = tokenizer.specials.get(largest) or tokenizer.decode([largest])
            raise InputError(f'{asked.place}: it needs {token!r}, id {largest}, and the model knows {size} tokens')


def _likeliest(questions: Sequence[Question], nats: Sequence[list[float]]) -> list[dict[str, Any]]:
    found = []
    for asked, own in zip(questions, nats, strict=True):
        per_byte = [value / len(choice.encode()) for value, choice in zip(own, asked.choices, strict=True)]
        best, best_per_byte = (asked.choices[int(np.argmax(values))] for values in (own, per_byte))
        right = {'right': best == asked.answer, 'per_byte': best_per_byte == asked.answer}
        found.append({'place': asked.place, 'answer': asked.answer, 'nats': own} | right)
    return found


def _equal(
    questions: Sequence[Question], generated: Sequence[sample.Generated], tokenizer: Tokenizer, stop: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for asked, (ids, reason) in zip(questions, generated, strict=True):
        text = tokenizer.decode_bytes(ids).decode('utf-8', 'replace').lstrip()
        text = text[: min((at for at in map(text.find, stop) if at >= 0), default=None)].rstrip()
        right = text == asked.answer.strip()
        row = {'place': asked.place, 'answer': asked.answer, 'text': text, 'right': right}
        rows.append(row | {'finish_reason': reason})
    return rows
