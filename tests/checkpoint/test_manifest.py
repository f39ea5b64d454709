"""Any damage to any file of a checkpoint is detected and named; it is quarantined, and the older one is used."""

import logging
import math
import os
import shutil

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lmtrain import checkpoint
from lmtrain.checkpoint import Checkpoints, Damaged, manifest

SHAPES = {'kernel': jax.ShapeDtypeStruct((64, 64), jnp.float32), 'step': jax.ShapeDtypeStruct((), jnp.int32)}


def state(step: int) -> dict:
    kernel = np.random.default_rng(step).standard_normal((64, 64), np.float32)
    return {'kernel': jnp.asarray(kernel), 'step': jnp.int32(step)}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A directory with the checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp('whole')
    with Checkpoints(directory, every_steps=1, keep_last=2, keep_best=0) as manager:
        for step in (1, 2):
            manager.save(state(step), step, {'tokens': step}, metric=1.0 / step)
    return directory


@pytest.fixture(scope='module')
def files(whole):
    """Every file of checkpoint 2, but the empty ones, which only some kinds of damage can touch."""
    files = sorted(path.relative_to(whole / '2') for path in (whole / '2').rglob('*') if path.is_file())
    assert len(files) >= 10
    return [path for path in files if (whole / '2' / path).stat().st_size]


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def truncate(path, rng):
    os.truncate(path, rng.integers(path.stat().st_size))


def zero_page(path, rng):
    content = bytearray(path.read_bytes())
    start = rng.integers(max(1, len(content) - 4096))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def delete(path, rng):
    path.unlink()


def empty(path, rng):
    path.write_bytes(b'')


def append(path, rng):
    path.write_bytes(path.read_bytes() + b'\n')


def link(path, rng):
    """The same bytes through a symbolic link to another place, which the checkpoint does not protect."""
    elsewhere = next(parent for parent in path.parents if parent.name == '2').with_name('elsewhere')
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize('damage', [flip, truncate, zero_page, delete, empty, append, link])
def test_damage_to_any_file_is_detected(whole, files, tmp_path, caplog, damage):
    rng = np.random.default_rng(0)
    for number, name in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        damage(directory / '2' / name, rng)
        expect_fall_back(directory, caplog, str(name))


def test_swapped_files_are_detected(whole, files, tmp_path, caplog):
    for number, (one, other) in enumerate(zip(files, files[1:] + files[:1], strict=True)):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        (directory / '2' / one).rename(directory / 'aside')
        (directory / '2' / other).rename(directory / '2' / one)
        (directory / 'aside').rename(directory / '2' / other)
        expect_fall_back(directory, caplog)


def test_file_of_another_step_is_detected(whole, files, tmp_path, caplog):
    older = {path.name: path for path in (whole / '1').rglob('*') if path.is_file()}
    stale = [name for name in files if name.name in older]
    assert len(stale) >= 5
    for number, name in enumerate(stale):
        directory = tmp_path / str(number)
        if older[name.name].read_bytes() != (whole / '2' / name).read_bytes():
            shutil.copytree(whole, directory)
            shutil.copy(older[name.name], directory / '2' / name)
            expect_fall_back(directory, caplog, str(name))


def test_checkpoint_of_another_step_is_detected(whole, tmp_path, caplog):
    shutil.copytree(whole / '1', tmp_path / '1')
    shutil.copytree(whole / '1', tmp_path / '2')
    expect_fall_back(tmp_path, caplog, 'is of step 1')


@pytest.mark.parametrize('folder', ['.', 'state', 'state/d'])
def test_additional_file_is_detected(whole, tmp_path, caplog, folder):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / '2' / folder / 'stray').write_bytes(b'')
    expect_fall_back(tmp_path, caplog, 'stray: not part of this checkpoint')


def expect_fall_back(directory, caplog, word=''):
    """Checkpoint 2 is set aside, with one line that holds `word`, and 1 is what is restored."""
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert manifest.first_intact(directory, 'last', quarantine=True) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and 'CHECKPOINT 2 IS DAMAGED' in lines[0] and word in lines[0], lines
    assert sorted(path.name for path in directory.iterdir() if path.is_dir()) == ['1', '2.corrupt']


