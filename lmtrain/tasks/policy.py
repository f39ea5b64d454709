"""Policy gradients on sampled completions: GRPO with its variants, and REINFORCE leave-one-out.

Rows are prompts. `training/rollouts.py` samples completions of them, scores these, and makes the batches: columns of
'chat', whose loss_mask is 1 at the tokens of the completion, float32 [B, T] `old_logprob`, `advantages` and, with a
reference model, `ref_logprob`, and float32 [B] `first`, see `log_ratios`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data.chat import conversation, encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.data.examples import Example
from lmtrain.data.rows import Row, text_of
from lmtrain.errors import InputError
from lmtrain.tasks import text
from lmtrain.tasks.advantages import estimate_kl, group_relative, leave_one_out
from lmtrain.tasks.task import Encoded, RowFormat

AGGREGATIONS = ('dapo', 'grpo', 'dr_grpo')
RATIOS = ('token', 'sequence')


def grpo(
    forward,
    batch,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 0.0,
    kl_estimator: str = 'k3',
    aggregation: str = 'dapo',
    ratio: str = 'token',
    max_tokens: int = 1,
):
    """The clipped surrogate with advantages relative to a group: GRPO (Shao et al. 2024, arXiv 2402.03300, equation 3).

    -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) + kl_weight KL for each token, w = p / p_old.

    Args:
      forward: Batch -> {head: Array}; reads `logprob` [B, T].
      batch: columns `old_logprob`, `advantages`, `loss_mask` and, with a reference model (kl_weight is not 0, or only
        added leaves are trained), `ref_logprob`; all float32 [B, T]. `first`: see `log_ratios`. `segment_ids` divide a
        row into sequences.
      clip_high: larger than `clip_low` is clip-higher (DAPO, Yu et al. 2025, arXiv 2503.14476, equation 10).
      kl_estimator: 'k1' | 'k2' | 'k3', see `advantages.estimate_kl`.
      aggregation: 'grpo' averages over the tokens of a sequence, then over sequences; 'dapo' over all tokens (arXiv
        2503.14476, equation 8); 'dr_grpo' sums over tokens, divides by `max_tokens` and averages over sequences (Liu et
        al. 2025, arXiv 2503.20783, section 3.2).
      ratio: 'token', or 'sequence': the geometric mean of a sequence's ratios stands for each (Zheng et al. 2025, arXiv
        2507.18071, equation 7; with the aggregation 'grpo' it is GSPO, equation 5).
      max_tokens: limit of a completion, for 'dr_grpo'.

    Returns:
      ({'loss', 'entropy', 'scorer_gap', 'kl' if there is a reference, and what `clipped` logs}, weights), each [B, T].
      The entropy is estimated by -log p of the sampled tokens.
    """
    logprob, mask = forward(batch)['logprob'], batch['loss_mask']
    log_ratio, gap = log_ratios(logprob, batch)
    length = per_sequence(mask, batch)
    if ratio == 'sequence':
        log_ratio = per_sequence(log_ratio, batch) / jnp.maximum(length, 1.0)
    loss, values = clipped(log_ratio, batch['advantages'], clip_low, clip_high)
    values |= {'entropy': -logprob, 'scorer_gap': gap}
    if 'ref_logprob' in batch:
        values['kl'] = kl = reference_kl(logprob, batch, kl_estimator)
        loss = loss + kl_weight * kl if kl_weight else loss
    if aggregation == 'dapo':
        return {'loss': loss} | values, mask
    # Each sequence weighs 1, whatever its length.
    loss = loss * length / max_tokens if aggregation == 'dr_grpo' else loss
    return {'loss': loss} | values, mask / jnp.maximum(length, 1.0)


def rloo(forward, batch, *, clip_low: float = 0.2, clip_high: float = 0.2, kl_estimator: str = 'k1'):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740, section 2.3): a completion is one action.

    -min(w A, clip(w) A) for each sequence, w the product of its tokens' ratios: at the policy that sampled (w = 1) its
    gradient is that of -A log p(completion). A penalty for the KL divergence is a part of the reward.

    Arguments and results are those of `grpo`. Every sequence weighs 1. config.objective.kl_estimator is 'k3' unless it
    is set; 'k1' is the estimator of the paper.
    """
    logprob, mask = forward(batch)['logprob'], batch['loss_mask']
    log_ratio, gap = log_ratios(logprob, batch)
    log_ratio = per_sequence(log_ratio, batch)
    loss, values = clipped(log_ratio, batch['advantages'], clip_low, clip_high)
    values |= {'entropy': -logprob, 'scorer_gap': gap}
    if 'ref_logprob' in batch:
        values['kl'] = reference_kl(logprob, batch, kl_estimator)
    return {'loss': loss} | values, mask / jnp.maximum(per_sequence(mask, batch), 1.0)


