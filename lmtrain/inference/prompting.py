"""Prompting: scores rows by a model's answers to text prompts with demonstrations; no parameter is trained.

A row is rendered by one template that ends in its answer, such as '{query}\\nAnswer: {gold}'. The prompt is BEGIN once,
`shots` rendered rows, each followed by the separator, and the row up to its answer. Choices are compared by their
log-likelihood after the prompt, summed and summed per byte of the choice. Without choices the answer is generated
greedily and compared as text. Adapters, soft prompts and heads are leaves of the parameters, so the same function
scores them.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row, value_of
from lmtrain.errors import InputError
from lmtrain.inference import likelihood, sample
from lmtrain.inference.demonstrations import ALL, embeddings, most_that_fit, select
from lmtrain.inference.questions import Question, question, text_of
from lmtrain.models import virtual_tokens
from lmtrain.tree import Params


class PromptSettings(NamedTuple):
    """How rows become prompts, and how answers are compared.

    Attributes:
      template: text of a row, with `{field}` for its fields; `{answer}` comes last, and once. '' (with answer='') for
        rows of conversations, whose last answer is compared.
      answer: field of the answer: its text, or with choices the index of the right one.
      choices: texts that are compared; or the field with each row's own list of them; or the field `answer`, for all
        answers of the demonstrations (without any, of the rows). () generates.
      shots: demonstrations before each row; -1 is as many as fit into the context.
      select: how they are selected, one of `demonstrations.SELECTORS`.
      separator: text after each demonstration.
      seed: of the draws of demonstrations, which also depend on the row's text and on the pool, but not on any order.
      max_tokens, stop: a generation ends after so many tokens, or before the first of these texts in it. None is a
        newline, with a chat template no text. Whitespace around the generation is removed.
      chat_template: renders each row as a turn of the user, after demonstrations as turns; None leaves texts unchanged.
      system: system text for conversations that begin with none; '' is none.
      cut: a prompt that is too long even without demonstrations loses its beginning (except BEGIN); False: an error.
      batch_size: prompts computed together; it changes no score beyond rounding.
    """

    template: str
    answer: str
    choices: str | Sequence[str] = ()
    shots: int = 0
    select: str = 'random'
    separator: str = '\n\n'
    seed: int = 0
    max_tokens: int = 16
    stop: Sequence[str] | None = None
    chat_template: Template | None = None
    system: str = ''
    cut: bool = False
    batch_size: int = 32


class Scores(NamedTuple):
    """`results` of all rows, and for each row {'place', 'answer', 'right'}; of choices also 'nats', the list of their
    log-likelihoods, and 'per_byte', whether the choice with the most nats per byte is right; of generations also 'text'
    and 'finish_reason' (`sample.Generated`)."""

    results: dict[str, Any]
    rows: list[dict[str, Any]]


def score(
    model,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    settings: PromptSettings,
    *,
    demonstrations: Sequence[Row] = (),
    end_ids: Sequence[int] = (),
    place: Callable = dict,
) -> Scores:
    """How many rows a model answers correctly.

    Args:
      rows: from `lmtrain.data.rows.read_rows`.
      demonstrations: rows from which demonstrations are drawn; without any, `rows`, but never one with the scored row's
        text.
      end_ids: tokens that end a generation beside the tokenizer's.
      place: puts a batch (numpy columns) on devices, such as `sharding.place`; the default leaves that to the compiler.

    A prompt that is longer than `model.max_len` loses its first demonstrations until it fits; `results['dropped']` is
    the number of all demonstrations lost, `results['shots_mean']` the mean number that a prompt has, `results['cut']`
    the number of prompts without their beginning.

    Returns:
      Scores; `results` holds 'rows', 'shots', 'shots_mean', 'dropped', 'cut', and of choices 'accuracy',
      'accuracy_per_byte' and 'chance', else 'exact_match' and 'stopped' (with an end token). These are fractions, with
      '<name>_stderr' sqrt(p (1 - p) / (rows - 1)), None for one row.

    Raises:
      InputError: before anything compiles, with the place of the row, if a field is missing or a prompt without
        demonstrations is too long.
      NonFiniteOutput: a log-likelihood is not finite.
    """
    _check(model, rows, settings)
    form = {'template': settings.template, 'answer': settings.answer, 'choices': settings.choices}
    if settings.choices and settings.choices == settings.answer:
        form['choices'] = _classes(demonstrations or rows, settings.answer)
    questions = [question(row, **form) for row in rows]
    pool = [question(row, **form) for row in demonstrations] or questions
    embed = functools.partial(embeddings, model, params, tokenizer, batch_size=settings.batch_size)
    drawn = select(questions, pool, settings.shots, settings.select, seed=settings.seed, embed=embed)
    compare = _compare_choices if settings.choices else _compare_generations
    answers, lost = compare(model, params, tokenizer, questions, drawn, settings, end_ids=end_ids, place=place)

    results = {'rows': len(questions), 'shots': settings.shots} | lost
    names = {'accuracy': 'right', 'accuracy_per_byte': 'per_byte'} if settings.choices else {'exact_match': 'right'}
    for name, column in names.items():
        results |= proportion(name, [row[column] for row in answers])
    if settings.choices:
        results['chance'] = sum(1 / len(q.choices) for q in questions) / len(questions)
    else:
        results |= proportion('stopped', [row['finish_reason'] == 'stop' for row in answers])
    return Scores(results, answers)


def _check(model, rows: Sequence[Row], settings: PromptSettings) -> None:
    """InputError: the model cannot be prompted, there is no row, or a setting is out of range."""
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot be prompted')
    shots, batch_size, max_tokens, stop = settings.shots, settings.batch_size, settings.max_tokens, settings.stop
    if shots < ALL or batch_size < 1 or max_tokens < 1:
        raise InputError(f'shots={shots}, batch_size={batch_size}, max_tokens={max_tokens}: at least -1, 1 and 1')
    if stop is not None and (isinstance(stop, str) or '' in stop):
        raise InputError(f'stop={stop!r}: it is a tuple of texts, none of them empty')
    if settings.system and not settings.chat_template:
        raise InputError('a system text needs a chat template: name one, or omit the system text')
    if not rows:
        raise InputError('there is no row to score')


def _classes(rows: Sequence[Row], answer: str) -> list[str]:
    """All answers of the rows."""
    return sorted({text_of(row, answer, value_of(row, answer, 'answer')) for row in rows})


def _compare_choices(model, params, tokenizer, questions, drawn, settings: PromptSettings, *, end_ids, place):
    """(what `Scores.rows` holds of choices, what prompts lost)."""
    encode = likelihood.choices_chat if settings.chat_template else likelihood.choices
    encode = functools.partial(encode, tokenizer, *_rendering(settings))
    context = model.max_len - _num_virtual_tokens(params)
    prompts, lost = _fit(questions, drawn, encode, context, settings.cut)
    _check_ids(questions, prompts, tokenizer, model.vocab_size)
    nats = likelihood.log_likelihoods(model, params, prompts, context, settings.batch_size, place)
    return _most_likely(questions, nats), lost


def _compare_generations(model, params, tokenizer, questions, drawn, settings: PromptSettings, *, end_ids, place):
    """(what `Scores.rows` holds of generations, what prompts lost)."""
    encode = likelihood.prompt_chat if settings.chat_template else likelihood.prompt
    encode = functools.partial(encode, tokenizer, *_rendering(settings))
    context = model.max_len - _num_virtual_tokens(params)
    prompts, lost = _fit(questions, drawn, encode, context + 1 - settings.max_tokens, settings.cut)
    _check_ids(questions, prompts, tokenizer, model.vocab_size)
    generated = sample.generate(
        model,
        params,
        [ids.tolist() for ((ids, _),) in prompts],
        max_tokens=settings.max_tokens,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        end_ids=list(dict.fromkeys([tokenizer.end_id, *end_ids])),
        vocab_size=tokenizer.vocab_size,
        absent=tokenizer.absent,
    )
    stop = (() if settings.chat_template else ('\n',)) if settings.stop is None else settings.stop
    return _exact_matches(questions, generated, tokenizer, stop), lost


def _rendering(settings: PromptSettings) -> tuple:
    """The arguments of likelihood's functions that render a question."""
    return (settings.chat_template, settings.system) if settings.chat_template else (settings.separator,)


