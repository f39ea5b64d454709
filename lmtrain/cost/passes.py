"""FLOPs of forward passes outside of the train step: rollouts of a policy, rewards, the reference model.

They count what the compiled programs execute, without masked blocks of keys.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lmtrain import tree
from lmtrain.adapt import leaves as adapter_leaves
from lmtrain.cost.flops import flops_per_step, forward_flops
from lmtrain.models import attention_kernels


class SamplingShape(NamedTuple):
    """Completions by `inference.rollout`.

    Attributes:
      prompts: P, read once each, with those that fill up the devices. samples: completions of each prompt.
      length: T, to which prompts are padded. room: M, slots of the cache of drawn tokens.
      drawn: tokens of the longest completion: all rows are decoded until it has ended.
    """

    prompts: int
    samples: int
    length: int
    room: int
    drawn: int


def pass_flops(model, params: Mapping, rows: int, length: int, classes: int | None = None) -> float:
    """FLOPs of a forward pass over `rows` rows of `length` tokens, with a head at all positions.

    Args:
      params: arrays or shapes, with the leaves of adapters.
      classes: outputs of an added head, which is used instead of the model's own.
    """
    block = attention_kernels.BLOCK
    return flops_per_step(model, rows, length, '', params=params, classes=classes, block=block).forward


def sampling_flops(model, params: Mapping, sampled: SamplingShape) -> float:
    """FLOPs of sampling: a prefill of P prompts, which draws the first token, and P x samples rows for each other one.

    A drawn token is multiplied by all T + M keys that the caches hold, of which a window keeps its last ones. A second
    prefill, of models whose rotary angles change with the length of a text, is not counted.
    """
    flat, P, T = tree.flatten(params), sampled.prompts, sampled.length
    block = attention_kernels.BLOCK
    prefill = flops_per_step(model, P, T, '', params=params, predicted=1, block=block).forward
    past, own = T + adapter_leaves.virtual_tokens(flat), sampled.room
    if model.window:
        # The past of all layers is whole if some have no window; the cache is a ring in each layer with a window.
        full = len(model.global_layers) / model.num_layers
        past = past if full else min(past, model.window)
        own = full * own + (1 - full) * min(own, model.window)
    steps = P * sampled.samples * (sampled.drawn - 1)
    return prefill + steps * forward_flops(model, 1, past + own, 1, params=params)


def rollout_flops(
    model, params: Mapping, sampled: SamplingShape, rows: int, seq_len: int, scored: Sequence[Mapping]
) -> float:
    """FLOPs of a rollout without its rewards: the sampling, and a pass over all completions for each model in `scored`.

    Args:
      rows: number of completions. seq_len: tokens of their rows.
      scored: parameters of the policy, and of its reference model if it has one.
    """
    return sampling_flops(model, params, sampled) + sum(pass_flops(model, each, rows, seq_len) for each in scored)
