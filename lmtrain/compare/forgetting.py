"""What a trained arm forgets: bits per byte of the base's own text, and its divergence from the base."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import data, tree
from lmtrain.compare.trials import Comparison
from lmtrain.errors import InputError
from lmtrain.models import Transformer, lm_head
from lmtrain.tasks import TASKS
from lmtrain.training.init_from import OF_HEADS
from lmtrain.training.load import LoadedModel

ROWS, LENGTH, BATCH_SIZE = 64, 256, 4  # of the validation text of the base


def own_text(comparison: Comparison) -> tuple[list[dict[str, np.ndarray]], str]:
    """(batches of the validation text of the base's pretraining, why there are none)."""
    config, model = comparison.model.config, comparison.model.model
    if config is None:
        return [], 'the text that the base was pretrained on is not known'
    if TASKS[config.task.name].reads_rows or not model.causal:
        return [], 'the base is no causal language model of a text'
    settings = config.data.to_dict() | {'tokenizer': str(comparison.base.tokenizer.absolute())}
    settings['seq_len'] = min(LENGTH, model.max_len // 2)  # virtual tokens have space before the text
    try:
        corpus = data.prepare(**settings, vocab_limit=model.vocab_size)
    except (InputError, FileNotFoundError) as error:
        return [], str(error)
    stream = data.Stream(corpus, 'validation', BATCH_SIZE, seed=0, shuffle=False, limit=ROWS // BATCH_SIZE)
    return [stream.batch(step) for step in range(stream.steps_per_epoch)], ''


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
