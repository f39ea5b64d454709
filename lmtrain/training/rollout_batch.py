"""The batch columns of sampled completions."""

from collections.abc import Sequence

import numpy as np

INPUTS = {'tokens': np.int32, 'segment_ids': np.int32, 'positions': np.int32, 'targets': np.int32}


def empty(run) -> dict[str, np.ndarray]:
    """A batch of a policy run without completions: the names, shapes and dtypes of its columns."""
    rows, T = run.config.data.batch_size, run.config.data.seq_len
    batch = {name: np.zeros((rows, T), dtype) for name, dtype in INPUTS.items()}
    absent = set() if has_reference(run) else {'ref_logprob'}
    batch |= {name: np.zeros((rows, T), np.float32) for name in run.task.columns if name not in absent | set(batch)}
    if run.config.policy.temperature != 1:
        batch['temperature'] = np.ones(rows, np.float32)
    return batch | {'row': np.arange(rows, dtype=np.int32), 'first': np.zeros(rows, np.float32)}


def has_reference(run) -> bool:
    """Whether the divergence from the base is measured: it costs no copy of the base, or it has a weight."""
    return run.initial.only_added or run.config.objective.kl_weight > 0


def columns(prompts: Sequence[Sequence[int]], tokens: np.ndarray, lengths: np.ndarray, T: int) -> dict[str, np.ndarray]:
    """The columns of `INPUTS` and `loss_mask`, [N, T]: the tokens of a completion are the targets that count.

    Args:
      prompts: P prompts, with N / P completions each.
      tokens: int32 [N, L] completions, those of a prompt together. lengths: [N] their tokens.

    >>> columns([[5, 6]], np.array([[7, 1]]), np.array([2]), 4)['targets']
    array([[6, 7, 1, 0]], dtype=int32)
    """
    N = len(tokens)
    batch = {name: np.zeros((N, T), dtype) for name, dtype in INPUTS.items()}
    batch['loss_mask'] = np.zeros((N, T), np.float32)
    for row in range(N):
        prompt = prompts[row * len(prompts) // N]
        whole = np.concatenate([np.asarray(prompt), tokens[row, : lengths[row]]])
        size = len(whole) - 1
        batch['tokens'][row, :size], batch['targets'][row, :size] = whole[:-1], whole[1:]
        batch['segment_ids'][row, :size], batch['positions'][row, :size] = 1, np.arange(size)
        batch['loss_mask'][row, len(prompt) - 1 : size] = 1
    return batch
