"""From config.reward to the reward of completions: a weighted sum of verifiers, a reward model and a user's file."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.rows import Row
from lmtrain.errors import InputError, did_you_mean, wrong_choice
from lmtrain.files import local_path
from lmtrain.rewards import model_reward, user_file, verifiers
from lmtrain.rewards.reward import Limits, Reward

LONGEST_REASON = 160  # characters of the name of a failure


class Scored(NamedTuple):
    """Rewards of N completions.

    Attributes:
      total: float32 [N], the weighted sum of the parts.
      parts: {name: float32 [N]}, before weights; `_worst` of the call where the part failed.
      failures: {'name: reason': completions}, why parts have no score: a time limit, an exception, nan.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    failures: dict[str, int]


class RewardFunction:
    """The reward of config.reward. A context manager: its end ends the processes of its parts.

    Attributes:
      notes: lines for the header of a run.
      measures: names of the parts of weight 0, which are measured and not rewarded.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float]):
        """`weights` has the names of `parts`."""
        self._parts, self._weights = parts, weights
        self.measures = tuple(name for name, weight in weights.items() if weight == 0)
        self.notes = tuple(part.note for part in parts.values() if part.note)

    def check(self, rows: Iterable[Row]) -> None:
        """Raises InputError naming the first row that lacks what a part reads."""
        for row in rows:
            for part in self._parts.values():
                part.check(row)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Scored:
        """The rewards of N completions.

        Args:
          prompts, completions: [N] texts.
          rows: [N] fields of the row of each prompt.

        Raises InputError if the first call of a user's file fails and `build` was strict; other failures are counted.

        >>> exact = verifiers.VERIFIERS['exact'](verifiers.VerifierSettings('answer', '', Limits(1.0, 64)))
        >>> reward = RewardFunction({'exact': exact}, {'exact': 2.0})
        >>> scored = reward(['1 + 1 ='] * 2, ['2', '3'], [{'answer': '2'}] * 2)
        >>> scored.total.tolist(), scored.failures
        ([2.0, 0.0], {})
        """
        total, parts = np.zeros(len(completions), np.float32), {}
        failures: collections.Counter[str] = collections.Counter()
        for name, part in self._parts.items():
            scores = part.score(prompts, completions, rows)
            assert len(scores) == len(completions), f'{name}: {len(scores)} scores of {len(completions)} completions'
            reasons = [score if isinstance(score, str) else _not_finite(score) for score in scores]
            failures.update(f'{name}: {reason[:LONGEST_REASON]}' for reason in reasons if reason)
            weight = self._weights[name]
            worst = _worst([float(score) for why, score in zip(reasons, scores) if not why], weight)
            parts[name] = np.array([worst if why else score for why, score in zip(reasons, scores)], np.float32)
            total += np.float32(weight) * parts[name]
        return Scored(total, parts, dict(failures))

    @property
    def flops(self) -> float:
        """Of the models of its parts, in the last call."""
        return sum(part.flops() for part in self._parts.values())

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _not_finite(score: float) -> str:
    """The reason why a number is no reward; '' if it is one."""
    return '' if abs(score) <= np.finfo(np.float32).max else f'{score} is not finite'


def _worst(scores: Iterable[float], weight: float) -> float:
    """The score of a completion that has none: the least of the others, or the largest if `weight` is negative.

    It is never better than 0, the score of a wrong answer by a verifier: no completion gains by being unscorable.
    """
    return max([0.0, *scores]) if weight < 0 else min([0.0, *scores])


def build(
    reward: Mapping[str, Any],
    *,
    root: str = '',
    open_model: Callable[[str], model_reward.ScoreTexts] | None = None,
    strict: bool = True,
) -> RewardFunction:
    """The reward that config.reward describes.

    Args:
      reward: config.reward.
      root: config.data.root, the start of relative paths.
      open_model: opens the folder of a reward model; it loads a run, which modules above this one do. None: the caller
        takes no reward model.
      strict: see `user_file.reward`; False for what continues an earlier start.

    Raises InputError naming the field, before anything compiles.
    """
    weights = _weights(reward)
    limits = Limits(reward['seconds'], reward['memory_mib'])
    _require('seconds', limits.seconds, limits.seconds > 0, 'above 0')
    _require('memory_mib', limits.memory_mib, limits.memory_mib >= 16, 'at least 16')
    settings = verifiers.VerifierSettings(reward['field'], reward['pattern'], limits)
    parts = {}
    with contextlib.ExitStack() as stack:
        for name in weights:
            if name == 'file':
                file = local_path(reward['file'], 'config.reward.file', root)
                parts[name] = user_file.reward(file, limits.seconds, strict)
            elif name == 'model':
                folder = str(local_path(reward['model'], 'config.reward.model', root))
                if not open_model:
                    raise InputError(
                        f'config.reward.model = {reward["model"]!r}: a reward model scores the completions of a policy '
                        'run, not these (the held-out ones of a pipeline): set config.reward.verifier or '
                        'config.reward.file'
                    )
                parts[name] = model_reward.reward(folder, open_model(folder))
            else:
                parts[name] = verifiers.VERIFIERS[name](settings)
            stack.callback(parts[name].close)  # if a later part cannot be built
        stack.pop_all()
    return RewardFunction(parts, weights)


def _weights(reward: Mapping[str, Any]) -> dict[str, float]:
    """{name of a part: its weight}."""
    verifier, known = reward['verifier'], (*verifiers.VERIFIERS, 'model', 'file')
    if verifier and verifier not in verifiers.VERIFIERS:
        raise wrong_choice('config.reward.verifier', verifier, verifiers.VERIFIERS)
    set_parts = [name for name in (verifier, *(name for name in ('model', 'file') if reward[name])) if name]
    pairs = [tuple(pair) for pair in reward['weights']] or [(name, 1.0) for name in set_parts]
    if not pairs:
        raise InputError("config.reward gives no reward: set verifier ('exact'), model (a folder) or file")
    for pair in pairs:
        expected = "pairs of a name and a number, such as (('exact', 1.0), ('file', 0.5))"
        right = len(pair) == 2 and isinstance(pair[1], int | float) and np.isfinite(pair[1])
        _require('weights', pair, right, expected)
        _require('weights', pair[0], pair[0] in known, f'one of {", ".join(known)}{did_you_mean(str(pair[0]), known)}')
        is_set = pair[0] in verifiers.VERIFIERS or bool(reward[pair[0]])
        _require(pair[0], '', is_set, f'set, since config.reward.weights has {pair[0]!r}')
    weights = {name: float(weight) for name, weight in pairs}
    _require('weights', reward['weights'], len(weights) == len(pairs), 'without a name that occurs twice')
    if missing := [name for name in set_parts if name not in weights]:
        raise InputError(
            f'config.reward.weights has no weight of {missing[0]!r}, which is set: add ({missing[0]!r}, 1.0)'
        )
    return weights


def _require(field: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise InputError(f'config.reward.{field} is {value!r}; it must be {expected}')
