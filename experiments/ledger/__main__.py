"""How near are FLOPs and memory by arithmetic to those of the compiled programs?

python -m experiments.ledger
"""

import os

os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}  # a cached program has no text

import pathlib  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs import base  # noqa: E402
from experiments import record  # noqa: E402
from lmtrain.cost import hlo  # noqa: E402
from lmtrain.cost.query import Query, query_flops  # noqa: E402
from lmtrain.models import Transformer, attention_kernels, kv_cache  # noqa: E402
from lmtrain.training.build import build  # noqa: E402
from lmtrain.training.resolve import resolve, with_stand_in_text  # noqa: E402

SMALL = {'num_layers': 4, 'width': 128, 'num_heads': 4, 'vocab_size': 512}
GPT2 = SMALL | {'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu', 'bias': True}
LLAMA = SMALL | {'num_kv_heads': 2, 'tied': False}
SMOLLM2 = {'num_layers': 30, 'width': 576, 'num_heads': 9, 'num_kv_heads': 3, 'mlp_dim': 1536, 'vocab_size': 49_152}
FORMS = {'gpt2': GPT2, 'llama': LLAMA}
METHODS = {
    'full': {},
    'lora': {},
    'prompt': {},
    'prompt of a network': {'prompt.hidden': 128},
    'prefix': {},
    'prefix of a network': {'prefix.hidden': 64},
    'layers': {'layers.last': 1},
    'norms': {},
}
LENGTHS = {128: 8, 256: 4}  # {tokens of a row: rows}
QUICK = {'xla_backend_optimization_level': 0}  # LLVM changes neither products nor buffers


def train_steps() -> Iterator[dict]:
    """Every method on two kinds of model, unrolled and scanned; then LoRA at the size of SmolLM2-135M."""
    for form, method, (length, rows) in ((f, m, each) for f in FORMS for m in METHODS for each in LENGTHS.items()):
        yield step(form, FORMS[form], method, length, rows, scanned=False)
    for form, method in ((form, method) for form in FORMS for method in ('full', 'lora', 'layers')):
        yield step(form, FORMS[form], method, 256, 4, scanned=True)
    yield step('smollm2', SMOLLM2, 'lora', 256, 2, scanned=True)


def step(form: str, model: dict, method: str, length: int, rows: int, scanned: bool) -> dict:
    """Arithmetic and compiler for one train step on one device, in float32."""
    config = base.get_config()
    config.data.update({'vocab_size': model['vocab_size'], 'seq_len': length, 'batch_size': rows, 'isolate': False})
    config.model.update(model | {'max_len': length + 32})
    if scanned:
        config.model.unroll = 1
    config.budget.steps, config.adapt.method = 10, method.partition(' ')[0]
    config.adapt.update_from_flattened_dict(METHODS[method])
    with tempfile.TemporaryDirectory() as folder:
        run = build(*resolve(with_stand_in_text(config, pathlib.Path(folder))), jax.devices()[:1], 0)
        (lowered,) = run.lowered().values()
        compiled = lowered.compile(QUICK)
        return {
            'program': 'train step',
            'model': form,
            'method': method,
            'length': length,
            'rows': rows,
            'scanned': scanned,
            'flops': [run.cost_per_step['executed_flops'], hlo.compiled_flops(compiled)],
            'bytes': [run.memory['total'], hlo.compiled_bytes(compiled)],
        }


def queries() -> Iterator[dict]:
    """Queries of SmolLM2-135M: 16 demonstrations of 60 tokens, a row of 40, and ten choices of 4 tokens."""
    defaults = base.get_config()
    defaults.model.update(SMOLLM2 | {'max_len': 2048, 'unroll': 1})
    model = Transformer(**defaults.model)
    tokens = {'tokens': np.zeros((1, 8), np.int32)}
    params = jax.eval_shape(lambda key: model.init(key, tokens)['params'], jax.random.key(0))
    row, shared, choices, length = 40, 960, 10, 4
    flops = query_flops(model, params, Query(row, shared))
    scored = query_flops(model, params, Query(row, shared, choices=(length + 1,) * choices))
    decoded = query_flops(model, params, Query(row, shared, generated=2))

    def read(rows: int, tokens: int, before: int, outputs: int) -> float:
        """FLOPs of the compiled program that reads tokens after the keys of others."""
        shape = jax.ShapeDtypeStruct((rows, tokens), np.int32)
        batch = {'tokens': shape, 'select': jax.ShapeDtypeStruct((rows, outputs), np.int32)}
        keys = jax.ShapeDtypeStruct((model.num_layers, rows, model.num_kv_heads, before, model.head_dim), np.float32)
        cache = {'key': keys, 'value': keys, 'length': jax.ShapeDtypeStruct((rows,), np.int32)}

        def apply(params, cache, batch):
            outputs = model.apply({'params': params}, batch, past=(cache,) if before else (), store=True)
            return outputs['cache'], outputs['logits']

        return hlo.compiled_flops(jax.jit(apply).lower(params, cache, batch).compile(QUICK))

    # By convention every query is multiplied by all keys; blocks of queries skip those that they do not see.
    attention_kernels.BLOCK = kv_cache.BLOCK = 2**20

    whole = shared + row
    for what, planned, compiled in (
        ('prompt read as one', flops.whole, read(1, whole, 0, 1)),
        ('row after cached demonstrations', flops.row, read(1, row, shared, 1)),
        ('choices after the cached prompt', scored.row - flops.row, read(choices, length, whole, length)),
        ('one generated token', decoded.decode, read(1, 1, whole, 1)),
    ):
        yield {'program': 'query', 'model': 'smollm2', 'method': what, 'flops': [planned, compiled]}


def furthest(what: str, trials: list[dict], key: str, tolerance: float) -> dict:
    """A row: the ratios of arithmetic to compiler, from the least to the most."""
    ratios = sorted(trial[key][0] / trial[key][1] for trial in trials)
    reached = max(abs(ratios[0] - 1), abs(ratios[-1] - 1)) <= tolerance
    text = f'{ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} programs'
    return record.row(what, text, f'within {100 * tolerance:.0f} %', reached)


def main() -> None:
    trials = [*train_steps(), *queries()]
    steps = [trial for trial in trials if trial['program'] == 'train step']
    unrolled, scanned = ([trial for trial in steps if trial['scanned'] == kind] for kind in (False, True))
    record.write(
        'ledger',
        command='python -m experiments.ledger',
        figures=[
            furthest('train steps, FLOPs by arithmetic over those of the compiler', steps, 'flops', 0.05),
            furthest(
                'queries of SmolLM2-135M, FLOPs by arithmetic over those of the compiler',
                [trial for trial in trials if trial['program'] == 'query'],
                'flops',
                0.05,
            ),
            furthest('unrolled layers, bytes by arithmetic over those of the compiler', unrolled, 'bytes', 0.15),
            furthest('scanned layers, bytes by arithmetic over those of the compiler', scanned, 'bytes', 0.15),
        ],
        trials=trials,
        not_shown=[
            'accelerators and bfloat16: their compilers keep other buffers (experiments/plans has those of TPUs)'
        ],
    )


if __name__ == '__main__':
    main()
