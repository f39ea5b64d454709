"""How much more than the minimum does each mesh exchange and hold, and is its loss that of one device?

    python -m experiments.sharding [--tpu=FOLDER]

Every program is the real train step, compiled in a process of its own: for so many simulated devices, or with libtpu
(the extra `plan`, or the FOLDER that holds it) for chips that are not here. Nothing but the factorings is executed.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys

from experiments import record

AXES = ('data', 'fsdp', 'tensor', 'sequence')
# 12 layers as GPT-2 small, wide enough for 256 devices along any one axis.
SHAPE = {
    'model.num_layers': 12,
    'model.width': 2048,
    'model.num_heads': 256,
    'model.num_kv_heads': 256,
    'model.head_dim': 8,
    'model.mlp_dim': 8192,
    'model.vocab_size': 32768,
    'model.unroll': 1,
    'model.remat': 'full',
    'model.dtype': 'bfloat16',
    'data.seq_len': 512,
}
KINDS = {  # name -> mesh of n devices
    'fsdp': lambda n: (1, n, 1, 1),
    'tensor': lambda n: (1, 1, n, 1),
    'fsdp x tensor': lambda n: (1, n // 4, 4, 1),
    'fsdp, data across 2 slices': lambda n: (2, n // 2, 1, 1),
    'fsdp x sequence': lambda n: (1, n // 4, 1, 4),
    'fsdp, Muon': lambda n: (1, n, 1, 1),
    'fsdp x tensor, Muon': lambda n: (1, n // 4, 4, 1),
}
CHIPS = (  # topology, accelerator type, slices, kinds
    ('v5e:4x4', 'v5litepod-16', 1, ('fsdp', 'tensor', 'fsdp x tensor', 'fsdp x sequence', 'fsdp x tensor, Muon')),
    ('v5e:4x4', 'v5litepod-16', 2, ('fsdp, data across 2 slices',)),
    ('v5e:16x16', 'v5litepod-256', 1, ('fsdp', 'fsdp x tensor')),
    ('v5p:4x4x4', 'v5p-128', 1, ('fsdp', 'tensor', 'fsdp x tensor')),
)
STEPS = 20
TINY = {'model.num_heads': 8, 'model.num_kv_heads': 8, 'model.head_dim': 4, 'model.vocab_size': 384}


def run_of(mesh, more, devices):
    from configs import tiny
    from lmtrain.training.build import build

    config = tiny.get_config()
    config.update_from_flattened_dict(more | {f'mesh.{axis}': size for axis, size in zip(AXES, mesh, strict=True)})
    return build(config, devices=devices)


def audit(kind, mesh, devices) -> dict:
    """Bytes of one program on one device."""
    from lmtrain import tree
    from lmtrain.cost import hlo, traffic

    more = {'data.batch_size': 4 * math.prod(mesh), 'optimizer.name': 'muon' if 'Muon' in kind else 'adamw'}
    run = run_of(mesh, SHAPE | more, devices)
    (lowered,) = run.lowered().values()
    compiled, text = hlo.partitioned(lowered)
    result, least = traffic.audit(text, run.mesh), traffic.minimum(run)
    (batch,) = run.batch_shapes().values()
    held = sum(
        tree.size(leaf) / leaf.size * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in [*tree.flatten(run.shapes.trainable).values(), *_leaves(run.shapes.opt_state), *batch.values()]
    )
    return {
        'mesh': mesh,
        'moved': {f'{kind} {axes}': size for (kind, axes), size in result.items()},
        'least': {f'{kind} {axes}': size for (kind, axes), size in least.items()},
        'ratio': sum(result.values()) / sum(least.values()),
        'arguments': compiled.memory_analysis().argument_size_in_bytes,
        'arguments_in_theory': held,
    }


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def losses(mesh, devices) -> list[float]:
    """The loss of each of STEPS AdamW steps in float32, and of a batch evaluated after them."""
    import numpy as np

    from lmtrain.parallel import sharding

    run = run_of(mesh, TINY | {'budget.steps': STEPS}, devices[: math.prod(mesh)])
    state, step, stream, put = run.initial.on_mesh(), run.train_step(), run.train_stream(), sharding.place(run.mesh)
    result = []
    for i in range(STEPS):
        state, measured = step(state, put(stream.batch(i)), np.float32(i / STEPS))
        result.append(measured['loss'].item())
    sums = run.eval_step()(state.params, put(run.stream('validation').batch(0)))
    return [*result, sums['loss'].item() / sums['targets'].item()]


def work(request: dict) -> dict:
    """In a process of its own: what `request` names."""
    import jax

    if request['what'] == 'losses':
        return {'mesh': request['mesh'], 'losses': losses(request['mesh'], jax.devices())}
    devices = jax.devices()
    if 'topology' in request:
        from jax.experimental import topologies

        slices = {'num_slices': request['slices']} if request['slices'] > 1 else {}
        devices = topologies.get_topology_desc(request['topology'], platform='tpu', **slices).devices
    return audit(request['kind'], request['mesh'], devices)


def in_a_process(request: dict, count: int, tpu: str = '') -> dict:
    """`work` in a new process with so many simulated devices; its stderr is searched for XLA's complaint."""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(count), 'TF_CPP_MIN_LOG_LEVEL': '0'}
    if 'topology' in request:
        environment |= {'TPU_ACCELERATOR_TYPE': request['type'], 'TPU_WORKER_HOSTNAMES': 'localhost'}
        environment |= {'TPU_WORKER_ID': '0', 'TPU_SKIP_MDS_QUERY': '1'}
        environment['PYTHONPATH'] = tpu
    command = [sys.executable, '-m', 'experiments.sharding', f'--work={json.dumps(request)}']
    done = subprocess.run(command, cwd=record.ROOT, env=environment, capture_output=True, encoding='utf-8')
    if done.returncode:
        raise SystemExit(f'{request} failed:\n{done.stderr[-3000:]}')
    result = json.loads(done.stdout.splitlines()[-1])
    result['rematerialization'] = 'Involuntary full rematerialization' in done.stderr
    shown = ('kind', 'mesh', 'topology', 'ratio')
    print({name: value for name, value in (request | result).items() if name in shown}, flush=True)
    return request | result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--tpu', default='')
    parser.add_argument('--work')
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(json.loads(arguments.work))))
        return
    simulated = [
        in_a_process({'what': 'audit', 'kind': kind, 'mesh': mesh(n)}, n)
        for n in (8, 64, 256)
        for kind, mesh in KINDS.items()
    ]
    chips = []
    for topology, accelerator, slices, kinds in CHIPS:
        n = slices * math.prod(map(int, topology.partition(':')[2].split('x')))
        for kind in kinds:
            request = {'what': 'audit', 'kind': kind, 'mesh': KINDS[kind](n), 'topology': topology}
            chips.append(in_a_process(request | {'type': accelerator, 'slices': slices}, 1, arguments.tpu))
    meshes = [mesh for mesh in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(mesh) == 8]
    one, *others = (in_a_process({'what': 'losses', 'mesh': mesh}, 8) for mesh in [(1, 1, 1, 1), *meshes])
    apart = {
        str(other['mesh']): max(abs(a - b) / b for a, b in zip(other['losses'], one['losses'], strict=True))
        for other in others
    }

    def ratio(what, trials, key=lambda trial: trial['ratio'], limit=1.05, digits=4):
        worst = max(map(key, trials))
        return {
            'what': what,
            'figure': f'{worst:.{digits}f} (worst of {len(trials)})',
            'target': f'<= {limit}',
            'reached': worst <= limit,
        }

    figures = [
        ratio(f'bytes exchanged over the least: {kind}, at 8, 64 and 256 simulated devices', result)
        for kind in KINDS
        if (result := [trial for trial in simulated if trial['kind'] == kind])
    ]
    figures += [
        ratio(f'the same with the TPU compiler, {topology}: {", ".join(sorted({t["kind"] for t in result}))}', result)
        for topology in dict.fromkeys(trial['topology'] for trial in chips)
        if (result := [trial for trial in chips if trial['topology'] == topology])
    ]
    warned = sum(trial['rematerialization'] for trial in simulated + chips)
    held = ratio(
        'bytes of arguments, compiler over theory',
        simulated + chips,
        lambda trial: trial['arguments'] / trial['arguments_in_theory'],
        1.02,
    )
    figures += [
        held,
        {
            'what': 'programs in which XLA complains of an involuntary full rematerialization',
            'figure': f'{warned} of {len(simulated + chips)}',
            'target': '0',
            'reached': not warned,
        },
        {
            'what': f'loss of {STEPS} AdamW steps and of an evaluation on each mesh of 8 devices over that of one '
            'device, float32: worst relative difference',
            'figure': f'{max(apart.values()):.1e} (of {len(apart)} meshes)',
            'target': '<= 1e-5',
            'reached': max(apart.values()) <= 1e-5,
        },
    ]
    record.write(
        'sharding',
        command='python -m experiments.sharding --tpu=FOLDER',
        figures=figures,
        trials=simulated + chips + [one, *others],
        not_shown=[
            'anything executed on several real devices: meshes are simulated, programs for chips are only compiled',
            'time: bytes are counted, not seconds',
        ],
    )


if __name__ == '__main__':
    main()
