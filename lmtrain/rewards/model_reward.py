"""The reward of a reward model."""

from collections.abc import Callable, Sequence

import numpy as np

from lmtrain.rewards.reward import Reward

ScoreTexts = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # (prompts, completions) -> float32 [N]


def reward(folder: str, score_texts: ScoreTexts) -> Reward:
    """The score of the last token of each prompt with its completion, by the reward model in `folder`."""

    def score(prompts, completions, rows):
        return score_texts(prompts, completions).tolist()

    return Reward(score, note=f'reward model {folder}')
