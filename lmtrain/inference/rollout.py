"""Rollouts: several samples of every prompt from live parameters, with the log-probability of every token."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmtrain.errors import InputError
from lmtrain.inference import decode, sample
from lmtrain.models import Transformer
from lmtrain.models.virtual_tokens import num_virtual_tokens
from lmtrain.tree import Params


class Rollout(NamedTuple):
    """Completions of prompts. N = len(prompts) * samples; row p * samples + g is sample g of prompt p.

    Attributes:
      tokens: int32 [N, L], L = max_tokens: the completion with its end token, 0 after it.
      lengths: int32 [N], tokens of the completion, end token included.
      ended: bool [N], whether an end token was drawn; else the completion is truncated.
      logprob: float32 [N, L], in nats, of each drawn token under softmax(logits / temperature) over the vocabulary of
        the model, before `top_k` and `top_p`, as the trainer computes it; 0 after the completion. For temperature 0,
        under softmax(logits).
    """

    tokens: jax.Array
    lengths: jax.Array
    ended: jax.Array
    logprob: jax.Array


def rollout(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    mesh: Mesh | None = None,
    **settings: Any,
) -> Rollout:
    """`samples` completions of every prompt, a function of `seed`, `params` and `prompts`.

    The prompts are read once, for all of their samples. The end token is part of a completion, since it is a decision
    of the policy.

    Args:
      params: as they are trained, on one device or sharded over `mesh`.
      prompts: token ids.
      mesh: that of the trainer: rows are divided over `data` and `fsdp`.
      settings: those of `sample.check_settings`; top_k = 0 and top_p = 1 unless given.

    Raises InputError before anything compiles, and NonFiniteOutput if a logit is nan or infinite.
    """
    settings = {'top_k': 0, 'top_p': 1.0} | settings
    sample.check_settings(**settings)
    sample.check_prompts(model, prompts, settings['vocab_size'], num_virtual_tokens(params))
    if samples < 1:
        raise InputError(f'samples={samples} must be at least 1')
    rows = padded(len(prompts), mesh)
    batch = sample.prompt_batch(model, params, prompts, settings, rows=rows, samples=samples, logprob=True)
    for state in sample.states(model, params, _placed(batch, mesh) if mesh else batch, settings['max_tokens']):
        last = state
    return _completions(last, len(prompts) * samples, settings['max_tokens'])


def padded(prompts: int, mesh: Mesh | None) -> int:
    """The number of prompts that are read, which the devices of the rows divide."""
    parts = mesh.shape['data'] * mesh.shape['fsdp'] if mesh else 1
    return -(-prompts // parts) * parts


def _placed(batch: sample.PromptBatch, mesh: Mesh) -> sample.PromptBatch:
    """The batch with its rows divided over the devices as those of a training batch."""
    of_rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    settings = batch.settings._replace(
        **jax.device_put({'tag': batch.settings.tag, 'limit': batch.settings.limit}, of_rows)
    )
    tokens, lengths = jax.device_put((batch.tokens, batch.lengths), of_rows)
    return batch._replace(tokens=tokens, lengths=lengths, settings=settings)


@functools.partial(jax.jit, static_argnames=('count', 'length'))
def _completions(state: decode.DecodeState, count: int, length: int) -> Rollout:
    """The rollout of the first `count` rows, padded to `length` tokens."""
    lengths_N, room = state.num_tokens[:count], state.text.shape[1]
    real_NL = jnp.arange(length)[None] < lengths_N[:, None]

    def padded(x_BM):
        return jnp.where(real_NL, jnp.pad(x_BM[:count, :length], ((0, 0), (0, max(0, length - room)))), 0)

    return Rollout(padded(state.text), lengths_N, state.stopped[:count], padded(state.logprob))
