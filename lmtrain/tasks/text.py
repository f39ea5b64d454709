"""Language modelling on a text corpus: causal, or masked if data.mask_rate is set."""

from lmtrain.tasks import token_loss, token_preview
from lmtrain.tasks.task import Task

TASK = Task(
    name='text',
    head='lm',
    columns=('targets', 'loss_mask'),
    losses={'cross_entropy': token_loss.loss},
    peft_type='CAUSAL_LM',
    legend=token_preview.legend,
    render=token_preview.render,
    measures_text=True,
    unit='token',
)
