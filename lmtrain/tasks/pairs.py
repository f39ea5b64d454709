"""Pairs of a chosen and a rejected completion as examples: two segments of one row of a batch."""

import math
from collections.abc import Sequence

import numpy as np

from lmtrain.data import preferences
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.data.examples import Example
from lmtrain.data.preferences import SIDES, EncodedCompletion, Notes, Unwritten
from lmtrain.data.preview import Batch, render_row
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.runtime import progress
from lmtrain.tasks.task import Encoded, RowFormat


def encode(rows: Sequence[Row], form: RowFormat, *, unread: int, margins: bool) -> Encoded:
    """Two examples for each row, chosen and rejected, with the columns `loss_mask` per token and `scored`, 1 and 2.

    Pairs with two equal sides, or a completion that is empty or that the template does not write, are left out and
    counted. config.task.too_long = 'cut' takes the same number of tokens from the beginning of both prompts.

    Args:
      unread: last tokens of a side that no row of a batch contains (`pack_examples`).
      margins: whether the column `margin` is added: the field `margin` of a row, or 0.
    """
    check_fields(form, 'prompt, chosen and rejected')
    examples, notes, templated, with_margin = [], Notes(), False, 0
    for number, row in enumerate(progress.each(rows, 'reading pairs', len(rows))):
        pair = preferences.read_pair(row, form.template)
        margin = margin_of(row)
        if pair.chosen == pair.rejected:
            notes.skip('whose sides are equal', row)
            continue
        if preferences.is_empty(pair.chosen) or preferences.is_empty(pair.rejected):
            notes.skip('with an empty completion', row)
            continue
        try:
            sides = [preferences.encode(side, form.tokenizer, form.template, row.place) for side in pair[1:]]
        except Unwritten:
            notes.skip(Unwritten.NOTE, row)
            continue
        size = sum(side.size - unread for side in sides)
        if not form.length.fits(row, size):
            continue
        excess = math.ceil(max(size - form.length.seq_len, 0) / 2)
        shortened = [text for side in sides if (text := side.without_beginning(excess))]
        if len(shortened) < len(sides):
            form.length.count -= 1  # left out, and not cut
            notes.skip(f'whose completions alone have more than data.seq_len = {form.length.seq_len} tokens', row)
            continue
        notes.count(pair.form, row, pair.chosen, (*SIDES, 'margin') if margins else SIDES)
        templated |= bool(pair.chosen.messages)
        with_margin += 'margin' in row.fields
        for index, side in enumerate(shortened):
            values = {'scored': np.int32(1 + index)} | ({'margin': np.float32(margin)} if margins else {})
            examples.append(example_of(number, side, values))
    lines = notes.lines() + ([f'{with_margin} rows have a margin'] if with_margin and margins else [])
    return Encoded(examples, lines, templated)


def example_of(source: int, text: EncodedCompletion, values: dict) -> Example:
    """A text as an example, with the column `loss_mask` of each token: 1 if the next one is part of the completion."""
    trained = [False] * len(text.prompt) + text.trained
    mask = np.array([*trained[1:], False], np.float32)
    return Example(source, np.array(text.prompt + text.completion, np.int32), {'loss_mask': mask}, values)


def dialogue(row: Row, text: tuple[str, ...], label: str, template: Template | None) -> Conversation:
    """The chosen side of a row."""
    return preferences.read_pair(row, template).chosen


def check_fields(form: RowFormat, names: str) -> None:
    """Raises InputError if config.task.text or label is set: the fields of preferences have fixed names."""
    for field, value in (('text', form.text), ('label', form.label)):
        if value:
            raise InputError(f'config.task.{field} is {value!r}; leave it empty: the fields are {names}')


def margin_of(row: Row) -> float:
    """The field `margin` of a row, 0 without one. Raises InputError if it is not a finite number."""
    margin = row.fields.get('margin')
    try:
        value = 0.0 if margin is None else float(margin)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or isinstance(margin, bool):
        raise InputError(f"{row.place}: 'margin' is {margin!r}; it must be a finite number")
    return value


def legend(batch: Batch) -> str:
    """Explanation of the annotations in the preview of a batch."""
    return 'chosen> and rejected> precede the two texts of a pair, ~ is padding'


def render(tokenizer: Tokenizer, batch: Batch, row: int, labels: tuple[str, ...] = ()) -> str:
    """One row of a batch, each text after the name of its side."""
    segments = batch['segment_ids'][row]
    begins = np.flatnonzero((segments > 0) & (batch['positions'][row] == 0))
    before = {int(at): f' {SIDES[(segments[at] - 1) % 2]}> ' for at in begins}
    return render_row(tokenizer, batch, row, before)
