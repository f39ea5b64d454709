"""Soft prompts: P learned embeddings before the text (arXiv 2104.08691), directly or through a small network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.adapt.adapter import Adapter, key_of
from lmtrain.errors import InputError
from lmtrain.models.virtual_tokens import materialise

TRAINABLE = r'prompt/.*'
INITS = ('random', 'vocab', 'text')


def adapter(
    *, length: int, init: str = 'vocab', ids: Sequence[int] = (), hidden: int = 0, scale: float = 1.0
) -> Adapter:
    """`prompt/embedding` float32 [P, D], P = `length`, at positions 0 .. P-1 of every row; the text begins at P.

    Args:
      init: 'random', of the embeddings' own standard deviation (PEFT's N(0, 1) is some 50 times that and learns far
        worse) | 'vocab', rows of the embedding drawn with replacement | 'text', those of `ids`, repeated or cut to P.
      hidden: width of the network that makes the prompt (P-tuning, arXiv 2103.10385), two layers of ReLU deep, which
        `fold` replaces by its output; 0 is none.
      scale: what the model multiplies its embeddings by (Gemma); a prompt stands beside what comes out.

    Raises ValueError where an argument is out of range or contradicts another; at `extend` for an id beyond the table.
    """
    if length < 1 or hidden < 0:
        raise InputError(f'prompt.length={length} must be at least 1, and prompt.hidden={hidden} at least 0')
    if init not in INITS:
        raise InputError(f'prompt.init={init!r} is none of {", ".join(INITS)}')
    if (init == 'text') != bool(len(ids)):
        raise InputError(f"prompt.init={init!r} with {len(ids)} ids of a text: 'text' and the text come together")
    if hidden and init == 'text':
        raise InputError("prompt.hidden with prompt.init='text': a network does not give the text's embeddings back")

    def extend(rng, params):
        table_VD = params['embed']['embedding']
        V, D = table_VD.shape
        key = key_of(rng, 'prompt')
        if init == 'random':
            x_PD = jnp.std(table_VD.astype(jnp.float32)) * jax.random.normal(key, (length, D))
        else:
            index_P = jax.random.randint(key, (length,), 0, V) if init == 'vocab' else np.resize(ids, length)
            if init == 'text' and not 0 <= min(ids) <= max(ids) < V:
                raise InputError(f'prompt.ids reach from {min(ids)} to {max(ids)}, but the embedding has {V} rows')
            x_PD = table_VD[index_P].astype(jnp.float32)
        new = {'embedding': x_PD * scale}
        widths = [D, hidden, hidden, D] if hidden else []
        for i, (rows, columns) in enumerate(zip(widths, widths[1:], strict=False)):
            # He's, so that what comes out has the scale of what goes in.
            std = (2 / rows if i else 1 / rows) ** 0.5
            kernel = std * jax.random.normal(key_of(rng, f'prompt/mlp_{i}'), (rows, columns))
            new[f'mlp_{i}'] = {'kernel': kernel, 'bias': jnp.zeros(columns)}
        return {'prompt': new}

    return Adapter(extend, materialise)


def check_rows(segment_ids) -> None:
    """Raises ValueError where a row holds more than one document: a prompt stands before the first alone."""
    for row, ids in enumerate(np.asarray(segment_ids)):
        if len(np.unique(ids[ids > 0])) > 1:
            raise InputError(
                f'row {row} holds several documents, of which a soft prompt would reach the first alone: lay the rows '
                'out unpacked, or learn a prefix'
            )
