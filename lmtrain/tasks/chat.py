"""Conversations and prompts with completions: language modelling on the tokens that the assistant says."""

from collections.abc import Sequence

from lmtrain.data.chat import encoding
from lmtrain.data.rows import Row
from lmtrain.tasks import token_loss, token_preview
from lmtrain.tasks.task import Encoded, RowFormat, Task


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Columns: `loss_mask` and `bytes` of each token (`encoding.encode_rows`)."""
    return Encoded(*encoding.encode_rows(rows, form.text, form.label, form.tokenizer, form.template, form.length))


TASK = Task(
    name='chat',
    head='lm',
    columns=('targets', 'loss_mask'),
    losses={'cross_entropy': token_loss.loss},
    peft_type='CAUSAL_LM',
    legend=token_preview.legend,
    render=token_preview.render,
    encode=encode,
    conversations=True,
)
