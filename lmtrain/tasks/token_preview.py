"""How batches with targets are shown: what the loss counts is in brackets."""

import numpy as np

from lmtrain.data.preview import Batch, decode, join, real_tokens, render_row, shorten
from lmtrain.data.tokenizers.base import Tokenizer


def legend(batch: Batch) -> str:
    """Explanation of the annotations in the preview of this batch."""
    if 'select' in batch:
        return '[masked>target] is predicted'
    if _learns_all(batch):
        return '| begins a document, ~ is padding, and every token predicts the next'
    return '| begins a document, ~ is padding, and [...] is learned'


def render(tokenizer: Tokenizer, batch: Batch, row: int, labels: tuple[str, ...] = ()) -> str:
    """One row of the batch."""
    if 'select' in batch:
        return _masked(tokenizer, batch, row)
    real = real_tokens(batch, row)
    return join(_documents(tokenizer, batch, row, real), real)


def _learns_all(batch: Batch) -> bool:
    """Whether the loss counts every real token."""
    mask = batch['loss_mask'] > 0
    return bool(mask[batch['segment_ids'] > 0].all()) if 'segment_ids' in batch else True


def _documents(tokenizer: Tokenizer, batch: Batch, row: int, real: np.ndarray) -> list[str]:
    """Documents with what is predicted in brackets, including the last target of each, which is no token of the row."""
    tokens, targets, positions = (batch[name][row] for name in ('tokens', 'targets', 'positions'))
    pieces: list[str] = []
    begins = np.flatnonzero(real & (positions == 0)).tolist()
    for begin, end in zip(begins, [*begins[1:], int(real.sum())]):
        ids = [*tokens[begin:end].tolist(), targets[end - 1].item()]
        pieces.append('|')
        if _learns_all(batch):
            pieces.append(shorten(decode(tokenizer, ids[:-1])))
            continue
        learned = np.concatenate([[False], batch['loss_mask'][row, begin:end] > 0])
        cuts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids) - (not learned[-1])]
        for start, stop in zip(cuts, cuts[1:]):
            text = shorten(decode(tokenizer, ids[start:stop]))
            pieces.append(f'[{text}]' if learned[start] else text)
    return pieces


def _masked(tokenizer: Tokenizer, batch: Batch, row: int) -> str:
    """The tokens, those that are predicted with their targets."""
    before, after = {}, {}
    for position, target, counts in zip(*(batch[name][row].tolist() for name in ('select', 'targets', 'loss_mask'))):
        if counts:
            before[position], after[position] = '[', f'>{decode(tokenizer, [target])}]'
    return render_row(tokenizer, batch, row, before, after)