def _num_virtual_tokens(params: Params) -> int:
    return virtual_tokens.num_virtual_tokens(virtual_tokens.materialise(params))


def line(results: dict[str, Any]) -> str:
    """The results as a line of text."""
    parts = []
    for name in ('accuracy', 'accuracy_per_byte', 'exact_match'):
        if name in results:
            error = results[f'{name}_stderr']
            margin = '' if error is None else f' +- {100 * error:.1f}'
            parts.append(f'{name.replace("_", " ")} {100 * results[name]:.1f}{margin} %')
    if 'stopped' in results:
        parts.append(f'ended with an end token {100 * results["stopped"]:.1f} %')
    if 'chance' in results:
        parts.append(f'chance {100 * results["chance"]:.1f} %')
    number = f'{results["shots_mean"]:.1f}' if results['shots'] == ALL else results['shots']
    counts = [f'{results["rows"]:,} rows, {number} shots']
    if results['dropped']:
        counts.append(f'{results["dropped"]:,} demonstrations dropped to fit the context')
    if results['cut']:
        counts.append(f'{results["cut"]:,} prompts without their beginning to fit the context')
    return f'{", ".join(parts)}  ({", ".join(counts)})'


def proportion(name: str, hits: Sequence[bool]) -> dict[str, float | None]:
    """{name: the proportion of hits, '<name>_stderr': its standard error}.

    >>> proportion('accuracy', [True, False, True, True, False])['accuracy']
    0.6
    """
    n, p = len(hits), sum(map(bool, hits)) / len(hits)
    return {name: p, f'{name}_stderr': math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None}


