"""Preference optimisation on completions with a label, desirable or not: KTO."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.data import preferences
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.data.preferences import EncodedCompletion, Notes, Unwritten
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.runtime import progress
from lmtrain.tasks import segments, token_preview
from lmtrain.tasks.pairs import check_fields, example_of
from lmtrain.tasks.segments import sides
from lmtrain.tasks.task import Encoded, RowFormat, Task

ALONE = 'alone in its split, without another completion for the KL estimate (give the split a second row)'


def kto(
    forward,
    batch,
    *,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    reference: str = 'cached',
):
    """desirable (1 - sigmoid(beta (r - z))), or undesirable (1 - sigmoid(beta (z - r))) for an undesirable completion.

    r = log(pi(y|x) / ref(y|x)); z >= 0 estimates KL(pi || ref) from the prompts of a row of the batch with completions
    of other prompts, max(0, mean of r), and has no gradient. KTO (Ethayarajh et al., arXiv 2402.01306, equations 7 and
    8, and the estimate below them, whose microbatch is here the texts of one row: config.task.group).

    Args:
      forward, reference: see `preference.dpo`.
      batch: columns `segment_ids`, `loss_mask`, `targets`, and of S = 2 G segments, G texts each followed by its
        prompt with the completion of another: `scored`, `labels` float32 (1 is desirable), `label_weights` float32;
        `ref_logprob` if reference = 'cached'.
      desirable, undesirable: weights of the two kinds, which the paper sets so that the sums of both are similar.

    Returns:
      (values, weights), each [B, G]. Values: 'loss'; 'kl', z; 'rewards/accuracies', how often beta (r - z) has the sign
      of the label; 'rewards/signed', beta r for a desirable completion and -beta r for another.
    """
    own = segments.policy(forward, batch)
    ratio, mismatched = sides(own.logprob - segments.reference_logprob(forward, batch, reference))
    count = jnp.maximum(jnp.sum(sides(batch['scored'])[1] > 0, axis=1, keepdims=True), 1)
    kl = jax.lax.stop_gradient(jnp.maximum(jnp.sum(mismatched, axis=1, keepdims=True) / count, 0.0))
    label, weights = (sides(batch[name])[0] for name in ('labels', 'label_weights'))
    sign, weight = 2 * label - 1, jnp.where(label > 0, desirable, undesirable)
    values = {
        'loss': weight * jax.nn.sigmoid(-sign * beta * (ratio - kl)),
        'kl': jnp.broadcast_to(kl, ratio.shape),
        'rewards/accuracies': (sign * (ratio - kl) > 0).astype(jnp.float32),
        'rewards/signed': sign * beta * ratio,
    }
    return values, weights


def encode(rows: Sequence[Row], form: RowFormat) -> Encoded:
    """Groups of G = `form.group` rows: G texts, each followed by its prompt with the completion of another (`_other`).

    Columns: `loss_mask` per token; `scored`, 1 to 2 G; `labels` and `label_weights`, 0 for the second of each two. The
    last group is completed with rows of the one before it, of weight 0. Rows with a completion that is empty, or that
    the template does not write, are left out and counted, and so is the only row of a split that is not trained. A text
    may have data.seq_len / 2 G tokens.

    Raises InputError if one training row is left.
    """
    check_fields(form, 'prompt, completion and label')
    texts, notes, templated = _texts(rows, form)
    if len(texts) == 1 and form.training:
        raise InputError(
            f'{rows[texts[0][0]].place}: one training row is left of {len(rows)}; the KL estimate needs the completion '
            'of another: name more rows in config.task.train, or set data.validation and data.test lower'
        )
    if len(texts) == 1:
        notes.skip(ALONE, rows[texts[0][0]])
        notes.forms.clear()
        texts, templated, form.length.count = [], False, 0
    examples, size = [], form.group
    for begin in range(0, len(texts), size):
        first = max(min(begin, len(texts) - size), 0)
        members = [(first + offset) % len(texts) for offset in range(size)]
        for offset, member in enumerate(members):
            number, text, label = texts[member]
            other = _other([texts[each][1] for each in members], offset)
            weight = first + offset >= begin and first + offset < len(texts)
            for index, (one, counts) in enumerate([(text, weight), (_mismatched(text, other, _limit(form)), False)]):
                values = {'scored': np.int32(1 + 2 * offset + index), 'labels': np.float32(label and not index)}
                examples.append(example_of(number, one, values | {'label_weights': np.float32(counts)}))
    desirable = sum(label for *_, label in texts)
    counts = [f'{desirable} desirable, {len(texts) - desirable} undesirable completions'] if texts else []
    return Encoded(examples, [*notes.lines(), *counts], templated)


def _limit(form: RowFormat) -> int:
    """The tokens of a text, the last of which is only a target."""
    return form.length.seq_len // (2 * form.group) + 1


def _texts(rows: Sequence[Row], form: RowFormat) -> tuple[list[tuple[int, EncodedCompletion, bool]], Notes, bool]:
    """([(index of its row, text, label)], what was recognised, whether a template wrote any)."""
    texts, notes, templated, limit = [], Notes(), False, _limit(form)
    for number, row in enumerate(progress.each(rows, 'reading completions', len(rows))):
        name, dialogue, label = preferences.read_labelled(row, form.template)
        if preferences.is_empty(dialogue):
            notes.skip('with an empty completion', row)
            continue
        try:
            text = preferences.encode(dialogue, form.tokenizer, form.template, row.place)
        except Unwritten:
            notes.skip(Unwritten.NOTE, row)
            continue
        if text.size > limit and form.length.policy == 'error':
            raise InputError(
                f'{row.place}: {text.size - 1} tokens, and data.seq_len = {form.length.seq_len} holds '
                f'{2 * form.group} texts of {limit - 1} (config.task.group = {form.group}): set it higher, or '
                "config.task.too_long to 'cut' or 'drop'"
            )
        whole = text.size <= limit
        if not whole:
            text = text.without_beginning(text.size - limit) if form.length.policy == 'cut' else None
        if text is None:
            notes.skip(f'of more than {limit - 1} tokens', row)
            continue
        form.length.count += not whole
        notes.count(name, row, dialogue, ('completion', 'label'))
        templated |= bool(dialogue.messages)
        texts.append((number, text, label))
    return texts, notes, templated


def _other(group: Sequence[EncodedCompletion], index: int) -> EncodedCompletion:
    """The text before `index` in the circle of a group; of a file with several rows of a prompt, of another prompt."""
    before = [group[index - distance] for distance in range(1, len(group))]
    return next((each for each in before if each.prompt != group[index].prompt), before[0])


def _mismatched(text: EncodedCompletion, other: EncodedCompletion, limit: int) -> EncodedCompletion:
    """The prompt of `text`, cut at its beginning if necessary, with the completion of `other`."""
    mixed = other._replace(prompt=text.prompt)
    return mixed.without_beginning(max(mixed.size - limit, 0)) or other


def dialogue(row: Row, text: tuple[str, ...], label: str, template: Template | None) -> Conversation:
    """The conversation of a row."""
    return preferences.read_labelled(row, template)[1]


TASK = Task(
    name='unpaired',
    head='lm',
    columns=('targets', 'loss_mask', 'scored', 'labels', 'label_weights', 'ref_logprob'),
    losses={'kto': kto},
    peft_type='CAUSAL_LM',
    legend=token_preview.legend,
    render=token_preview.render,
    encode=encode,
    conversations=True,
    dialogue=dialogue,
    groups_rows=True,
    version=3,
)
