"""What is measured of a finished trial beside its test: later blocks of rows, latency, tokens and costs of a query."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmtrain.compare import choice_scores, predictors
from lmtrain.compare.predictors import Predict
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.cost import memory
from lmtrain.cost.flops import forward_flops
from lmtrain.cost.ledger import NOTHING, Prices, Spent
from lmtrain.cost.query import Query
from lmtrain.data import Tokenizer
from lmtrain.data.rows import Row
from lmtrain.inference import batches, likelihood, rendering
from lmtrain.inference.calibration import CONTENT_FREE
from lmtrain.inference.demonstrations import SHARED
from lmtrain.inference.latency import query_seconds
from lmtrain.inference.likelihood import common_length
from lmtrain.inference.prompting import PromptSettings
from lmtrain.inference.questions import ask
from lmtrain.training.load import LoadedModel

SAMPLED = 64  # rows whose tokens are counted
KEPT_FOR = 8  # rows by which the beginning is found that all prompts share


def blocks(
    comparison: Comparison, trial: Trial, predict: Predict, scored: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """{'seed', 'begin', 'end', 'nats'} of the rows that the trial's subset lacks of the next larger one.

    They are rows of the training set, which the trial has not seen. A trial of size 0 scores all blocks of all seeds.

    Args:
      scored: blocks that the trial has scored before.
    """
    lines, before = [], {(block['seed'], block['begin'], block['end']): block for block in scored}
    for seed, begin, end in comparison.spans(trial):
        if (seed, begin, end) in before:
            lines.append(before[seed, begin, end])
            continue
        rows = comparison.subset(end, seed)[begin:]
        nats = choice_scores.score(predict(rows), rows, comparison.task.classes).nats
        lines.append({'seed': seed, 'begin': begin, 'end': end, 'nats': float(nats.sum())})
    return lines


def latencies(comparison: Comparison, predict: Predict, form: PromptSettings | None = None) -> dict[str, float]:
    """{'query_seconds', 'query_seconds_cached'}: of one query on a compiled program, batch 1.

    The second is that of a query whose shared tokens (instruction, demonstrations, the beginning of a chat template)
    are in the cache, where other queries left them; without shared tokens it is the first.

    Args:
      form: of a prompt; None of a head.
    """
    query, *others = comparison.task.selection
    seconds = cached = query_seconds(predict, [[query]])
    if has_shared_tokens(form):
        with likelihood.kept_beginnings():
            predict(others[:KEPT_FOR])
            cached = query_seconds(predict, [[query]])
    return {'query_seconds': seconds, 'query_seconds_cached': cached}


def has_shared_tokens(form: PromptSettings | None) -> bool:
    """Whether all queries may begin alike: instruction, demonstrations, or what a chat template writes first."""
    if form is None:
        return False
    return bool(form.instruction) or form.chat_template is not None or (form.select in SHARED and form.shots != 0)


def embedding_seconds(comparison: Comparison, form: PromptSettings) -> float:
    """Seconds until a new row can be retrieved: those of its embedding, on a compiled program."""
    rows = comparison.task.selection[:1]
    if form.select != 'nearest' or not form.shots:
        return 0.0
    return query_seconds(lambda row: predictors.pool_vectors(comparison.model, row, form), [rows])


def prices(comparison: Comparison) -> Prices:
    """Those of the config."""
    compare = comparison.config.compare
    return Prices(compare.device_hour, compare.kwh, compare.watts)


def query_of_head(comparison: Comparison, loaded: LoadedModel, seq_len: int) -> Query:
    """The tokens of a query that a head answers, at most `seq_len`."""
    examples, _ = predictors.encode(comparison.task.selection[:SAMPLED], loaded, comparison.task, seq_len)
    added = loaded.model.head == 'lm'  # the head reads the outputs of a language model
    classes = len(comparison.task.classes) if added else None
    return Query(row=float(np.mean([len(example.tokens) for example in examples])), classes=classes)


def query_of_prompt(
    comparison: Comparison,
    loaded: LoadedModel,
    pool: Sequence[Row],
    form: PromptSettings,
    scores: Sequence[str],
    prompt_tokens: float | None = None,
) -> Query:
    """The tokens of a prompted query, means over the selection rows; demonstrations beyond the context are not read.

    Args:
      scores: of `choice_scores.SCORES`, the chosen one, or all that are compared: a contrast reads the row again,
        without demonstrations, and content-free calibration the demonstrations with each of its inputs. Others need
        nothing more.
      prompt_tokens: mean number of tokens of the prompts of the selection rows, as they were scored. None: they are
        estimated, with demonstrations of the mean length of the pool. Retrieved ones are longer.

    The nearest demonstrations need one more reading of the row, for its embedding.
    """
    rows, tokenizer = comparison.task.selection, loaded.tokenizer
    parts = _chat_parts if form.chat_template else _text_parts
    beginning, row, demonstration, choices = parts(tokenizer, rows, pool[:SAMPLED], form)
    # A prompt that is too long is cut after BEGIN: an instruction before the row.
    most = loaded.model.max_len - max(choices) if prompt_tokens is None else prompt_tokens
    beginning = min(beginning, max(most - row, 1.0))
    room = max(loaded.model.max_len - beginning - row - max(choices), 0.0)
    shots = len(pool) if form.shots < 0 else form.shots
    if prompt_tokens is None:
        demonstrations = min(shots * demonstration, room)
    else:
        row = min(row, prompt_tokens - beginning)
        demonstrations = prompt_tokens - beginning - row
    embedded = _mean_tokens(tokenizer, [row.fields['prompt'] for row in rows]) if form.select == 'nearest' else 0.0
    is_shared, alone = form.select in SHARED, 'contrast' in scores and form.shots != 0
    again = len(CONTENT_FREE) if 'content_free' in scores and not is_shared else 0
    shared = beginning + (demonstrations if is_shared else 0.0)
    own = row * (1 + alone) + embedded + (0.0 if is_shared else demonstrations * (1 + again))
    return Query(own, shared, choices * (1 + alone + again))


def _mean_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    return float(np.mean([len(ids) for ids in tokenizer.encode_batch(list(texts))])) if texts else 0.0


def _text_parts(
    tokenizer: Tokenizer, rows: Sequence[Row], pool: Sequence[Row], form: PromptSettings
) -> tuple[float, float, float, list[float]]:
    """Tokens of (what every prompt begins with, a row, a demonstration, each choice), means over rows."""
    instruction = _mean_tokens(tokenizer, [form.instruction + form.separator]) if form.instruction else 0.0
    row = _mean_tokens(tokenizer, [row.fields['prompt'] for row in rows])
    texts = [row.fields['prompt'] + row.fields['completion'] + form.separator for row in pool]
    choices = [float(len(ids)) for ids in tokenizer.encode_batch(list(form.choices))]
    return 1 + instruction, row, _mean_tokens(tokenizer, texts), choices


def _chat_parts(
    tokenizer: Tokenizer, rows: Sequence[Row], pool: Sequence[Row], form: PromptSettings
) -> tuple[float, float, float, list[float]]:
    """`_text_parts` of turns of a chat template, whose tokens are read too."""
    encode = functools.partial(rendering.choices_chat, tokenizer, form.chat_template, form.system or form.instruction)
    questions, others = ask(rows, form, pool)
    choices = [float(len(ids)) for ids in encode(questions[0], []).continuations]
    longest = (max(form.choices, key=len),)  # the turns before the answer are the same for all choices
    questions = [question._replace(choices=longest) for question in questions]
    first, *rest = (encode(question, []).context_ids for question in questions)
    beginning = common_length(first, encode(questions[0]._replace(context='-'), []).context_ids)
    shown = [len(encode(questions[0], [other]).context_ids) - len(first) for other in others]
    row = float(np.mean([len(ids) for ids in (first, *rest)])) - beginning
    return float(beginning), row, float(np.mean(shown)) if shown else 0.0, choices


def embedding(loaded: LoadedModel, pool: Sequence[Row], form: PromptSettings) -> Spent:
    """What the embeddings of the pool cost, once, if demonstrations are retrieved by them."""
    if form.select != 'nearest' or not form.shots or not pool:
        return NOTHING
    counts = [len(ids) for ids in loaded.tokenizer.encode_batch([row.fields['prompt'] for row in pool])]
    flops = sum(forward_flops(loaded.model, count, count, 0, params=loaded.params) for count in counts)
    return Spent(flops, sum(counts))


def scoring_bytes(loaded: LoadedModel, query: Query) -> int:
    """Peak bytes of one device while prompts are scored in the batches of `lmtrain.inference`, an estimate."""
    limits = {'tokens': batches.MAX_TOKENS, 'length': batches.ROW}
    return memory.bytes_of_scoring(loaded.params, loaded.model, query, **limits)


def stored_bytes(loaded: LoadedModel, pool: Sequence[Row], form: PromptSettings) -> int:
    """Of what a prompt needs beside the base: instruction, demonstrations or the pool of them, and its embeddings."""
    sizes = [len((row.fields['prompt'] + row.fields['completion']).encode()) for row in pool]
    if form.select in SHARED and form.shots >= 0:  # the same few for all queries
        sizes = [round(sum(sizes) / len(sizes) * form.shots)] if form.shots else []
    vectors = len(pool) * loaded.model.width * 4 if form.select == 'nearest' and form.shots else 0
    return len(form.instruction.encode()) + sum(sizes) + vectors
