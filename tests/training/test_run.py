"""Figures of a run: whether a step keeps its logits, bits per byte, FLOPs of a sweep, and passes over a mixture."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import tiny
from lmtrain.cost import hlo, memory
from lmtrain.models import lm_head
from lmtrain.tasks import TASKS
from lmtrain.training import evaluate
from lmtrain.training.build import build
from lmtrain.training.run import Run


def run_of(text, device_memory, **more):
    config = tiny.get_config()
    base = {'data.source': str(text), 'data.cache': str(text.parent / 'cache'), 'data.validation': 0.2}
    base |= {'model.dtype': 'bfloat16', 'model.vocab_size': 64_000, 'data.seq_len': 64, 'model.unroll': 1}
    config.update_from_flattened_dict(base | {'mesh.data': 1} | more)
    return build(config, devices=jax.devices()[:1], device_memory=device_memory)


def test_logits_are_kept_if_all_fits_in_half_of_the_memory(text):
    large = run_of(text, 10**12)
    size = large.memory['total']
    assert large.keep_logits and run_of(text, 2 * size).keep_logits
    for less in (run_of(text, 2 * size - 2), run_of(text, 0)):
        assert not less.keep_logits
        assert less.memory['activations'] < large.memory['activations']
    assert not run_of(text, 10**12, **{'model.dtype': 'float32'}).keep_logits
    assert build(large.config, devices=jax.devices()[:1]).keep_logits is False  # a CPU does not say what it has


@pytest.mark.slow
@pytest.mark.usefixtures('no_compilation_cache')
def test_compiled_memory_and_flops_are_the_computed_ones(text):
    """More memory and fewer products, and the same losses but for the rounding of the logits."""
    runs = {'kept': run_of(text, 10**12), 'twice': run_of(text, 0)}
    temporaries, flops, losses = {}, {}, {}
    for name, run in runs.items():
        (compiled,) = run.train_steps().values()
        flops[name] = hlo.compiled_flops(compiled)
        np.testing.assert_allclose(flops[name], run.flops_per_step.executed, rtol=0.01)
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes
        _, measured = compiled(run.initial.on_mesh(), run.train_stream().batch(0), np.float32(0.5))
        losses[name] = measured['loss'].item()
    assert flops['kept'] < flops['twice']
    elements = 8 * 64 * 64_000
    assert elements > lm_head.MAX_SAVED_LOGITS
    more = memory.logits_bytes(elements, 2, True) - memory.logits_bytes(elements, 2, False)
    # A CPU computes bfloat16 products in float32, from copies of their operands.
    assert 0.5 * more < temporaries['kept'] - temporaries['twice'] < 4 * more
    assert losses['kept'] == pytest.approx(losses['twice'], rel=1e-3)


SMALL = {'model.vocab_size': 257, 'model.dtype': 'float32'}


def test_bits_are_per_byte_and_not_per_token(text):
    run = run_of(text, 0, **SMALL)
    split = run.corpus.splits['train']
    assert split.num_tokens == split.num_bytes + split.num_documents  # each has an END
    bits = run.in_bits({'nats': 3 * math.log(2)})['bits_per_byte']
    assert bits == pytest.approx(3 * split.num_tokens / split.num_bytes) and bits > 3


@pytest.mark.parametrize(('rate', 'length', 'hidden'), [(0.15, 52, 8), (0.15, 58, 9), (0.2, 64, 13)])
def test_num_predicted_is_the_number_of_masked_positions(text, rate, length, hidden):
    over = {'model.causal': False, 'data.mask_rate': rate, 'data.seq_len': length, 'model.vocab_size': 258}
    run = run_of(text, 0, **SMALL | over)
    assert run.num_predicted == hidden == run.stream('train').batch(0)['select'].shape[1]


def test_only_one_micro_batch_is_in_memory(text):
    once, four = (run_of(text, 0, **SMALL | {'optimizer.accumulate': count}).memory for count in (1, 4))
    assert once['activations'] == pytest.approx(4 * four['activations'], rel=0.3)


def test_pass_over_a_mixture_is_divided_by_its_shares(text, tmp_path):
    (tmp_path / 'more.txt').write_text('more text to learn from ' * 2000)
    run = run_of(text, 0, **SMALL | {'data.mix': ((str(tmp_path / 'more.txt'), 0.25),), 'data.seq_len': 16})
    passes = evaluate.passes(run, 'validation', 5)
    assert [(share, stream.steps_per_epoch) for share, stream in passes.values()] == [(0.8, 4), (0.2, 1)]
    assert [stream.steps_per_epoch for _, stream in evaluate.passes(run, 'validation', 1).values()] == [1, 1]
    assert all(stream.steps_per_epoch > 4 for _, stream in evaluate.passes(run, 'validation').values())


def test_flops_of_a_sweep_are_those_of_all_members(text):
    alone = run_of(text, 0, **SMALL).flops_per_step
    three = run_of(text, 0, **SMALL | {'sweep.seeds': (1, 2, 3)}).flops_per_step
    assert three == tuple(3 * part for part in alone)


def test_batch_uses_the_step_of_its_length():
    steps = {4: lambda *call: 'short', 16: lambda *call: 'long'}
    step = Run.train_step(SimpleNamespace(train_steps=lambda: steps))
    assert [step(None, {'tokens': np.zeros((2, length))}, 0.0) for length in (16, 4)] == ['long', 'short']


def test_epoch_of_a_policy_is_a_pass_over_its_prompts():
    """40 prompts, 4 for each rollout of 16 completions, which are trained in 2 epochs of steps of 8 rows."""
    config = tiny.get_config()
    config.policy.update(prompts=4, samples=4, epochs=2)
    config.data.batch_size = 8
    corpus = SimpleNamespace(examples={'train': SimpleNamespace(source=np.arange(40))})
    run = Run(config, TASKS['policy'], *[None] * 5, corpus)
    assert run.steps_per_rollout == 4 and run.steps_per_epoch == 40


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize(
    'method',
    ['full', 'lora', pytest.param('prompt', marks=pytest.mark.slow), pytest.param('layers', marks=pytest.mark.slow)],
)
def test_memory_of_a_step_is_within_15_percent(text, method):
    """Arguments and temporaries of unrolled layers in float32. Scanned layers keep more."""
    sizes = {'model.vocab_size': 512, 'model.width': 64, 'model.mlp_dim': 256, 'model.num_layers': 4, 'model.unroll': 4}
    more = {'model.dtype': 'float32', 'data.seq_len': 128, 'model.max_len': 160, 'data.isolate': False}
    more |= {'adapt.method': method, 'adapt.layers.last': 1 if method == 'layers' else 0}
    run = run_of(text, 0, **sizes, **more)
    (compiled,) = run.train_steps().values()
    assert run.memory['total'] == pytest.approx(hlo.compiled_bytes(compiled), rel=0.15)
    assert run.cost_per_step['executed_flops'] == pytest.approx(hlo.compiled_flops(compiled), rel=0.05)


def test_memory_is_that_of_the_longest_batches_of_padded_rows(text, tmp_path):
    """A data.seq_len far above the rows costs nothing, so that a recipe may take rows of any usual length."""
    rows = ''.join(f'{"x" * (1 + 5 * (i % 4))} {i},{"ab"[i % 2]}\n' for i in range(40))
    (tmp_path / 'rows.csv').write_text(f'text,label\n{rows}')
    task = {'task.name': 'classify', 'task.train': (str(tmp_path / 'rows.csv'),), 'task.text': ('text',)}
    task |= {'task.label': 'label', 'data.tokenizer': 'bytes'}
    short, long = (run_of(text, 0, **SMALL, **task, **{'data.seq_len': length}) for length in (32, 1024))
    assert short.longest == long.longest == 24 == max(long.batch_shapes())
    assert short.memory == long.memory and short.tokens_per_step == long.tokens_per_step
    assert run_of(text, 0, **SMALL).longest == 64
