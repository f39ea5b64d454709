"""The reward of a reward model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lmtrain.rewards.reward import Reward


class ScoreTexts(Protocol):
    """(prompts, completions, fields of their rows) -> float32 [N]."""

    flops: float  # of the last call

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> np.ndarray: ...


def reward(folder: str, score_texts: ScoreTexts) -> Reward:
    """The score of the last token of each prompt with its completion, by the reward model in `folder`."""

    def score(prompts, completions, rows):
        return score_texts(prompts, completions, rows).tolist()

    return Reward(score, note=f'reward model {folder}', flops=lambda: score_texts.flops)
