"""Prompting: scores rows by a model's answers to text prompts with demonstrations; no parameter is trained.

A row is rendered by one template that ends in its answer, such as '{query}\\nAnswer: {gold}'. The prompt is BEGIN once,
an instruction, `shots` rendered rows, each followed by the separator, and the row up to its answer. Choices are
compared by their log-likelihood after the prompt: summed, per token, and per byte of the choice. Without choices the
answer is generated greedily and compared as text. Adapters, soft prompts and heads are leaves of the parameters, so the
same function scores them.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference import calibration, likelihood, rendering, sample
from lmtrain.inference.demonstrations import ALL, embeddings, most_that_fit, select
from lmtrain.inference.likelihood import TokenPrompt
from lmtrain.inference.questions import Question, ask
from lmtrain.models.virtual_tokens import room
from lmtrain.tree import Params

# {accuracy of choices: the column of `Scores.rows` with its hits}
ACCURACIES = {f'accuracy{kind}': f'right{kind}' for kind in ('', '_per_token', '_per_byte', '_calibrated')}


class PromptSettings(NamedTuple):
    """How rows become prompts, and how answers are compared.

    Attributes:
      template: text of a row, with `{field}` for its fields; `{answer}` comes last, and once. '' (with answer='') for
        rows of conversations, whose last answer is compared.
      answer: field of the answer: its text, or with choices the index of the right one, unless all rows share choices
        that are numbers.
      choices: texts that are compared; or the field with each row's own list of them; or the field `answer`, for all
        answers of the demonstrations (without any, of the rows). () generates.
      shots: demonstrations before each row; -1 is as many as fit into the context.
      select: how they are selected, one of `demonstrations.SELECTORS`.
      instruction: text before the demonstrations, '' is none; with a chat template the system message.
      separator: text after the instruction and after each demonstration.
      seed: of the draws of demonstrations, which also depend on the row's text and on the pool, but not on any order.
      max_tokens, stop: a generation ends after so many tokens, or before the first of these texts in it. None is a
        newline, with a chat template no text. Whitespace around the generation is removed.
      chat_template: renders each row as a turn of the user, after demonstrations as turns; None leaves texts unchanged.
      system: system text for conversations that begin with none; '' is none.
      calibrated: content-free inputs, such as `calibration.CONTENT_FREE`, for a second score of choices that is
        divided by the answers' probabilities after these inputs (`calibration`); () is off.
      cut: a prompt that is too long even without demonstrations loses its beginning (except BEGIN); False: an error.
      batch_size: prompts computed together; it changes no score beyond rounding.
    """

    template: str
    answer: str
    choices: str | Sequence[str] = ()
    shots: int = 0
    select: str = 'random'
    instruction: str = ''
    separator: str = '\n\n'
    seed: int = 0
    max_tokens: int = 16
    stop: Sequence[str] | None = None
    chat_template: Template | None = None
    system: str = ''
    calibrated: Sequence[str] = ()
    cut: bool = False
    batch_size: int = 32


class Scores(NamedTuple):
    """What `score` returns.

    Attributes:
      results: of all rows; see `score`.
      rows: for each row {'place', 'answer', 'predicted', 'right'}. Of choices also 'nats' and 'tokens', lists with the
        log-likelihood and the number of tokens of each choice, and 'right_per_token' and 'right_per_byte', whether the
        choice with the most nats per token, or per byte of UTF-8, is right; with `calibrated` also 'calibrated_nats'
        and 'right_calibrated' (`calibration.calibrate`). Of generations also 'finish_reason'
        (`sample.Generated`).
    """

    results: dict[str, Any]
    rows: list[dict[str, Any]]


class ChoiceScores(NamedTuple):
    """What `score_choices` returns, in the order of the questions and of their choices.

    Attributes:
      nats, tokens, computed_tokens: see `likelihood.Likelihoods`.
      shots_mean: mean number of demonstrations of a prompt.
      prompt_tokens: mean number of tokens of a prompt, without the answer.
      dropped: number of demonstrations, of all questions together, that did not fit into the context.
      cut: number of prompts without their beginning, because they do not fit even without demonstrations.
    """

    nats: list[np.ndarray]
    tokens: list[np.ndarray]
    computed_tokens: int
    shots_mean: float
    prompt_tokens: float
    dropped: int
    cut: int


def score(
    model,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    settings: PromptSettings,
    *,
    demonstrations: Sequence[Row] = (),
    end_ids: Sequence[int] = (),
    vectors: Mapping[str, np.ndarray] = {},
) -> Scores:
    """How many rows a model answers correctly.

    Args:
      rows: from `lmtrain.data.rows.read_rows`.
      demonstrations: rows from which demonstrations are drawn; without any, `rows`, but never one with the scored row's
        text.
      end_ids: tokens that end a generation beside the tokenizer's.
      vectors: of select='nearest', known embeddings of demonstrations (`demonstrations.embedded`).

    A prompt that is longer than `model.max_len` loses its first demonstrations (select='fixed': its last) until it
    fits; `results['dropped']` is the number of all demonstrations lost, `results['shots_mean']` the mean number that a
    prompt has, `results['cut']` the number of prompts without their beginning.

    Returns:
      Scores; `results` holds 'rows', 'shots', 'shots_mean', 'dropped', 'cut'; of choices 'accuracy',
      'accuracy_per_token' and 'accuracy_per_byte' (the choice with the most nats, nats per token, nats per byte is
      right), with `calibrated` 'accuracy_calibrated', 'chance' and 'computed_tokens' (`likelihood.Likelihoods`); else
      'exact_match' and 'stopped' (with an end token). Accuracies, 'exact_match' and 'stopped' are fractions, with
      '<name>_stderr' sqrt(p (1 - p) / (rows - 1)), None for one row.
      With select='nearest' also 'embedded_tokens', those of the rows and demonstrations without known `vectors`.
      What else decides the last digits is also recorded: 'engine' ('lmtrain'), 'dtype', 'attention' (the kernel) and
      'batch_size'.

    Raises:
      InputError: before anything compiles, with the place of the row, if a field is missing or a prompt without
        demonstrations is too long.
      NonFiniteOutput: a log-likelihood is not finite.
    """
    _check(model, rows, settings)
    questions, pool = ask(rows, settings, demonstrations)
    drawn, counts = _demonstrations(model, params, tokenizer, questions, pool or questions, settings, vectors)
    results = {'rows': len(questions), 'shots': settings.shots} | counts
    if settings.choices:
        drawn = list(drawn) if settings.calibrated else drawn
        scores = score_choices(model, params, tokenizer, questions, drawn, settings)
        answers = [_compared(*each) for each in zip(questions, scores.nats, scores.tokens, strict=True)]
        results |= {name: value for name, value in scores._asdict().items() if name not in ('nats', 'tokens')}
        if settings.calibrated:
            results['computed_tokens'] += _calibrate(model, params, tokenizer, questions, drawn, settings, answers)
        for name, column in ACCURACIES.items():
            if column in answers[0]:
                results |= proportion(name, [row[column] for row in answers])
        results['chance'] = sum(1 / len(q.choices) for q in questions) / len(questions)
    else:
        answers, lost = _generate(model, params, tokenizer, questions, drawn, settings, end_ids)
        results |= lost | proportion('exact_match', [row['right'] for row in answers])
        results |= proportion('stopped', [row['finish_reason'] == 'stop' for row in answers])
    return Scores(results | engine(model, settings.batch_size), answers)


def engine(model, batch_size: int) -> dict[str, Any]:
    """What decides the last digits of a score, to be recorded with it."""
    return {'engine': 'lmtrain', 'dtype': model.dtype, 'attention': 'xla', 'batch_size': batch_size}


def score_choices(
    model,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    demonstrations: Iterable[Sequence[Question]],
    settings: PromptSettings,
) -> ChoiceScores:
    """The log-likelihood of every choice of every question in nats, after its own demonstrations.

    A question's prompt is encoded once for all of its choices, and the beginning that prompts have in common, such as
    the same demonstrations, once for all questions.

    Args:
      questions: with choices, which may differ in number and length.
      demonstrations: for each question those before it, in their order.
      settings: of these are read `instruction`, `separator`, `chat_template`, `system`, `select`, `cut` and
        `batch_size`.

    A prompt that is longer than `model.max_len` loses its first demonstrations (select='fixed': its last) until it
    fits.

    Raises:
      InputError: before anything compiles, with the place of the question, if a prompt without demonstrations is too
        long, or a choice adds no token to the prompt.
      NonFiniteOutput: a log-likelihood is not finite.
    """
    encode = _rendering(tokenizer, settings, rendering.choices, rendering.choices_chat)
    context = room(model, params)
    prompts, lost = _fit(questions, demonstrations, encode, context, settings)
    _check_ids(questions, prompts, tokenizer, model.vocab_size)
    values = likelihood.log_likelihoods(model, params, prompts, settings.batch_size)
    return ChoiceScores(values.nats, values.tokens, values.computed_tokens, **lost)


def _check(model, rows: Sequence[Row], settings: PromptSettings) -> None:
    """InputError: the model cannot be prompted, there is no row, or a setting is out of range."""
    if not model.causal:
        raise InputError('a masked language model (model.causal=False) fills gaps; it cannot be prompted')
    if model.head != 'lm':
        raise InputError(f'a model with model.head={model.head!r} has no language-model head; it cannot be prompted')
    shots, batch_size, max_tokens, stop = settings.shots, settings.batch_size, settings.max_tokens, settings.stop
    if shots < ALL or batch_size < 1 or max_tokens < 1:
        raise InputError(f'shots={shots}, batch_size={batch_size}, max_tokens={max_tokens}: at least -1, 1 and 1')
    if stop is not None and (isinstance(stop, str) or '' in stop):
        raise InputError(f'stop={stop!r}: it is a tuple of texts, none of them empty')
    if settings.system and not settings.chat_template:
        raise InputError('a system text needs a chat template: name one, or omit the system text')
    if settings.system and settings.instruction:
        raise InputError('with a chat template the instruction is the system text, and both are set: set one')
    if settings.calibrated and not settings.choices:
        raise InputError('calibration compares choices: name them, or set calibrated=()')
    if not rows:
        raise InputError('there is no row to score')


def _demonstrations(model, params, tokenizer, questions, pool, settings: PromptSettings, vectors):
    """(the demonstrations of each question, {'embedded_tokens'} if they are selected by embeddings)."""
    counts = {}

    def embed(texts: Sequence[str]) -> np.ndarray:
        counts['embedded_tokens'] = sum(map(len, tokenizer.encode_batch(texts)))
        return embeddings(model, params, tokenizer, texts, settings.batch_size)

    options = {'seed': settings.seed, 'embed': embed, 'vectors': vectors}
    return select(questions, pool, settings.shots, settings.select, **options), counts


def _generate(model, params, tokenizer, questions, demonstrations, settings: PromptSettings, end_ids):
    """(what `Scores.rows` holds of generations, what prompts lost)."""
    encode = _rendering(tokenizer, settings, rendering.prompt, rendering.prompt_chat)
    context = room(model, params)
    prompts, lost = _fit(questions, demonstrations, encode, context + 1 - settings.max_tokens, settings)
    _check_ids(questions, prompts, tokenizer, model.vocab_size)
    generated = sample.generate(
        model,
        params,
        [each.context_ids.tolist() for each in prompts],
        max_tokens=settings.max_tokens,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        end_ids=list(dict.fromkeys([tokenizer.end_id, *end_ids])),
        vocab_size=tokenizer.vocab_size,
        absent=tokenizer.absent,
        batch_size=settings.batch_size,
    )
    stop = (() if settings.chat_template else ('\n',)) if settings.stop is None else settings.stop
    return _exact_matches(questions, generated, tokenizer, stop), lost


def _rendering(tokenizer: Tokenizer, settings: PromptSettings, of_text: Callable, of_chat: Callable) -> Callable:
    """(question, its demonstrations) -> TokenPrompt, by one of two functions of `rendering`."""
    if settings.chat_template:
        return functools.partial(of_chat, tokenizer, settings.chat_template, settings.system or settings.instruction)
    return functools.partial(of_text, tokenizer, settings.separator, instruction=settings.instruction)


def line(results: dict[str, Any]) -> str:
    """The results as a line of text."""
    parts = []
    for name in (*ACCURACIES, 'exact_match'):
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


def _fit(questions: Sequence[Question], demonstrations: Iterable, encode: Callable, context: int, settings):
    """(the prompt of every question, at most `context` tokens to read; how many were 'dropped', 'cut')."""
    keeps_first = settings.select == 'fixed'  # long prompts too share the beginning of the draw
    prompts, lost, too_long = [], {'dropped': 0, 'cut': 0}, []
    shots = guess = 0

    def length(prompt: TokenPrompt) -> int:
        longest = max(map(len, prompt.continuations), default=1)
        return len(prompt.context_ids) + longest - 1  # the last token is not read

    for scored, drawn in zip(questions, demonstrations, strict=True):
        # A prompt holds no more demonstrations than before one of its choices alone.
        one = scored._replace(choices=(max(scored.choices, key=len),) if scored.choices else ())
        backwards = drawn[::-1] if keeps_first else drawn

        def fits(some, one=one):
            return length(encode(one, some[::-1] if keeps_first else some)) <= context

        most = guess = most_that_fit(backwards, fits, guess=guess)
        lost['dropped'] += len(drawn) - most
        drawn = drawn[:most] if keeps_first else drawn[len(drawn) - most :]
        while True:
            prompt = encode(scored, drawn)
            longest = length(prompt)
            if longest <= context:
                break
            if drawn:
                drawn = drawn[:-1] if keeps_first else drawn[1:]
                lost['dropped'] += 1
                continue
            over = longest - context
            if not settings.cut or over >= len(prompt.context_ids):
                too_long.append((scored.place, longest))
                break
            prompt = prompt._replace(context_ids=np.delete(prompt.context_ids, slice(1, 1 + over)))
            lost['cut'] += 1
            break
        prompts.append(prompt)
        shots += len(drawn)
    if too_long:
        place, longest = too_long[0]
        others = f' (the first of {len(too_long):,} such rows of {len(questions):,})' if len(too_long) > 1 else ''
        raise InputError(
            f'{place}: the prompt has {longest} tokens even without demonstrations, and the model has room for '
            f'{max(context, 0)}{others}: omit the row, use a model with a longer context, or remove the beginning of '
            'such prompts (cut=True)'
        )
    tokens = sum(len(prompt.context_ids) for prompt in prompts)
    return prompts, lost | {'shots_mean': shots / len(questions), 'prompt_tokens': tokens / len(questions)}


def _check_ids(questions: Sequence[Question], prompts: Sequence[TokenPrompt], tokenizer: Tokenizer, size: int) -> None:
    """InputError: a prompt has a token without a row in an embedding of `size` rows."""
    for scored, prompt in zip(questions, prompts, strict=True):
        largest = max(int(ids.max()) for ids in (prompt.context_ids, *prompt.continuations))
        if largest >= size:
            token = tokenizer.specials.get(largest) or tokenizer.decode([largest])
            raise InputError(f'{scored.place}: it needs {token!r}, id {largest}, and the model has {size} tokens')


def _compared(scored: Question, nats: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """What `Scores.rows` holds of a question with choices."""
    num_bytes = [len(choice.encode()) for choice in scored.choices]
    best, *others = (scored.choices[int(np.argmax(each))] for each in (nats, nats / tokens, nats / num_bytes))
    row = {'place': scored.place, 'answer': scored.answer, 'predicted': best, 'right': best == scored.answer}
    row |= zip(('right_per_token', 'right_per_byte'), (choice == scored.answer for choice in others), strict=True)
    return row | {'nats': nats.tolist(), 'tokens': tokens.tolist()}


def _calibrate(model, params, tokenizer, questions, demonstrations, settings: PromptSettings, answers) -> int:
    """Adds 'calibrated_nats' and 'right_calibrated' to the rows; returns the number of computed tokens."""
    texts = settings.calibrated
    free = [calibration.content_free(each, settings.template, text) for each in questions for text in texts]
    repeated = (drawn for drawn in demonstrations for _ in texts)
    scores = score_choices(model, params, tokenizer, free, repeated, settings)
    for number, (scored, row) in enumerate(zip(questions, answers, strict=True)):
        own = scores.nats[number * len(texts) : (number + 1) * len(texts)]
        nats = calibration.calibrate(np.array(row['nats']), own)
        right = scored.choices[int(np.argmax(nats))] == scored.answer
        row |= {'calibrated_nats': nats.tolist(), 'right_calibrated': right}
    return scores.computed_tokens


def _exact_matches(
    questions: Sequence[Question], generated: Sequence[sample.Generated], tokenizer: Tokenizer, stop: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for scored, (ids, reason) in zip(questions, generated, strict=True):
        text = tokenizer.decode_bytes(ids).decode('utf-8', 'replace').lstrip()
        text = text[: min((at for at in map(text.find, stop) if at >= 0), default=None)].rstrip()
        right = text == scored.answer.strip()
        row = {'place': scored.place, 'answer': scored.answer, 'predicted': text, 'right': right}
        rows.append(row | {'finish_reason': reason})
    return rows
