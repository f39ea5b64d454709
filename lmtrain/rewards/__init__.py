"""Rewards of completions: verifiers, a reward model, a user's Python file, and weighted sums of them.

A reward (`Reward`) gives each completion a number, or the reason why it has none: a verifier that raises, hangs or
crashes is a failure of that completion, counted and named, and never ends the run. What runs text of a model or code of
a user runs in another process: `sandbox` for unit tests, `worker` for the rest.

A new verifier is a function and a line of `verifiers.VERIFIERS`.
"""

from lmtrain.rewards.mixture import RewardFunction, Scored, build

__all__ = ['RewardFunction', 'Scored', 'build']
