"""How long does saving a checkpoint block the training loop?

python -m experiments.saving
"""

import statistics
import tempfile
import time

import jax
import numpy as np

from configs import pretrain_gpt2
from experiments import record
from lmtrain import checkpoint, optimizer
from lmtrain.models import Transformer
from lmtrain.training import state

SIZES = {'124M': ({}, 4), '11M': ({'num_layers': 6, 'width': 384, 'num_heads': 6, 'vocab_size': 1024}, 12)}


def trained(changes: dict):
    """A TrainState of GPT-2 with the moments of AdamW, noise in every float leaf: zeros would cost nothing to write."""
    config = pretrain_gpt2.get_config()
    config.model.update(changes)
    model, tx = Transformer(**config.model), optimizer.optimizer(**config.optimizer)

    def create(key):
        params = model.init(key, {'tokens': np.zeros((1, 8), np.int32)})['params']
        return state.create(key, params, '.*', tx)

    shapes, draw = jax.eval_shape(create, jax.random.key(0)), np.random.default_rng(0)

    def noise(leaf):
        drawn = draw.standard_normal(leaf.shape, np.float32) if leaf.dtype == np.float32 else 0
        return jax.device_put(np.full(leaf.shape, drawn, leaf.dtype))

    return jax.tree.map(noise, shapes)


def seconds(function):
    begun = time.monotonic()
    result = jax.block_until_ready(function())
    return time.monotonic() - begun, result


def measure(changes: dict, trials: int) -> list[dict]:
    whole = trained(changes)
    # Stands for the train step: it takes the state's buffers and touches every number, in a fraction of the time.
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x - x // 3, tree), donate_argnums=0)
    whole, rows = update(whole), []
    with tempfile.TemporaryDirectory() as folder, checkpoint.Checkpoints(folder, 1, 1, 0) as checkpoints:
        for step in range(trials + 1):
            usual, whole = seconds(lambda value=whole: update(value))
            copy, copied = seconds(lambda value=whole: [np.array(leaf) for leaf in jax.tree.leaves(value)])
            del copied
            save, _ = seconds(lambda value=whole, at=step: checkpoints.save(value, at, {}))
            after, whole = seconds(lambda value=whole: update(value))
            rest, _ = seconds(checkpoints.wait)
            one = {'copy': copy, 'save': save, 'usual_update': usual, 'update_after_save': after, 'rest': rest}
            rows.append(one | {'bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(whole))})
            print({name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    figures, trials = [], []
    for size, (changes, count) in SIZES.items():
        first, *warm = measure(changes, count)
        trials += [{'size': size, 'warm': one is not first, **one} for one in (first, *warm)]
        about = f'state of {first["bytes"] / 1e9:.2f} GB ({size} parameters and two moments)'
        with_next = [(one['save'] + max(0.0, one['update_after_save'] - one['usual_update'])) for one in warm]
        for what, blocked, target in (
            ('the call that saves over one copy of the state', [one['save'] for one in warm], 1.5),
            ('the same with what the next update lasts longer', with_next, None),
        ):
            ratios = [blocked / one['copy'] for blocked, one in zip(blocked, warm, strict=True)]
            middle = statistics.median(ratios)
            figures.append(
                {
                    'what': f'{about}: {what}, median of {len(warm)} (least, most)',
                    'figure': f'{middle:.2f} ({min(ratios):.2f}, {max(ratios):.2f}); '
                    f'{statistics.median(blocked):.3f} s',
                    'target': f'<= {target}' if target else '',
                    'reached': middle <= target if target else None,
                }
            )
    record.write(
        'saving',
        command='python -m experiments.saving',
        figures=figures,
        trials=trials,
        not_shown=[
            "accelerators, whose arrays Orbax copies to the host itself, and a real step beside a save's own threads"
        ],
    )


if __name__ == '__main__':
    main()