def test_older_checkpoint_is_loaded_if_the_newest_is_damaged(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / '2' / 'state' / '_METADATA').unlink()
    with Checkpoints(tmp_path, every_steps=1, keep_last=2, keep_best=0) as manager:
        restored, extra = manager.restore(SHAPES)
        assert extra == {'tokens': 1, 'step': 1}
        np.testing.assert_array_equal(restored['kernel'], state(1)['kernel'])
        manager.save(state(2), 2, {})  # the step may be saved again, and damaged again
    (tmp_path / '2' / 'manifest.json').unlink()
    assert manifest.first_intact(tmp_path, 'last', quarantine=True) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2.corrupt', '2.corrupt.1']


@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data())
def test_any_changed_byte_is_detected(whole, files, tmp_path, data):
    folder = tmp_path / '2'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / '2', folder)
    path = folder / data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content)
    with pytest.raises(Damaged, match=path.name.replace('.', r'\.')):
        manifest.verify(folder)


@pytest.mark.parametrize(
    'content', [b'', b'{}', b'[]', b'null', b'\xff', b'{"sha256": 1}', b'[' * 100_000, b'{"sha256": "", "files": {}}']
)
def test_changed_manifest_is_damaged_or_equal(whole, tmp_path, content):
    shutil.copytree(whole / '2', tmp_path / '2')
    (tmp_path / '2' / 'manifest.json').write_bytes(content)
    with pytest.raises(Damaged, match=r'manifest\.json'):
        manifest.verify(tmp_path / '2')


def test_best_falls_back_to_the_next_best(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert checkpoint.ranked(tmp_path) == [2, 1]
    (tmp_path / '2' / 'state' / '_METADATA').unlink()
    assert checkpoint.restore(tmp_path, SHAPES, step='best')[1]['step'] == 1
    (tmp_path / '1' / 'manifest.json').unlink()
    with pytest.raises(Damaged, match='no intact checkpoint is left'):
        checkpoint.restore(tmp_path, SHAPES, step='best')


def test_newer_of_two_equal_metrics_is_better(tmp_path):
    with Checkpoints(tmp_path, every_steps=1, keep_last=3, keep_best=0) as manager:
        for step, metric in ((1, 0.5), (2, 0.25), (3, 0.25)):
            manager.save(state(step), step, {}, metric=metric)
    assert manifest.ranked(tmp_path) == [3, 2, 1]


def test_metric_that_is_added_later_is_finite(tmp_path):
    with Checkpoints(tmp_path, every_steps=1, keep_last=3, keep_best=0) as manager:
        for step, metric in ((1, 0.5), (2, math.nan), (3, 0.25)):
            manager.save(state(step), step, {})
            manager.wait()
            manager.set_metric(step, metric)
    assert manifest.ranked(tmp_path) == [3, 1]  # nan is neither above nor below another


def test_every_array_must_be_in_the_index(whole):
    manifest.check_index(whole / '2' / 'state', ['kernel', 'step'])
    with pytest.raises(OSError, match="the index that Orbax wrote lacks 'bias', 1 arrays in all"):
        manifest.check_index(whole / '2' / 'state', ['kernel', 'bias', 'step'])


def test_unreadable_checkpoint_is_not_damaged(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)

    def refused(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    # Root reads through every permission.
    monkeypatch.setattr(manifest.Path, 'read_bytes', refused)
    with pytest.raises(PermissionError):
        manifest.first_intact(tmp_path, 'last', quarantine=True)
    monkeypatch.undo()
    monkeypatch.setattr(manifest.hashlib, 'file_digest', refused)
    with pytest.raises(PermissionError):
        manifest.first_intact(tmp_path, 'last', quarantine=True)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_names_that_are_no_step_are_ignored(tmp_path):
    for name in ('007', 'tmp.3', '4.corrupt', 'x', '-1', '5'):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [5]
