"""Does a run continue exactly if it moves to another number of devices or processes?

    python -m experiments.reshard

The tiny recipe is trained for a few steps on every topology and saved there, and every checkpoint is restored on every
topology. Several processes are real ones on this machine, their devices simulated.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

from experiments import record

# name: (processes, devices of each, the mesh)
TOPOLOGIES = {
    '1x1': (1, 1, {}),
    '1x2': (1, 2, {'fsdp': 2}),
    '1x4': (1, 4, {'fsdp': 2, 'tensor': 2}),
    '1x8': (1, 8, {'data': 2, 'fsdp': 2, 'tensor': 2}),
    '2x1': (2, 1, {'data': 2}),
    '2x2': (2, 2, {'fsdp': 4}),
    '2x4': (2, 4, {'fsdp': 4, 'tensor': 2}),
    '2x8': (2, 8, {'data': 2, 'fsdp': 4, 'tensor': 2}),
}
TRAINED, AFTER = 5, 4  # steps before the checkpoint, and after it
LIMIT = 300  # seconds that a process may take


class Trainer:
    """The tiny recipe on one topology; one of its processes."""

    def __init__(self, folder: pathlib.Path, topology: str):
        from configs import tiny
        from lmtrain.parallel import sharding
        from lmtrain.training import build, resolve

        config = tiny.get_config()
        config.data.source, config.data.cache = str(folder / 'text'), str(folder / 'cache')
        config.data.validation = 0.2
        config.model.vocab_size = 384  # bytes, padded to what every mesh divides
        config.mesh.update({'data': 1} | TOPOLOGIES[topology][2])
        self.run = build.build(*resolve.resolve(config))
        self.step, self.stream = self.run.train_step(), self.run.train_stream()
        self.put = sharding.place(self.run.mesh)

    def go(self, state, first: int, count: int):
        """(state, hashes of the global batches, losses, share of the state's buffers that the first step reused)."""
        import jax
        import numpy as np

        from lmtrain import data

        batches, losses, donated = [], [], None
        for number in range(first, first + count):
            batch = self.put(self.stream.batch(number))
            batches.append(data.batch_hash(whole(batch)))
            previous, before = state, places(state)
            state, measured = self.step(state, batch, np.float32(number / 20))
            losses.append(float(jax.block_until_ready(measured)['loss']))
            if donated is None:
                # A buffer may be handed to another leaf of the same shape, and is reused no less.
                after = places(state)
                donated = {
                    'deleted': all(leaf.is_deleted() for leaf in jax.tree.leaves(previous)),
                    'reused': sum(after[place] for place in after if place in before) / sum(after.values()),
                }
        return state, batches, losses, donated


def places(tree) -> dict[int, int]:
    """{address: bytes} of the buffers of a tree on this process's devices."""
    import jax

    shards = [shard.data for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return {shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}


def whole(tree):
    """The tree with the whole of every array, on every process."""
    import jax
    from jax.experimental import multihost_utils

    return jax.device_get(tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True))


def hashes(state) -> dict[str, str]:
    """{path: sha256 of dtype, shape and bytes} of every leaf."""
    import jax
    import numpy as np

    leaves = jax.tree_util.tree_flatten_with_path(whole(state))[0]
    return {
        jax.tree_util.keystr(path): hashlib.sha256(
            f'{leaf.dtype} {leaf.shape}'.encode() + np.ascontiguousarray(leaf).tobytes()
        ).hexdigest()
        for path, leaf in leaves
    }


def work(folder: pathlib.Path, topology: str, index: int, port: int, phase: str) -> None:
    """One process of a topology: trains and saves, or restores what all of them saved."""
    import jax

    from lmtrain import checkpoint

    processes, devices, _ = TOPOLOGIES[topology]
    jax.config.update('jax_num_cpu_devices', devices)
    jax.config.update('jax_compilation_cache_dir', str(folder / 'programs'))
    if processes > 1:
        address = f'127.0.0.1:{port}'
        jax.distributed.initialize(
            address, processes, index, coordinator_bind_address=address, initialization_timeout=60
        )
    trainer = Trainer(folder, topology)
    results = []
    for source in TOPOLOGIES if phase == 'restore' else [topology]:
        with checkpoint.Checkpoints(folder / 'kept' / source, 1, 1, 0) as checkpoints:
            if phase == 'save':
                state, *_, fresh = trainer.go(trainer.run.initial.on_mesh(), 0, TRAINED)
                at = hashes(state)
                checkpoints.save(trainer.run.initial.stored(state), TRAINED, {})
                checkpoints.wait()
                begun = TRAINED
            else:
                state, extra = checkpoints.restore(trainer.run.initial.stored(trainer.run.shapes))
                at, begun = hashes(state), extra['step']
        last, batches, losses, again = trainer.go(state, begun, AFTER)
        result = {'from': source, 'to': topology, 'state': at, 'batches': batches, 'losses': losses}
        results.append(
            result | {'last': hashes(last), 'donated': again} | ({'fresh': fresh} if phase == 'save' else {})
        )
    if index == 0:
        (folder / f'{phase}-{topology}.json').write_text(json.dumps(results), encoding='utf-8')
    if processes > 1:
        jax.distributed.shutdown()


def started(folder: pathlib.Path, topology: str, phase: str) -> list[dict]:
    """The results of the processes of a topology. Raises RuntimeError with the output of a process that fails."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith('_proxy')}
    environment['JAX_PLATFORMS'] = 'cpu'
    with contextlib.ExitStack() as stack:
        running = []
        for index in range(TOPOLOGIES[topology][0]):
            words = stack.enter_context(open(folder / f'{phase}-{topology}-{index}.txt', 'w+', encoding='utf-8'))
            command = [sys.executable, '-m', 'experiments.reshard', str(folder), topology, str(index), str(port), phase]
            running.append(
                (
                    subprocess.Popen(command, cwd=record.ROOT, env=environment, stdout=words, stderr=subprocess.STDOUT),
                    words,
                )
            )
        try:
            for process, words in running:
                if process.wait(LIMIT):
                    words.seek(0)
                    raise RuntimeError(f'{topology}, {phase}: exit {process.returncode}\n{words.read()[-3000:]}')
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
    return json.loads((folder / f'{phase}-{topology}.json').read_text(encoding='utf-8'))


def compared(saved: dict, restored: dict) -> dict:
    """One trial: what a restored run has of what the run had that saved."""
    losses = zip(saved['losses'], restored['losses'], strict=True)
    return {
        'from': restored['from'],
        'to': restored['to'],
        'leaves': len(saved['state']),
        'leaves_equal': sum(saved['state'][path] == restored['state'].get(path) for path in saved['state']),
        'batches_equal': saved['batches'] == restored['batches'],
        'loss_difference': max(abs(one - other) / one for one, other in losses),
        'end_equal': saved['last'] == restored['last'],
        **restored['donated'],
    }


def counted(what: str, good: list[bool], figure: str = '') -> dict:
    return {
        'what': what,
        'figure': f'{sum(good)} of {len(good)}{figure}',
        'target': 'all',
        'reached': all(good),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        record.write_text(folder)
        saved, trials = {}, []
        for topology in TOPOLOGIES:
            saved[topology] = started(folder, topology, 'save')[0]
            print(f'saved on {topology}', flush=True)
        for topology in TOPOLOGIES:
            for restored in started(folder, topology, 'restore'):
                trials.append(compared(saved[restored['from']], restored))
                print(json.dumps(trials[-1]), flush=True)
    same = [trial for trial in trials if trial['from'] == trial['to']]
    fresh = {topology: one['fresh'] for topology, one in saved.items()}
    worst = max(trial['loss_difference'] for trial in trials)
    figures = [
        counted(
            f'pairs of topologies in which every restored leaf ({trials[0]["leaves"]}: parameters, moments, key, '
            'step, counters) is what was saved, by the SHA-256 of its bytes',
            [trial['leaves_equal'] == trial['leaves'] for trial in trials],
        ),
        counted(
            f'pairs in which the next {AFTER} global batches are those of the run that saved, in its order',
            [trial['batches_equal'] for trial in trials],
        ),
        {
            'what': f'loss of the next {AFTER} steps against the run that saved, worst of {len(trials)} pairs',
            'figure': f'{worst:.1e} relative',
            'target': '<= 1e-5',
            'reached': worst <= 1e-5,
        },
        counted(
            f'topologies restored onto themselves: the whole state {AFTER} steps later equal to the bit',
            [trial['end_equal'] for trial in same],
        ),
        counted(
            'restored states that the first step takes: every array deleted, and as large a share of the buffers '
            'reused as of a fresh state',
            [trial['deleted'] and trial['reused'] >= fresh[trial['to']]['reused'] for trial in trials],
            f' (share reused, least: {min(trial["reused"] for trial in trials):.0%}; '
            f'fresh: {min(one["reused"] for one in fresh.values()):.0%})',
        ),
    ]
    record.write(
        'reshard',
        command='python -m experiments.reshard',
        figures=figures,
        trials=trials,
        not_shown=['devices other than simulated ones, processes on several machines, and the axis `sequence`'],
        topologies={name: {'processes': p, 'devices': d, 'mesh': m} for name, (p, d, m) in TOPOLOGIES.items()},
        fresh=fresh,
    )


if __name__ == '__main__':
    if len(sys.argv) > 1:
        work(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
