"""A state is restored bitwise on any devices, after a kill at any point of a save, or the reason is named."""

import errno
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lmtrain import checkpoint
from lmtrain.checkpoint import Checkpoints, Damaged, SaveFailed, manifest
from lmtrain.checkpoint import checkpoints as checkpoint_module
from lmtrain.runtime import faults
from lmtrain.training import state


class Moments(NamedTuple):
    count: Any
    mu: Any


class Empty(NamedTuple):
    pass


def shapes(tree):
    """As jax.eval_shape would give it, with the shardings the arrays have."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if isinstance(x, jax.Array) else None),
        tree,
    )


def bits(tree):
    return [(np.asarray(x).shape, str(np.asarray(x).dtype), np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def places(tree):
    return [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for shard in x.addressable_shards]


def small(step: int) -> dict:
    return {
        'step': jnp.int32(step),
        'trainable': {'kernel': jnp.full((8, 4), 1.5 * step), 'scale': jnp.full((3,), step, jnp.bfloat16)},
        'opt_state': (Moments(jnp.int32(step), jnp.arange(6.0).reshape(2, 3) * step), Empty()),
    }


def checkpoints(directory, **changes) -> Checkpoints:
    return Checkpoints(directory, **({'every_steps': 1, 'keep_last': 2, 'keep_best': 0} | changes))


def test_new_directory_restores_nothing(tmp_path):
    with checkpoints(tmp_path / 'a' / 'b') as manager:
        assert manager.restore(shapes(small(0))) is None


def noise(shape, dtype, seed):
    """Any bit pattern, not-a-numbers included."""
    size = (*shape, jnp.dtype(dtype).itemsize)
    drawn = np.random.default_rng(seed).integers(0, 2 if dtype == 'bool' else 256, size, np.uint8)
    return np.asarray(drawn.view(jnp.dtype(dtype))[..., 0])


LEAVES = st.builds(
    noise,
    st.sampled_from([(), (1,), (3,), (0,), (2, 0, 3), (4, 5), (2, 1, 3)]),
    st.sampled_from(['float32', 'bfloat16', 'float16', 'int32', 'uint32', 'int8', 'bool']),
    st.integers(0, 9),
)
KEYS = st.text(st.characters(codec='utf-8', exclude_characters='/'), min_size=1, max_size=6)
TREES = st.recursive(
    LEAVES | st.just(Empty()) | st.none(),
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=3)
        | st.lists(inner, max_size=2)
        | st.tuples(inner, inner)
        | st.builds(Moments, inner, inner)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@hypothesis.settings(max_examples=15)
@hypothesis.given(tree=TREES, on_device=st.booleans())
def test_any_tree_is_restored_unchanged(tmp_path, tree, on_device):
    hypothesis.assume(any(leaf.size for leaf in jax.tree.leaves(tree)))
    shutil.rmtree(tmp_path)
    tree = jax.tree.map(jnp.asarray, tree) if on_device else tree
    with checkpoints(tmp_path) as manager:
        assert manager.save(tree, 3, {'tokens': 12, 'flops': 1e21})
        restored, extra = manager.restore(shapes(tree))
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert bits(restored) == bits(tree)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert extra == {'tokens': 12, 'flops': 1e21, 'step': 3}


@pytest.mark.filterwarnings('ignore:Sharding info not provided')  # of the plain reading below
def test_train_state_is_restored_and_readable_by_orbax_alone(tmp_path):
    params = {
        'layers': {'attention': {'query': {'kernel': jnp.ones((2, 4, 4))}}},
        'embed': {'embedding': jnp.ones((5, 4))},
    }
    saved = state.create(jax.random.key(1), params, '.*', optax.adamw(1e-3))
    with checkpoints(tmp_path) as manager:
        manager.save(saved, 7, {})
        restored, _ = manager.restore(jax.eval_shape(lambda: saved))
    assert isinstance(restored, state.TrainState)
    assert bits(restored) == bits(saved)

    import orbax.checkpoint as orbax

    plain = orbax.PyTreeCheckpointer().restore(tmp_path / '7' / 'state')
    np.testing.assert_array_equal(plain['trainable/layers/attention/query/kernel'], np.ones((2, 4, 4)))


@pytest.mark.parametrize(
    'tree, word',
    [
        ({'a': {'b': 1.0}}, 'a/b: float'),
        ({'key': jax.eval_shape(lambda: jax.random.key(0))}, 'key_data'),
        ({'a': np.zeros(2, np.float64)}, 'a: float64 would be restored as float32'),
        ({'a': np.zeros((0, 3), np.float32)}, 'nothing to save'),
        ({'a': {'b': np.zeros(2, np.int32)}, 'a/b': np.zeros(2, np.int32)}, "two leaves have the path 'a/b'"),
    ],
)
def test_leaf_that_cannot_be_restored_is_refused(tmp_path, tree, word):
    with checkpoints(tmp_path) as manager, pytest.raises((TypeError, ValueError), match=word):
        manager.save(tree, 1, {})


def test_counters_must_be_json(tmp_path):
    with checkpoints(tmp_path) as manager:
        with pytest.raises(ValueError, match='JSON'):
            manager.save(small(1), 1, {'tokens': float('nan')})
        with pytest.raises(TypeError, match='JSON'):
            manager.save(small(1), 1, {'tokens': np.int32(1)})


@pytest.mark.parametrize(
    'field, value', [('every_steps', 0), ('keep_last', 0), ('keep_best', -1), ('keep_last', 1.5), ('keep_best', True)]
)
def test_settings_are_checked(tmp_path, field, value):
    with pytest.raises(ValueError, match=f'checkpoint.{field}={value}'):
        checkpoints(tmp_path, **{field: value})


def test_next_step_may_reuse_buffers_during_a_save(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.5 - 7, tree), donate_argnums=0)
    numbers = np.random.default_rng(0).standard_normal((4, 512, 512), np.float32)
    host = numbers[0].copy()
    with checkpoints(tmp_path) as manager:
        for step in (1, 2, 3):
            tree = {f'w{i}': jnp.asarray(numbers[i]) + step for i in range(4)}
            before = bits(tree | {'host': host})
            taken = places(tree)
            manager.save(tree | {'host': host}, step, {})
            assert places(jax.block_until_ready(advance(tree))) == taken
            host += 1
            restored, _ = manager.restore(shapes(tree | {'host': host}))
            assert bits(restored) == before


def test_restored_arrays_can_be_donated(tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    tree = {
        'w': jax.device_put(jnp.arange(1024.0), NamedSharding(mesh, P('data'))),
        'b': jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh, P())),
    }
    with checkpoints(tmp_path) as manager:
        manager.save(tree, 1, {})
        restored, _ = manager.restore(shapes(tree))

    before = places(restored)
    after = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(restored)
    assert places(after) == before
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored))


def test_state_is_restored_bitwise_on_other_devices(tmp_path):
    def on(devices, shape, names, spec):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(shape), names)
        return NamedSharding(mesh, spec)

    places = {
        1: on(1, (1,), ('data',), P()),
        2: on(2, (2,), ('fsdp',), P('fsdp')),
        4: on(4, (2, 2), ('data', 'fsdp'), P('fsdp', 'data')),
        8: on(8, (4, 2), ('data', 'fsdp'), P(None, 'fsdp')),
    }
    way = (1, 2, 1, 4, 1, 8, 2, 4, 2, 8, 4, 8, 1)  # every pair in both directions
    tree = {'w': jax.random.normal(jax.random.key(0), (16, 8)), 'm': jax.random.bits(jax.random.key(1), (8, 4))}
    expected = bits(tree)
    for step, place in enumerate(places[devices] for devices in way):
        with checkpoints(tmp_path) as manager:
            tree = jax.device_put(tree, place) if step == 0 else tree
            manager.save(tree, step, {})
            target = jax.tree.map(lambda x, at=place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)
            tree, _ = manager.restore(target)
        assert all(leaf.sharding == place for leaf in jax.tree.leaves(tree))
        assert bits(tree) == expected


def test_last_and_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: None, 5: float('nan'), 6: 3.0, 7: 9.0, 8: float('inf')}
    left = {}
    with checkpoints(tmp_path, keep_last=2, keep_best=2) as manager:
        for step, loss in losses.items():
            manager.save(small(step), step, {}, metric=loss)
            manager.wait()
            left[step] = checkpoint.steps(tmp_path)
        assert not manager.save(small(8), 8, {})  # there already
    assert left == {
        1: [1],
        2: [1, 2],
        3: [2, 3],
        4: [2, 3, 4],
        5: [2, 3, 4, 5],
        6: [2, 5, 6],
        7: [2, 6, 7],
        8: [2, 6, 7, 8],
    }
    assert checkpoint.ranked(tmp_path) == [6, 2, 7]
    restored, extra = checkpoint.restore(tmp_path, shapes(small(0)), step='best')
    assert (extra['step'], int(restored['step'])) == (6, 6)
    assert checkpoint.restore(tmp_path, shapes(small(0)), step=2)[1]['step'] == 2
    with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 3; it has \[2, 6, 7, 8\]'):
        checkpoint.restore(tmp_path, shapes(small(0)), step=3)


def test_checkpoint_before_the_branch_is_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path, every_steps=2, keep_last=1, keep_best=0, branch=5) as manager:
        for step in (2, 4, 6, 8):
            manager.save(small(step), step, {})
    assert checkpoint.steps(tmp_path) == [4, 8]


def test_part_of_the_state_is_read_alone(tmp_path):
    with checkpoints(tmp_path) as manager:
        manager.save(small(4), 4, {})
    part = {'trainable': shapes(small(0))['trainable']}
    restored, _ = checkpoint.restore(tmp_path, part, partial=True)
    assert bits(restored) == bits(small(4)['trainable'])
    with pytest.raises(ValueError, match='opt_state/0/count'):
        checkpoint.restore(tmp_path, part)


def test_differences_are_named_and_nothing_is_cast(tmp_path):
    with checkpoints(tmp_path) as manager:
        manager.save(small(4), 4, {})
        target = shapes(small(0))
        target['trainable']['kernel'] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
        target['trainable']['scale'] = jax.ShapeDtypeStruct((3,), jnp.float32)
        target['trainable']['bias'] = jax.ShapeDtypeStruct((3,), jnp.float32)
        del target['step']
        with pytest.raises(ValueError) as caught:
            manager.restore(target)
    lines = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        'step: saved int32[], this run has no such leaf',
        'trainable/bias: saved no such leaf, this run has float32[3]',
        'trainable/kernel: saved float32[8, 4], this run has float32[8, 5]',
        'trainable/scale: saved bfloat16[3], this run has float32[3]',
    ]
    assert checkpoint.steps(tmp_path) == [4]  # it is whole: not set aside


# A process imports JAX once and forks a child for each point. The child saves steps 1 and 2, keeps one checkpoint, and
# is killed at the point of the second save. The exit codes are printed.
KILLED = """
import os, sys
import jax.numpy as jnp
from lmtrain.checkpoint import Checkpoints
for point in sys.argv[2:]:
    if not os.fork():
        os.environ['LMTRAIN_FAULT'] = f'{point}@2'
        manager = Checkpoints(f'{sys.argv[1]}/{point}', every_steps=1, keep_last=1, keep_best=0)
        for step in (1, 2):
            manager.save({'w': jnp.arange(100_000.) * step}, step, {'tokens': 10 * step})
            manager.wait()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """A folder with the checkpoints of every killed process, by the name of the point."""
    folder = tmp_path_factory.mktemp('killed')
    done = subprocess.run(
        [sys.executable, '-c', KILLED, str(folder), *faults.SAVE_POINTS],
        env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(faults.SAVE_POINTS), done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('point', faults.SAVE_POINTS)
def test_killed_at_any_point_nothing_committed_is_lost(killed, point):
    folder = killed / point
    committed = point in ('after_rename', 'in_retention')
    leftovers = [path.name for path in folder.glob('tmp.*')]
    if point == 'in_save':  # Orbax makes its folder on a thread of its own: it may be there already, or not yet
        assert leftovers in ([], ['tmp.2'])
    else:
        left = {'before_save': [], 'after_rename': [], 'in_retention': ['tmp.1.retired']}.get(point, ['tmp.2'])
        assert leftovers == left
    step = 2 if committed else 1
    with checkpoints(folder, keep_last=1) as manager:
        assert not list(folder.glob('tmp.*'))
        restored, extra = manager.restore({'w': jax.ShapeDtypeStruct((100_000,), jnp.float32)})
        assert extra == {'tokens': 10 * step, 'step': step}
        assert bits(restored) == bits({'w': jnp.arange(100_000.0) * step})
        assert manager.save(restored, step + 1, {})
    assert checkpoint.steps(folder) == [step + 1]


def test_full_disk_is_reported_and_leaves_older_checkpoints(tmp_path, caplog):
    big = {'w': jnp.asarray(np.random.default_rng(0).standard_normal(1_000_000, np.float32))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints(tmp_path) as manager:
        manager.save(big, 1, {})
        manager.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            manager.save(big, 2, {})
            with pytest.raises(SaveFailed, match=r'step 2 in .*File too large.* Intact checkpoints: 1\.') as caught:
                manager.wait()
            assert caught.value.__cause__ is not None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(tmp_path) == ['1']  # what was half-written no longer fills the disk
        manager.check_for_errors()  # raised once
        assert caplog.text == ''  # and not logged in addition
        assert manager.save(big, 3, {})
        manager.wait()
        assert checkpoint.steps(tmp_path) == [1, 3]


def test_failed_save_is_raised_at_the_next_check(tmp_path, monkeypatch):
    def full(folder, facts):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(manifest, 'write_manifest', full)
    manager = checkpoints(tmp_path)
    manager.save(small(1), 1, {})
    manager._commit.join()
    with pytest.raises(SaveFailed, match='No space left on device.*Intact checkpoints: none'):
        manager.check_for_errors()


def test_incomplete_first_save_is_a_new_start_but_damage_is_not(tmp_path, caplog):
    (tmp_path / 'tmp.5').mkdir()
    with checkpoints(tmp_path) as manager:
        assert manager.restore(shapes(small(0))) is None
        manager.save(small(1), 1, {})
        manager.wait()
        (tmp_path / '1' / 'manifest.json').write_bytes(b'')
        for _ in range(2):  # nor at the start after the one that set it aside
            with (
                caplog.at_level(logging.ERROR),
                pytest.raises(Damaged, match=r'no intact checkpoint is left \(1.corrupt'),
            ):
                manager.restore(shapes(small(0)))
    assert os.listdir(tmp_path) == ['1.corrupt']


def test_reader_does_not_quarantine_a_damaged_checkpoint(tmp_path, caplog):
    with checkpoints(tmp_path) as manager:
        for step in (1, 2):
            manager.save(small(step), step, {}, metric=step)
    (tmp_path / '2' / 'state' / 'stray').write_bytes(b'')
    assert checkpoint.restore(tmp_path, shapes(small(0)))[1]['step'] == 1
    assert 'CHECKPOINT 2 IS DAMAGED' in caplog.text
    assert checkpoint.steps(tmp_path) == [1, 2]
    with pytest.raises(Damaged, match='stray: not part of this checkpoint'):
        checkpoint.restore(tmp_path, shapes(small(0)), step=2)


def test_orbax_logs_nothing(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG), checkpoints(tmp_path) as manager:
        manager.save(small(1), 1, {})
        manager.restore(shapes(small(0)))
    assert [record.message for record in caplog.records if record.name == 'absl'] == []
    assert capfd.readouterr() == ('', '')


def test_the_manifest_is_plain_json(tmp_path):
    with checkpoints(tmp_path) as manager:
        manager.save(small(1), 1, {'tokens': 5}, metric=2.5)
    read = json.loads((tmp_path / '1' / 'manifest.json').read_text())
    assert (read['step'], read['metric'], read['extra']) == (1, 2.5, {'tokens': 5})
    assert read['leaves']['trainable/scale'] == {'shape': [3], 'dtype': 'bfloat16'}
    assert all(set(entry) == {'bytes', 'sha256'} for entry in read['files'].values())


NAMES = ['lr[1e-3]', 'a*b?c', '[a]/[b]', 'a b', 'ü漢🙂', 'new\nline', 'a%20b#c', '-x', 'x' * 200]
NAMES += [os.fsdecode(b'latin \xe9'), os.fsdecode(b'[\xff]/a')]


@pytest.mark.parametrize('name', NAMES)
def test_folder_may_have_any_name(name, tmp_path):
    with Checkpoints(tmp_path / name, 1, keep_last=2, keep_best=0) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(small(step), step, {})
    restored, extra = checkpoint.restore(tmp_path / name, shapes(small(0)))
    assert extra == {'step': 2} and bits(restored) == bits(small(2))
    assert [path.name for path in tmp_path.iterdir()] == [name.split('/')[0]]


def test_folder_may_be_a_link_or_relative(tmp_path, monkeypatch):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    monkeypatch.chdir(tmp_path)
    for step, name in enumerate(('link', './real', str(tmp_path / 'link')), 1):
        with Checkpoints(name, 1, keep_last=3, keep_best=0) as checkpoints:
            assert checkpoints.save(small(step), step, {})
    assert checkpoint.steps('real') == [1, 2, 3]
    assert bits(checkpoint.restore('link', shapes(small(0)))[0]) == bits(small(3))


def test_link_of_a_killed_process_and_link_that_cannot_be_created(tmp_path, monkeypatch):
    folder = tmp_path / 'lr[1e-3]'
    with Checkpoints(folder, 1, 1, 0) as checkpoints:
        assert checkpoint_module.plain_name(folder) == checkpoint_module.plain_name(
            folder
        )  # as a killed process leaves it
        checkpoints.save(small(1), 1, {})
    monkeypatch.setattr(pathlib.Path, 'symlink_to', lambda *_: (_ for _ in ()).throw(PermissionError(1, 'no links')))
    with pytest.raises(PermissionError, match=r'lr\[1e-3\]: such a name needs a link .*no links.*another --workdir'):
        Checkpoints(folder, 1, 1, 0)


def test_checkpoint_without_index_is_not_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, 'plain_name', lambda directory: directory)  # then Orbax merges nothing
    folder = tmp_path / 'lr[1e-3]'
    checkpoints = Checkpoints(folder, 1, 1, 0)
    checkpoints.save(small(1), 1, {})
    with pytest.raises(SaveFailed, match='saving the checkpoint of step 1 .* failed'):
        checkpoints.wait()
    assert list(folder.iterdir()) == []


def test_index_without_an_array_is_an_error(tmp_path):
    with Checkpoints(tmp_path, 1, 1, 0) as checkpoints:
        checkpoints.save(small(1), 1, {})
    manifest.check_index(tmp_path / '1' / 'state', ['step', 'trainable/kernel', 'opt_state/0/mu'])
    with pytest.raises(OSError, match="lacks 'trainable/bias', 2 arrays in all"):
        manifest.check_index(tmp_path / '1' / 'state', ['step', 'trainable/bias', 'scale'])
