"""Soft prompts (arXiv 2104.08691) and P-tuning (arXiv 2103.10385): P trained embeddings before the text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.adapt.adapter import Adapter, key_of
from lmtrain.errors import InputError, wrong_choice
from lmtrain.models.virtual_tokens import materialise

TRAINABLE = r'prompt/.*'
INITS = ('random', 'vocab', 'text')

fold = materialise  # a network is replaced by its output


def adapter(
    *, length: int, init: str = 'vocab', ids: Sequence[int] = (), hidden: int = 0, scale: float = 1.0
) -> Adapter:
    """`prompt/embedding` float32 [P, D], P = `length`, at positions 0 .. P-1 of every row; the text begins at P.

    Args:
      init: 'random': normal with the standard deviation of the embedding (PEFT's N(0, 1) is about 50 times larger and
        trains far worse) | 'vocab': random rows of the embedding | 'text': the rows of `ids`, repeated or cut to P.
      hidden: width of the network that computes the prompt (P-tuning), with two ReLU layers; `fold` replaces it by its
        output. 0: no network.
      scale: the factor by which the model multiplies its embeddings (Gemma). The prompt is used after that product, so
        its initial values are multiplied here.

    Raises InputError if an argument is out of range or contradicts another; the adapter does for an id beyond the
    table.
    """
    if length < 1 or hidden < 0:
        raise InputError(
            f'adapt.prompt.length={length} must be at least 1, and adapt.prompt.hidden={hidden} at least 0'
        )
    if init not in INITS:
        raise wrong_choice('adapt.prompt.init', init, INITS)
    if (init == 'text') != bool(len(ids)):
        raise InputError(
            f"adapt.prompt.init={init!r} and {len(ids)} ids of adapt.prompt.text: init='text' and a text require "
            'each other'
        )
    if hidden and init == 'text':
        raise InputError(
            f"adapt.prompt.hidden={hidden} with adapt.prompt.init='text': a network does not output the text's "
            "embeddings at first; use hidden=0 or init='vocab'"
        )

    def new_leaves(rng, params):
        table_VD = params['embed']['embedding']
        V, D = table_VD.shape
        key = key_of(rng, 'prompt')
        if init == 'random':
            x_PD = jnp.std(table_VD.astype(jnp.float32)) * jax.random.normal(key, (length, D))
        else:
            index_P = jax.random.randint(key, (length,), 0, V) if init == 'vocab' else np.resize(ids, length)
            if init == 'text' and not 0 <= min(ids) <= max(ids) < V:
                raise InputError(
                    f'adapt.prompt.text has ids from {min(ids)} to {max(ids)}, but the embedding has {V} rows'
                )
            x_PD = table_VD[index_P].astype(jnp.float32)
        new = {'embedding': x_PD * scale}
        widths = [D, hidden, hidden, D] if hidden else []
        for i, (rows, columns) in enumerate(zip(widths, widths[1:], strict=False)):
            # He initialisation: the output has the scale of the input. The first layer's input has passed no ReLU.
            std = (2 / rows if i else 1 / rows) ** 0.5
            kernel = std * jax.random.normal(key_of(rng, f'prompt/mlp_{i}'), (rows, columns))
            new[f'mlp_{i}'] = {'kernel': kernel, 'bias': jnp.zeros(columns)}
        return {'prompt': new}

    return new_leaves