def _fit(questions: Sequence[Question], demonstrations: Iterable, encode: Callable, context: int, cut: bool):
    """(the encodings of every question's prompt, at most `context` tokens to read; how many were 'dropped', 'cut')."""
    prompts, lost = [], {'shots_mean': 0.0, 'dropped': 0, 'cut': 0}

    def length(encoded) -> int:
        return max(len(ids) - (len(ids) > start) for ids, start in encoded)  # the last token of all is not read

    for scored, drawn in zip(questions, demonstrations, strict=True):
        # A prompt holds no more demonstrations than before one of its choices alone.
        one = scored._replace(choices=(max(scored.choices, key=len),) if scored.choices else ())
        most = most_that_fit(drawn, lambda some, one=one: length(encode(one, some)) <= context)
        lost['dropped'] += len(drawn) - most
        drawn = drawn[len(drawn) - most :]
        while True:
            encoded = encode(scored, drawn)
            longest = length(encoded)
            if longest <= context:
                break
            if drawn:
                drawn = drawn[1:]
                lost['dropped'] += 1
                continue
            over = longest - context
            if not cut or over >= min(start for _, start in encoded):
                raise InputError(
                    f'{scored.place}: the prompt has {longest} tokens even without demonstrations, and the model '
                    f'has room for {max(context, 0)}: omit the row, use a model with a longer context, or remove '
                    'the beginning of such prompts (cut=True)'
                )
            encoded = [(np.delete(ids, slice(1, 1 + over)), start - over) for ids, start in encoded]
            lost['cut'] += 1
            break
        prompts.append(encoded)
        lost['shots_mean'] += len(drawn) / len(questions)
    return prompts, lost


def _check_ids(questions: Sequence[Question], prompts, tokenizer: Tokenizer, size: int) -> None:
    """InputError: a prompt has a token without a row in an embedding of `size` rows."""
    for scored, encoded in zip(questions, prompts, strict=True):
        largest = max(int(ids.max()) for ids, _ in encoded)
        if largest >= size:
            token = tokenizer.specials.get(largest) or tokenizer.decode([largest])
            raise InputError(f'{scored.place}: it needs {token!r}, id {largest}, and the model has {size} tokens')


def _most_likely(questions: Sequence[Question], nats: Sequence[list[float]]) -> list[dict[str, Any]]:
    rows = []
    for scored, own in zip(questions, nats, strict=True):
        per_byte = [value / len(choice.encode()) for value, choice in zip(own, scored.choices, strict=True)]
        best, best_per_byte = (scored.choices[int(np.argmax(values))] for values in (own, per_byte))
        right = {'right': best == scored.answer, 'per_byte': best_per_byte == scored.answer}
        rows.append({'place': scored.place, 'answer': scored.answer, 'nats': own} | right)
    return rows


def _exact_matches(
    questions: Sequence[Question], generated: Sequence[sample.Generated], tokenizer: Tokenizer, stop: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for scored, (ids, reason) in zip(questions, generated, strict=True):
        text = tokenizer.decode_bytes(ids).decode('utf-8', 'replace').lstrip()
        text = text[: min((at for at in map(text.find, stop) if at >= 0), default=None)].rstrip()
        right = text == scored.answer.strip()
        row = {'place': scored.place, 'answer': scored.answer, 'text': text, 'right': right}
        rows.append(row | {'finish_reason': reason})
    return rows