def log_ratios(logprob, batch):
    """(log p - log p_old, |log p - old_logprob| in the first step of a rollout), each [B, T], 0 outside of the mask.

    `first` [B] is 1 in the rows of the first step after a rollout, whose parameters are those that sampled. There p_old
    is p itself without a gradient, as in TRL (`per_token_logps.detach()`), so that the ratio is exactly 1:
    `old_logprob` is of another compiled program (`rollouts.scorer`), whose rounding differs in bfloat16.
    """
    inside, first = batch['loss_mask'] > 0, batch['first'][:, None] > 0
    old = jnp.where(first, jax.lax.stop_gradient(logprob), batch['old_logprob'])
    gap = jnp.where(inside & first, jnp.abs(logprob - batch['old_logprob']), 0.0)
    return jnp.where(inside, logprob - old, 0.0), gap


def clipped(log_ratio, advantages, clip_low: float, clip_high: float):
    """(-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A), what is logged of w): PPO's surrogate.

    Schulman et al. 2017, arXiv 1707.06347, equation 7. 'ratio' is w, 'ratio_deviation' |w - 1|, and 'clip_fraction' 1
    where the clip ends the gradient.
    """
    ratio = jnp.exp(log_ratio)
    limited = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = -jnp.minimum(ratio * advantages, limited * advantages)
    ends = (ratio > 1.0 + clip_high) & (advantages > 0) | (ratio < 1.0 - clip_low) & (advantages < 0)
    values = {'ratio': ratio, 'ratio_deviation': jnp.abs(ratio - 1.0), 'clip_fraction': ends.astype(jnp.float32)}
    return loss, jax.lax.stop_gradient(values)


def reference_kl(logprob, batch, estimator: str):
    """float32 [B, T]: the estimated KL divergence from the reference at each token of a completion."""
    log_ratio = jnp.where(batch['loss_mask'] > 0, logprob - batch['ref_logprob'], 0.0)
    return estimate_kl(log_ratio, estimator, jnp)


def per_sequence(x_BT, batch):
    """[B, T]: at each token the sum of `x_BT` over the tokens of its sequence."""
    T = x_BT.shape[1]
    total = jax.vmap(lambda x, ids: jax.ops.segment_sum(x, ids, num_segments=T + 1)[ids])
    return total(x_BT, batch['segment_ids'])


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Examples of the prompts and an end token each, which no stream reads: `training/rollouts.py` continues them.

    config.task.too_long = 'cut' removes the beginning of a prompt after its first token.
    """
    examples, templated, limit = [], False, form.length.seq_len
    for number, row in enumerate(rows):
        prompt = prompt_of(row, form.text)
        if isinstance(prompt, str):
            ids = form.tokenizer.encode_prompt(prompt)
        elif form.template is None:
            raise InputError(f"{row.place}: a conversation, and config.task.template is 'none': set it to 'auto'")
        else:
            messages, tools = prompt.messages, prompt.tools
            ids, templated = encoding.encode_prompt(messages, form.tokenizer, form.template, tools=tools), True
        if len(ids) > limit and form.length.policy == 'error':
            raise InputError(
                f'{row.place}: a prompt of {len(ids)} tokens, and data.seq_len is {limit}, which holds a prompt and '
                'policy.max_tokens - 1 of its completion: set it higher, or '
                "config.task.too_long to 'cut' or 'drop'"
            )
        if form.length.fits(row, len(ids)):
            ids = [*ids[:1], *ids[1 + max(0, len(ids) - limit) :]]
            empty = {'loss_mask': np.zeros(len(ids) + 1, np.float32), 'bytes': np.zeros(len(ids) + 1, np.int32)}
            examples.append(Example(number, np.array([*ids, form.tokenizer.end_id], np.int32), empty, {}))
    return Encoded(examples, (), templated)


def dialogue(row: Row, text: tuple[str, ...], label: str, template: Template | None) -> Conversation:
    """The prompt of a row, before an answer that is not known."""
    prompt = prompt_of(row, text)
    if isinstance(prompt, str):
        return Conversation([], (), (prompt, ''))
    messages = [*prompt.messages, {'role': 'assistant', 'content': ''}]
    return prompt._replace(messages=messages, trained=(len(messages) - 1,))


def prompt_of(row: Row, fields: tuple[str, ...]) -> str | Conversation:
    """The prompt of a row: a text, or the conversation before the last answer. Raises InputError naming the row.

    Args:
      fields: of the prompt. (): the field `prompt`, of which a text is a turn if there is a system text or a history;
        of a row without one, what 'chat' reads, so that the question of a pair is a turn, as in supervised training.
    """
    if not fields and row.fields.get('prompt') is not None:
        row, fields = conversation.with_turns(row, row.fields['prompt']), ('prompt',)
    if len(fields) > 1 or fields and isinstance(row.fields.get(fields[0]), str):
        return '\n\n'.join(text_of(row, name) for name in fields)
    whole = conversation.read(row, fields, '')[1]
    messages = [*whole.messages]
    while len(messages) > 1 and messages[-1]['role'] == 'assistant':
        messages.pop()
    return whole._replace(messages=messages, trained=())


TASK = dataclasses.replace(
    text.TASK,
    name='policy',
    columns=('targets', 'loss_mask', 'old_logprob', 'ref_logprob', 'advantages'),
    losses={'grpo': grpo, 'rloo': rloo},
    estimators={'grpo': group_relative, 'rloo': leave_one_out},
    encode=encode,
    conversations=True,
    dialogue=dialogue,
    measures_text=False,
    unit='prompt',
    version=2,
)
