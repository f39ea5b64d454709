"""A batch as a person reads it: its texts, and in them what is learned."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmtrain.data.tokenizers.base import Tokenizer

RUN, ROW = 240, 1200  # characters shown of a stretch that is learned or not, and of a row


def legend(batch: Mapping[str, np.ndarray]) -> str:
    """What the markers of `row_text` mean for this batch."""
    if 'select' in batch:
        return '[hidden>wanted] is predicted'
    if 'spans' in batch:
        return '[...] is the answer (the first token without one), {...} the context, ~ is padding'
    if 'labels' in batch and batch['labels'].ndim == 2:
        return '{...} is the tag of the word that begins before it, ~ is padding'
    if 'labels' in batch:
        return 'the label stands behind =>, ~ is padding'
    if learns_all(batch):
        return '| begins a document, ~ is padding, and every token predicts the next'
    return '| begins a document, ~ is padding, and what stands in [...] is learned'


def learns_all(batch: Mapping[str, np.ndarray]) -> bool:
    """Whether the loss is that of every real token."""
    mask = batch['loss_mask'] > 0
    return bool(mask[batch['segment_ids'] > 0].all()) if 'segment_ids' in batch else True


def render_row(tokenizer: Tokenizer, batch: Mapping[str, np.ndarray], row: int, labels: Sequence[str] = ()) -> str:
    """One row of a batch, what is learned marked as `marks` says; long stretches are shortened in their middle."""
    one = {name: values[row] for name, values in batch.items()}
    real = one['segment_ids'] > 0 if 'segment_ids' in batch else np.ones(len(one['tokens']), bool)
    real = one['loss_mask'] > 0 if 'segment_ids' not in batch and 'select' not in batch else real
    if 'targets' in one and 'select' not in one:
        pieces = _predicted(tokenizer, one, real, learns_all(batch))
    else:
        pieces = _marked(tokenizer, one, real, labels)
    pieces.append('~' * min(int((~real).sum()), 3))
    if 'labels' in one and one['labels'].ndim == 0 and real.any():
        label = one['labels'].item()
        pieces.append(f' => {labels[label] if labels else f"{label:g}"}')
    text = ''.join(pieces).replace('\n', '\\n').strip()
    return text if len(text) <= ROW else f'{text[:ROW]} ...'


def _predicted(tokenizer: Tokenizer, one: dict, real: np.ndarray, every: bool) -> list[str]:
    """Documents with what is predicted in brackets, the last target of each, which no row reads, among it."""
    pieces: list[str] = []
    begins = np.flatnonzero(real & (one['positions'] == 0)).tolist()
    for begin, end in zip(begins, [*begins[1:], int(real.sum())]):
        ids = [*one['tokens'][begin:end].tolist(), one['targets'][end - 1].item()]
        learned = np.concatenate([[False], one['loss_mask'][begin:end] > 0])
        pieces.append('|')
        if every:
            pieces.append(_short(_text(tokenizer, ids[:-1])))
            continue
        cuts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids) - (not learned[-1])]
        for start, stop in zip(cuts, cuts[1:]):
            text = _short(_text(tokenizer, ids[start:stop]))
            pieces.append(f'[{text}]' if learned[start] else text)
    return pieces


def _marked(tokenizer: Tokenizer, one: dict, real: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The tokens with what stands before or behind each of them."""
    before: dict[int, str] = {}
    behind: dict[int, str] = {}
    if 'select' in one:
        for at, wanted, counts in zip(one['select'].tolist(), one['targets'].tolist(), one['loss_mask']):
            if counts:
                before[at], behind[at] = '[', f'>{_text(tokenizer, [wanted])}]'
    elif 'spans' in one:
        context = np.flatnonzero(one['label_weights'])
        first, last = one['spans'].tolist()
        if len(context):
            before[int(context[0])], behind[int(context[-1])] = '{', '}'
        if first >= 0:
            before[first], behind[last] = before.get(first, '') + '[', ']' + behind.get(last, '')
    elif one['labels'].ndim:
        behind = {at: f'{{{labels[one["labels"][at]]}}}' for at in np.flatnonzero(one['label_weights']).tolist()}
    pieces, run = [], []

    def flush():
        pieces.append(_short(_text(tokenizer, run)))
        run.clear()

    for at, token in enumerate(one['tokens'][real].tolist()):
        if at in before:
            flush()
            pieces.append(before[at])
        run.append(token)
        if at in behind:
            flush()
            pieces.append(behind[at])
    flush()
    return pieces


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids inside a row: specials by their names, and no blank taken off."""
    named = (
        tokenizer.specials[token].encode() if token in tokenizer.specials else tokenizer.pieces[token] for token in ids
    )
    return b''.join(named).decode('utf-8', 'replace')


def _short(text: str) -> str:
    return text if len(text) <= RUN else f'{text[: RUN // 2]} ... {text[-RUN // 2 :]}'
