"""The head of a checkpoint for a task: classes of a row, tags of its tokens, or start and end of a span."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmtrain.models.layers import UNGATED, Norm
from lmtrain.models.linear import Linear, stddev
from lmtrain.models.settings import HEAD_KINDS

ACTIVATIONS = UNGATED | {'tanh': jnp.tanh}


class TaskHead(nn.Module):
    """{'logits': float32}, [B, C] under model.head='classify' ([B, S, C] if a batch has the column `scored`),
    [B, T, C] under 'tag' and 'span' (C = 2: start and end).

    Under 'none' there are no scores, but BERT may have a pooler: {'pooled': [B, D]}.

    With `model.head_activation`, a transform precedes the scores: BERT's pooler and RoBERTa's head are 'tanh' of a
    projection; ModernBERT's prediction head is another activation and a norm.
    """

    model: Any

    @nn.compact
    def __call__(self, x_BTD, segment_ids, scored_BS=None):
        """`segment_ids` int32 [B, T], 0 at padding; None: every token is real. `scored_BS`: see `pool`.

        A soft prompt is part of x and counts as real: the pooling 'first' reads its first embedding, and 'mean'
        includes it, same as PEFT, which passes the embeddings of prompt and text to the class of the task.
        """
        m = self.model
        if m.head == 'none' and not m.head_activation:
            return {}
        x = x_BTD if HEAD_KINDS[m.head].per_token else pool(x_BTD, segment_ids, m.head_pool, scored_BS)
        if m.head_activation:
            x = Linear(m.width, 'head' in m.biases, stddev(m.width), name='dense')(x)
            x = ACTIVATIONS[m.head_activation](x)
            if m.head_activation != 'tanh':
                x = Norm(m.norm, m.norm_eps, 'norm' in m.biases, name='norm')(x)
        if m.head == 'none':
            return {'pooled': x}
        return {'logits': Linear(m.num_labels, m.head_bias, stddev(m.width), name='out')(x.astype(jnp.float32))}


def pool(x_BTD, segment_ids, how: str, scored_BS=None):
    """[B, D]: the 'first' or 'last' real token of every row, or the 'mean' of the real ones.

    With `scored_BS` int32, [B, S, D]: those of the segments that it names, of which 0 is none.
    """
    if scored_BS is not None:
        one = lambda id_B: pool(x_BTD, jnp.where(id_B[:, None] > 0, segment_ids == id_B[:, None], False), how)  # noqa: E731
        return jax.vmap(one, in_axes=1, out_axes=1)(scored_BS)
    B, T, _ = x_BTD.shape
    real_BT = jnp.ones((B, T), bool) if segment_ids is None else segment_ids > 0
    if how == 'mean':
        total_BD = jnp.sum(jnp.where(real_BT[..., None], x_BTD, 0).astype(jnp.float32), axis=1)
        return (total_BD / jnp.maximum(jnp.sum(real_BT, axis=1), 1)[:, None]).astype(x_BTD.dtype)
    index_B = jnp.argmax(real_BT, axis=1) if how == 'first' else T - 1 - jnp.argmax(real_BT[:, ::-1], axis=1)
    return jax.vmap(lambda x_TD, index: x_TD[index])(x_BTD, index_B)
