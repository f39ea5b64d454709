"""The reward of a reward model."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lmtrain.rewards.reward import Reward


class ScoreTexts(Protocol):
    """(prompts, completions, fields of their rows) -> [N] scores, or texts that say why there is none."""

    flops: float  # of the last call

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[float | str]: ...


def reward(folder: str, score_texts: ScoreTexts) -> Reward:
    """The score of the last token of each prompt with its completion, by the reward model in `folder`."""
    return Reward(score_texts, note=f'reward model {folder}', flops=lambda: score_texts.flops)
