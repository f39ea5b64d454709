"""Whether a step keeps its logits: by the memory of a device, and as the compiler finds it."""

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain import cost, hlo
from lmtrain.assemble import assemble


def run_of(text, device_memory, **more):
    config = tiny.get_config()
    base = {'data.source': str(text), 'data.cache': str(text.parent / 'cache'), 'data.validation': 0.2}
    base |= {'model.dtype': 'bfloat16', 'model.vocab_size': 64_000, 'data.seq_len': 64, 'model.unroll': 1}
    config.update_from_flattened_dict(base | {'mesh.data': 1} | more)
    return assemble(config, jax.devices()[:1], device_memory)


def test_logits_are_kept_if_everything_takes_half_of_the_memory(text):
    kept = run_of(text, 10**12)
    size = kept.memory()['total']
    assert kept.keep_logits and run_of(text, 2 * size).keep_logits
    for less in (run_of(text, 2 * size - 2), run_of(text, 0)):
        assert not less.keep_logits
        assert less.memory()['activations'] < kept.memory()['activations']
    assert not run_of(text, 10**12, **{'model.dtype': 'float32'}).keep_logits
    assert assemble(kept.config, jax.devices()[:1]).keep_logits is False  # a CPU does not say what it has


def test_the_compiler_finds_what_the_arithmetic_says(text):
    """More memory and fewer products, and the same losses but for the rounding of the logits."""
    runs = {'kept': run_of(text, 10**12), 'twice': run_of(text, 0)}
    temporaries, flops, losses = {}, {}, {}
    for name, run in runs.items():
        (compiled,) = run.train_steps().values()
        flops[name] = hlo.compiled_flops(compiled)
        np.testing.assert_allclose(flops[name], run.flops_per_step.executed, rtol=0.01)
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes
        _, measured = compiled(run.initial_state(), run.train_stream().batch(0), np.float32(0.5))
        losses[name] = measured['loss'].item()
    assert flops['kept'] < flops['twice']
    elements = 8 * 64 * 64_000
    assert elements > cost.HEAD_WHOLE
    more = cost.logits_bytes(elements, 2, True) - cost.logits_bytes(elements, 2, False)
    # A CPU computes bfloat16 products in float32, from copies of their operands.
    assert 0.5 * more < temporaries['kept'] - temporaries['twice'] < 4 * more
    assert losses['kept'] == pytest.approx(losses['twice'], rel=1e-3)


@pytest.mark.parametrize(
    ('elements', 'keep', 'size'),
    [
        (2**22, False, 6 * 2**22),
        (2**22, True, 6 * 2**22),
        (2**24, False, 6 * 2**22),
        (2**26, False, 6 * 2**23),
        (2**26, True, 4 * 2**26),
    ],
)
def test_bytes_of_logits(elements, keep, size):
    assert cost.logits_bytes(elements, 2, keep) == size
