"""What a trained arm forgets: bits per byte of the base's own text, and its divergence from the base."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import data, tree
from lmtrain.compare.trials import Comparison, Trial
from lmtrain.data.corpus import TooShort
from lmtrain.errors import InputError
from lmtrain.models import Transformer, lm_head
from lmtrain.tasks import TASKS
from lmtrain.training.init_from import OF_HEADS
from lmtrain.training.load import LoadedModel

ROWS, LENGTH, BATCH_SIZE = 64, 256, 4  # of the text of the base


class OwnText(NamedTuple):
    """The text on which forgetting is measured.

    Attributes:
      batches: of it; [] if there is none.
      digest: identifies a text that the config names; '' is that of the run that pretrained the base.
      reason: why there is none; '' if there is one.
    """

    batches: list[dict[str, np.ndarray]]
    digest: str = ''
    reason: str = ''


def own_text(comparison: Comparison) -> OwnText:
    """The text of config.compare.base_text; without it, the validation text of the base's pretraining.

    Raises InputError if config.compare.base_text cannot be read or is shorter than a row.
    """
    config, model = comparison.model.config, comparison.model.model
    if not model.causal or model.head != 'lm' or config and TASKS[config.task.name].reads_rows:
        return OwnText([], reason='the base is no causal language model of a text')
    settings = {'tokenizer': str(comparison.base.tokenizer.absolute())}
    settings['seq_len'] = min(LENGTH, model.max_len // 2)  # virtual tokens have space before the text
    if comparison.config.compare.base_text:
        return _named(comparison.config, settings, model.vocab_size)
    if config is None:
        return OwnText([], reason='the text that the base was pretrained on is not known; set config.compare.base_text')
    try:
        corpus = data.prepare(**config.data.to_dict() | settings, vocab_limit=model.vocab_size)
    except (InputError, FileNotFoundError) as error:
        return OwnText([], reason=str(error))
    return OwnText(_batches(corpus, 'validation'))


def _named(config, settings: dict[str, Any], vocab_size: int) -> OwnText:
    """The text of config.compare.base_text, read as data.source is, with all of it in one split."""
    named, seq_len = config.compare.base_text, settings['seq_len']
    whole = {'source': named, 'mix': (), 'split': 'document', 'validation': 0.0, 'test': 0.0, 'isolate': True}
    whole |= {'mask_rate': 0.0, 'whole_word': False}
    try:
        corpus = data.prepare(**config.data.to_dict() | whole | settings, vocab_limit=vocab_size)
    except TooShort as error:
        raise InputError(
            f'config.compare.base_text={named!r} has {error.tokens} tokens of the base, and a row for forgetting has '
            f'{seq_len}: name a longer text'
        ) from None
    except (InputError, FileNotFoundError) as error:
        raise InputError(f'config.compare.base_text={named!r}, which is read as data.source: {error}') from None
    return OwnText(_batches(corpus, 'train'), corpus.fingerprint)


def _batches(corpus: data.Corpus, split: str) -> list[dict[str, np.ndarray]]:
    stream = data.Stream(corpus, split, BATCH_SIZE, seed=0, shuffle=False, limit=ROWS // BATCH_SIZE)
    return [stream.batch(step) for step in range(stream.steps_per_epoch)]


def record(comparison: Comparison, trial: Trial, trained: LoadedModel) -> dict[str, Any]:
    """{'forgetting': `measure` at the largest size, else None; 'forgetting_text': the digest of its text}."""
    is_largest = trial.size == comparison.sizes[-1]
    return {
        'forgetting': measure(comparison, trained) if is_largest else None,
        'forgetting_text': comparison.text_digest,
    }


def is_missing(comparison: Comparison, trial: Trial, recorded: Mapping[str, Any]) -> bool:
    """Whether a trial.json at the largest size lacks what `record` measures, or has it of another text."""
    if trial.size != comparison.sizes[-1] or not comparison.own_text:
        return False
    return recorded['forgetting'] is None or recorded.get('forgetting_text', '') != comparison.text_digest


def measure(comparison: Comparison, trained: LoadedModel) -> dict[str, float] | None:
    """{'bits_per_byte_before', 'bits_per_byte_after', 'kl'} of a trained model on the base's own text; None without.

    kl: the mean of KL(base || trained) over the next-token distributions, in nats.
    """
    if not comparison.own_text:
        return None
    base, params = comparison.model, language_model(comparison.model, trained)
    sums = [np.asarray(_sums(base.model, base.params, params, batch), np.float64) for batch in comparison.own_text]
    before, after, kl, count, num_bytes = sum(sums).tolist()
    bits = math.log(2) * num_bytes
    return {'bits_per_byte_before': before / bits, 'bits_per_byte_after': after / bits, 'kl': kl / count}


def language_model(base: LoadedModel, trained: LoadedModel) -> tree.Params:
    """The trained parameters with the base's language-model head in place of a head for the task.

    A task that is learned as text has trained the language-model head itself, and keeps it.
    """
    has_head = trained.config is None or TASKS[trained.config.task.name].has_classes
    dropped = OF_HEADS if has_head else OF_HEADS - {'head', 'mlm_head'}
    own = {path: x for path, x in tree.flatten(trained.params).items() if path.partition('/')[0] not in dropped}
    names = {_name(path) for path in own}
    return tree.unflatten({p: x for p, x in tree.flatten(base.params).items() if _name(p) not in names} | own)


def _name(path: str) -> str:
    """The first part of a path; that of a segment of layers, `layers_1`, is `layers`."""
    return re.sub(r'^layers_\d+$', 'layers', path.partition('/')[0])


@functools.partial(jax.jit, static_argnames='model')
def _sums(model: Transformer, base_params, params, batch):
    """float32 [5]: nats of the base, nats of the trained model, KL, targets, bytes.

    Log probabilities are computed for a chunk of positions at a time: of a large vocabulary, two [B, T, V] fill memory.
    """
    columns = {name: batch[name] for name in ('tokens', 'segment_ids', 'positions') if name in batch}
    both, V = {'base': base_params, 'trained': params}, model.vocab_size
    hidden = {name: model.apply({'params': own}, columns)['hidden'] for name, own in both.items()}
    kernels = {name: _kernel(model, own) for name, own in both.items()}

    def chunk(_, rows):
        log_p = {
            name: jax.nn.log_softmax(
                lm_head.logits(rows[name], kernel_DV, softcap=model.logit_softcap)[..., :V], axis=-1
            )
            for name, kernel_DV in kernels.items()
        }
        picked = [jnp.take_along_axis(each, rows['targets'][..., None], axis=-1)[..., 0] for each in log_p.values()]
        kl = jnp.sum(jnp.exp(log_p['base']) * (log_p['base'] - log_p['trained']), axis=-1)
        return None, (-picked[0], -picked[1], kl)

    elements = 2 * batch['targets'].size * V
    _, values = lm_head.scan_chunks(elements, chunk, None, hidden | {'targets': batch['targets']})
    mask_BT = batch['loss_mask']
    return jnp.stack([jnp.sum(each * mask_BT) for each in (*values, jnp.ones_like(mask_BT), batch['bytes'])])


def _kernel(model: Transformer, params):
    """The kernel of the language-model head, [D, V]."""
    return params['embed']['embedding'].T if model.tied else params['head']['kernel']
