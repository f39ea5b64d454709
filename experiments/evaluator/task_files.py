"""The rows of the comparison as task files of `lmtrain evaluate --task`, and the scores of both sides on them."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import lmtrain
from experiments.evaluator.requests import Request, Row, log_likelihoods
from lmtrain.models.virtual_tokens import room

CHOICES = """
[prompt]
template = "{query} {gold}"
answer = "gold"
choices = "choices"
[scoring]
kind = "choices"
"""
PERPLEXITY = """
[scoring]
kind = "perplexity"
"""


def choices(path: pathlib.Path, rows: Sequence[Row]) -> pathlib.Path:
    """Writes the task file `path` of rows with choices, and their rows beside it; returns the path."""
    return _written(path, [{'query': row.context, 'choices': row.choices, 'gold': row.gold} for row in rows], CHOICES)


def perplexity(path: pathlib.Path, texts: Sequence[Request]) -> pathlib.Path:
    """Writes the task file `path` of texts, and their rows beside it; returns the path."""
    return _written(path, [{'text': text.args[0]} for text in texts], PERPLEXITY)


def _written(path: pathlib.Path, rows: Sequence[dict[str, Any]], sections: str) -> pathlib.Path:
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    path.with_suffix('.jsonl').write_text(lines, encoding='utf-8')
    path.write_text(f'[data]\nfiles = "{path.stem}.jsonl"\n{sections}', encoding='utf-8')
    return path


def accepted(rows: Sequence[Row], loaded) -> list[Row]:
    """The rows that the task runner does not refuse: whose choices differ, and that fit into the context.

    lm-eval removes the beginning of longer ones, by as much as each choice needs.
    """
    size = room(loaded.model, loaded.params)

    def fits(row: Row) -> bool:
        whole = loaded.tokenizer.encode_batch([f'{row.context} {choice}' for choice in row.choices])
        return max(map(len, whole)) <= size  # with the begin token, and without the last one, which is not read

    return [row for row in rows if len(set(row.choices)) == len(row.choices) and fits(row)]


def compared(
    folder: pathlib.Path, loaded, theirs, files: dict[str, Sequence[Row]], texts: Sequence[Request], batch_size: int
) -> dict[str, list[float]]:
    """{file: [our score, that of lm-eval]}: accuracies of `files`, and the bits per byte of `texts` as 'bits_per_byte'.

    The task runner begins every prompt with the begin token; lm-eval reads it from its name before the text.

    Args:
      loaded: of `lmtrain.load`; theirs: a model of lm-eval with the same parameters.
    """
    begin, scores = theirs.tokenizer.bos_token, {}
    for name, rows in files.items():
        ours = lmtrain.evaluate(loaded, task=choices(folder / f'{name}.toml', rows), batch_size=batch_size)
        asked = log_likelihoods([row._replace(context=begin + row.context) for row in rows])
        answers, right = iter(theirs.loglikelihood(asked, disable_tqdm=True)), 0
        for row in rows:
            nats = [next(answers)[0] for _ in row.choices]
            right += nats.index(max(nats)) == row.gold
        scores[name] = [ours['accuracy'], right / len(rows)]
    ours = lmtrain.evaluate(loaded, task=perplexity(folder / 'texts.toml', texts), batch_size=batch_size)
    nats = -sum(theirs.loglikelihood_rolling(texts, disable_tqdm=True))
    size = sum(len(text.args[0].encode()) for text in texts)
    return scores | {'bits_per_byte': [ours['bits_per_byte'], nats / math.log(2) / size]}
