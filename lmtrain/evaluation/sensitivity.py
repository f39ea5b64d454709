"""How much the accuracy depends on the form of a prompt: order and set of demonstrations, template."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.evaluation import statistics
from lmtrain.inference import prompting
from lmtrain.inference.demonstrations import ALL
from lmtrain.inference.prompting import PromptSettings
from lmtrain.tree import Params


class Variant(NamedTuple):
    """One way to write the prompt: settings, and the rows of which demonstrations are taken."""

    settings: PromptSettings
    demonstrations: Sequence[Row]


def orders(settings: PromptSettings, demonstrations: Sequence[Row], count: int, seed: int = 0) -> list[Variant]:
    """The same demonstrations for all rows in `count` random orders; fewer if there are fewer orders than that."""
    rng, seen = np.random.default_rng(seed), {}
    fixed = settings._replace(select='first', shots=ALL)
    for _ in range(20 * count):  # draws, of which some repeat an order
        order = tuple(rng.permutation(len(demonstrations)).tolist())
        seen.setdefault(order, Variant(fixed, [demonstrations[index] for index in order]))
        if len(seen) == count:
            break
    return list(seen.values())


def sets(settings: PromptSettings, pool: Sequence[Row], count: int, seed: int = 0) -> list[Variant]:
    """`count` random sets of `settings.shots` rows of the pool, each the demonstrations of all rows."""
    if not 0 < settings.shots <= len(pool):
        raise InputError(f'shots={settings.shots}: a set has at least 1 row, and the pool has {len(pool)}')
    rng, fixed = np.random.default_rng(seed), settings._replace(select='first', shots=ALL)
    draws = [rng.choice(len(pool), settings.shots, replace=False).tolist() for _ in range(count)]
    return [Variant(fixed, [pool[index] for index in drawn]) for drawn in draws]


def templates(settings: PromptSettings, demonstrations: Sequence[Row], texts: Sequence[str]) -> list[Variant]:
    """The settings with each of the templates."""
    return [Variant(settings._replace(template=text), demonstrations) for text in texts]


def sensitivity(
    model,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    variants: Sequence[Variant],
    *,
    column: str = 'right',
    end_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """The distribution of the accuracy over variants of a prompt, on the same rows.

    Args:
      column: of `prompting.Scores.rows`: 'right', 'right_per_token', 'right_per_byte', 'right_calibrated'.

    Returns:
      `statistics.spread` of the accuracies, but 'interval' is that of the mean over new variants and new rows
      (`statistics.proportion`); 'worst_interval' and 'best_interval', Wilson intervals over rows for these two
      variants, of which the best is an optimistic choice; 'accuracies' of all variants in order, 'rows',
      'computed_tokens' (None if answers are generated).

    Choices that are the answers of all rows must be named in the settings, since the sets have different answers.

    Raises InputError: there is no variant, or what `prompting.score` raises.
    """
    if not variants:
        raise InputError('there is no variant of the prompt to compare')
    hits, spent = [], []
    for settings, demonstrations in variants:
        scores = prompting.score(
            model, params, tokenizer, rows, settings, demonstrations=demonstrations, end_ids=end_ids
        )
        hits.append([row[column] for row in scores.rows])
        spent.append(scores.results.get('computed_tokens'))
    hits_WN = np.array(hits, np.float64)
    accuracies = hits_WN.mean(axis=1)
    result = statistics.spread(accuracies) | {'interval': list(statistics.proportion(hits_WN)[2:])}
    for name, index in (('worst', int(accuracies.argmin())), ('best', int(accuracies.argmax()))):
        result[f'{name}_interval'] = list(statistics.proportion(hits_WN[index])[2:])
    computed = None if None in spent else sum(spent)
    return result | {'accuracies': accuracies.tolist(), 'rows': len(rows), 'computed_tokens': computed}
