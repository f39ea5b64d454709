"""One output for each row: the model's own, or pooled from those of an added head."""

from lmtrain.errors import wrong_choice
from lmtrain.models import task_head
from lmtrain.models.settings import CHOICES

POOLS = CHOICES['head_pool']


def pool_outputs(outputs, batch, pool: str):
    """[B, C] of outputs [B, C] (unchanged) or [B, T, C]: of the first or last real token of each row, or their mean.

    `batch['segment_ids']` int32 [B, T] is 0 at padding; it is read only if outputs are pooled.
    """
    if outputs.ndim == 2:
        return outputs
    if pool not in POOLS:
        raise wrong_choice('pool', pool, POOLS)
    return task_head.pool(outputs, batch['segment_ids'], pool)
