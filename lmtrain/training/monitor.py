"""The log of a policy run: figures of its rollouts, and a warning if the policy exploits the reward."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

ERRORS = 2.0  # standard errors by which the held-out reward must fall below its best


class Monitor:
    """Means of the rollouts' figures since the last line of the log, and the reward at the best held-out results.

    Args:
      state: numbers that JSON can hold, part of the checkpoint, so that a resumed run writes the same lines.
    """

    def __init__(self, state: Mapping[str, Any] = MappingProxyType({})):
        self.state = {'sums': {}, 'shown': {}, 'empty': 0, 'rewards': [], 'bests': {}, 'warned': []} | dict(state)

    def add(self, values: Mapping[str, Any], figures: Mapping[str, float], first: bool) -> None:
        """Adds a step, and with the `first` one the figures of its rollout.

        'first_ratio' is the ratio in the first step, 1 plus the mean deviation, since a mean of ones may be rounded. It
        is 1 by construction, so it checks that the rows of that step are marked; 'scorer_gap', of the same step, is how
        far the programs of the scorer and of the step are apart.
        A rollout with a figure that is not finite, whose update is skipped, is left out: JSON has no such number.
        """
        self.state['empty'] += values['targets'] == 0
        if not first:
            return
        first_ratio = float(np.float32(1.0 + values['ratio_deviation']))
        own = {**figures, 'first_ratio': first_ratio, 'scorer_gap': values['scorer_gap']}
        if not all(map(math.isfinite, own.values())):
            return
        for name, value in own.items():
            total, count = self.state['sums'].get(name, (0.0, 0))
            self.state['sums'][name] = total + value, count + 1
        self.state['rewards'].append(figures['reward'])

    def figures(self) -> dict[str, float]:
        """The means over the rollouts since the last call; those before if no rollout has been added since.

        A figure that a rollout lacks, as one without failures, counts as 0.
        'empty_steps' counts the steps so far in which no completion had a signal; they change no parameter.
        """
        if self.state['sums']:
            rollouts = self.state['sums']['reward'][1]
            self.state['shown'] = {name: total / rollouts for name, (total, _) in self.state['sums'].items()}
            self.state['sums'] = {}
        return self.state['shown'] | ({'empty_steps': self.state['empty']} if self.state['empty'] else {})

    def compare(self, results: Mapping[str, float]) -> str:
        """A warning if the training reward begins to rise while a held-out measure falls, and a line at its end.

        '' if nothing changed since the last call, so that a policy that stays exploitative is reported once. The
        measures are those with an error in the results of `rollouts.held_out`: the reward, and the parts that are
        measured alone. Compared are the mean reward of the rollouts since the last call and the measure, with those at
        the best measure so far. A fall counts beyond ERRORS standard errors of the difference.
        """
        rewards, self.state['rewards'] = self.state['rewards'], []
        reward = sum(rewards) / len(rewards) if rewards else None
        names = [name for name in results if f'{name}_error' in results]
        warnings = {name: self._compare(name, reward, results) for name in names}
        if reward is None:
            return ''
        before = self.state['warned']
        self.state['warned'] = [name for name, warning in warnings.items() if warning]
        begun = [warnings[name] for name in self.state['warned'] if name not in before]
        ended = [
            f'no longer: the {name} of held-out prompts is {results[name]:.3f}, the training reward {reward:.3f}'
            for name in before
            if name not in self.state['warned']
        ]
        return '; '.join(begun + ended)

    def _compare(self, name: str, reward: float | None, results: Mapping[str, float]) -> str:
        """The warning about one measure, '' if there is none; its best so far becomes part of the state."""
        best = self.state['bests'].get(name)
        now = {'reward': reward, 'held_out': results[name], 'error': results[f'{name}_error']}
        if best is None or now['held_out'] >= best['held_out']:
            self.state['bests'][name] = now
            return ''
        if best['reward'] is None:  # measured before the first rollout
            best['reward'] = reward
        margin = ERRORS * math.hypot(best['error'], now['error'])
        if reward is None or reward <= best['reward'] or best['held_out'] - now['held_out'] <= margin:
            return ''
        return (
            f'the reward rises ({best["reward"]:.3f} to {reward:.3f}) while the {name} of held-out prompts falls '
            f'({best["held_out"]:.3f} to {now["held_out"]:.3f}): the policy may exploit the reward'
        )
