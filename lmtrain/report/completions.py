"""The table of sample completions of a policy run, for the terminal and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmtrain.report import terminal

WIDTHS = (24, 32)  # characters of prompt and completion, so that the table has 80 columns


def rows(prompts: Sequence[str], completions, count: int = 4) -> list[dict[str, Any]]:
    """The first completion of `count` prompts: {'prompt', 'completion', 'reward', 'ended'}.

    Args:
      prompts: their texts. completions: a `training.rollouts.Completions` with as many for each prompt.
    """
    samples = len(completions.texts) // len(prompts)
    return [
        {
            'prompt': prompts[number],
            'completion': completions.texts[number * samples],
            'reward': float(completions.rewards[number * samples]),
            'ended': bool(completions.ended[number * samples]),
        }
        for number in range(min(count, len(prompts)))
    ]


def table(of_step: Sequence[Mapping[str, Any]]) -> str:
    """The `rows` of one rollout in at most 80 columns; the end of a prompt and the begin of a completion remain."""
    head = 'reward', 'ended', 'prompt', 'completion'
    cells = [
        (
            f'{row["reward"]:.3g}',
            'yes' if row['ended'] else 'no',
            _shown(row['prompt'], WIDTHS[0], end=True),
            _shown(row['completion'], WIDTHS[1]),
        )
        for row in of_step
    ]
    return '\n'.join(f'    {line}' for line in terminal.table([head, *cells], right=(0,)))


def _shown(text: str, width: int, end: bool = False) -> str:
    text = terminal.printable(text.replace('\n', ' '))
    if len(text) <= width:
        return text
    return '...' + text[3 - width :] if end else text[: width - 3] + '...'
