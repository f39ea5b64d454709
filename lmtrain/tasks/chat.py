"""Conversations and prompts with completions: language modelling on the tokens that the assistant says."""

import dataclasses
from collections.abc import Sequence

from lmtrain.data.chat import conversation, encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row
from lmtrain.tasks import text
from lmtrain.tasks.task import Encoded, RowFormat


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Columns: `loss_mask` and `bytes` of each token (`encoding.encode_rows`)."""
    return Encoded(*encoding.encode_rows(rows, form.text, form.label, form.tokenizer, form.template, form.length))


def dialogue(row: Row, text: tuple[str, ...], label: str, template: Template | None) -> Conversation:
    """The conversation of a row."""
    return conversation.read(row, text, label)[1]


TASK = dataclasses.replace(text.TASK, name='chat', encode=encode, conversations=True, dialogue=dialogue)
