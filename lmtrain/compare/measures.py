"""What is measured of a finished trial beside its test: later blocks of rows, latency, tokens and costs of a query."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmtrain.compare import choice_scores, predictors
from lmtrain.compare.predictors import Predict
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.cost.flops import forward_flops
from lmtrain.cost.ledger import NOTHING, Prices, Spent
from lmtrain.cost.query import Query
from lmtrain.data.rows import Row
from lmtrain.inference.calibration import CONTENT_FREE
from lmtrain.inference.demonstrations import SHARED
from lmtrain.inference.latency import query_seconds
from lmtrain.inference.prompting import PromptSettings
from lmtrain.training.load import LoadedModel

SAMPLED = 64  # rows whose tokens are counted


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


def latency(comparison: Comparison, predict: Predict) -> float:
    """Seconds of one query on a compiled program, batch 1."""
    return query_seconds(predict, [comparison.task.selection[:1]])


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
    comparison: Comparison, loaded: LoadedModel, pool: Sequence[Row], form: PromptSettings, scores: Sequence[str]
) -> Query:
    """The tokens of a prompted query, means over rows; demonstrations beyond the context are not read.

    Args:
      scores: of `choice_scores.SCORES`, the chosen one, or all that are compared: a contrast reads the row again,
        without demonstrations, and content-free calibration the demonstrations with each of its inputs. Others need
        nothing more.

    The nearest demonstrations need one more reading of the row, for its embedding.
    """
    task, tokenizer = comparison.task, loaded.tokenizer

    def mean_tokens(texts: Sequence[str]) -> float:
        return float(np.mean([len(ids) for ids in tokenizer.encode_batch(list(texts))])) if texts else 0.0

    row = mean_tokens([row.fields['prompt'] for row in task.selection[:SAMPLED]])
    choices = [float(len(ids)) for ids in tokenizer.encode_batch(list(task.completions))]
    instruction = mean_tokens([form.instruction + form.separator]) if form.instruction else 0.0
    texts = [row.fields['prompt'] + row.fields['completion'] + form.separator for row in pool[:SAMPLED]]
    room = max(loaded.model.max_len - 1 - instruction - row - max(choices), 0.0)
    shots = len(pool) if form.shots < 0 else form.shots
    demonstrations = min(shots * mean_tokens(texts), room)
    is_shared, alone = form.select in SHARED, 'contrast' in scores and form.shots != 0
    again = len(CONTENT_FREE) if 'content_free' in scores and not is_shared else 0
    shared = 1 + instruction + (demonstrations if is_shared else 0.0)
    own = row * (1 + alone + (form.select == 'nearest')) + (0.0 if is_shared else demonstrations * (1 + again))
    return Query(own, shared, choices * (1 + alone + again))


def embedding(loaded: LoadedModel, pool: Sequence[Row], form: PromptSettings) -> Spent:
    """What the embeddings of the pool cost, once, if demonstrations are retrieved by them."""
    if form.select != 'nearest' or not form.shots or not pool:
        return NOTHING
    counts = [len(ids) for ids in loaded.tokenizer.encode_batch([row.fields['prompt'] for row in pool])]
    flops = sum(forward_flops(loaded.model, count, count, 0, params=loaded.params) for count in counts)
    return Spent(flops, sum(counts))


def stored_bytes(loaded: LoadedModel, pool: Sequence[Row], form: PromptSettings) -> int:
    """Of what a prompt needs beside the base: instruction, demonstrations or the pool of them, and its embeddings."""
    sizes = [len((row.fields['prompt'] + row.fields['completion']).encode()) for row in pool]
    if form.select in SHARED and form.shots >= 0:  # the same few for all queries
        sizes = [round(sum(sizes) / len(sizes) * form.shots)] if form.shots else []
    vectors = len(pool) * loaded.model.width * 4 if form.select == 'nearest' and form.shots else 0
    return len(form.instruction.encode()) + sum(sizes) + vectors
