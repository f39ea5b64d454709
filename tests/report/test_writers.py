import contextlib
import json
import os
import resource
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.report import writers


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder):
    """({(tag, step): value}, [step of each START]): what TensorBoard reads from the event files.

    A START drops the points at its step and later (EventAccumulator, purge_orphaned_data).
    """
    from tensorboardX.proto.event_pb2 import Event

    scalars, starts = {}, []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from('<Q', data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField('session_log'):
                starts.append(event.step)
                scalars = {(tag, step): value for (tag, step), value in scalars.items() if step < event.step}
            scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return scalars, starts


@contextlib.contextmanager
def a_full_disk(size):
    """Limits the files of this process to `size` bytes: a longer write is truncated, same as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@settings(deadline=None)
@given(st.floats(width=32))
def test_json_numbers_are_exact(value):
    written = json.loads(json.dumps(writers.plain(jnp.float32(value))), parse_constant=pytest.fail)
    np.testing.assert_array_equal(np.float32(written), np.float32(value))


def test_files_of_a_run(tmp_path):
    with contextlib.closing(writers.Writers(tmp_path, tensorboard=True)) as log:
        log.metrics(10, {'loss': jnp.float32(0.1), 'skipped': jnp.int32(0)}, batch='c0ffee')
        log.timings(10, {'tokens_per_second': 1234.5})
        log.validation(10, {'loss': 2.5, 'bits_per_byte': 1.25})
        log.metrics(20, {'loss': jnp.float32('nan'), 'skipped': jnp.int32(1)}, batch='beef')
    assert lines(tmp_path / 'metrics.jsonl') == [
        {'step': 10, 'batch': 'c0ffee', 'loss': float(np.float32(0.1)), 'skipped': 0},
        {'step': 10, 'validation_loss': 2.5, 'validation_bits_per_byte': 1.25},
        {'step': 20, 'batch': 'beef', 'loss': 'nan', 'skipped': 1},
    ]
    assert lines(tmp_path / 'timings.jsonl') == [{'step': 10, 'tokens_per_second': 1234.5}]
    scalars, starts = events(tmp_path / 'tensorboard')
    assert scalars['train/loss', 10] == np.float32(0.1)
    assert scalars['validation/bits_per_byte', 10] == 1.25
    assert scalars['speed/tokens_per_second', 10] == 1234.5
    assert starts == [1]


def test_lines_are_flushed(tmp_path):
    with contextlib.closing(writers.Writers(tmp_path, tensorboard=False)) as log:
        log.metrics(1, {'loss': 1.0}, batch='a')
        assert len(lines(tmp_path / 'metrics.jsonl')) == 1
    assert not (tmp_path / 'tensorboard').exists()


def test_second_start_appends(tmp_path):
    """Points up to the checkpoint stay, later ones are replaced, and a start without steps drops none."""
    for start, steps in ((0, range(1, 8)), (5, range(6, 9)), (8, ())):
        with contextlib.closing(writers.Writers(tmp_path, tensorboard=True, start=start)) as log:
            for step in steps:
                log.metrics(step, {'loss': float(start)}, batch='a')
    scalars, starts = events(tmp_path / 'tensorboard')
    assert sorted(starts) == [1, 6, 9]
    assert scalars == {('train/loss', step): 0.0 if step <= 5 else 5.0 for step in range(1, 9)}


def test_metrics_are_deterministic(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
        with contextlib.closing(writers.Writers(tmp_path / name, tensorboard=False)) as log:
            for step in range(1, 5):
                log.metrics(
                    step, {'loss': jnp.float32(1 / step), 'grad_norm': jnp.float32(step / 3)}, batch=f'{step:x}'
                )
    assert (tmp_path / 'a/metrics.jsonl').read_bytes() == (tmp_path / 'b/metrics.jsonl').read_bytes()


def test_full_disk_skips_lines(tmp_path):
    warnings = []
    with contextlib.closing(writers.Writers(tmp_path, tensorboard=True, warn=warnings.append)) as log:
        log.metrics(1, {'loss': 1.0}, batch='a')
        size = os.path.getsize(tmp_path / 'metrics.jsonl')
        with a_full_disk(size + 10):
            log.metrics(2, {'loss': 1.0}, batch='b')
            log.metrics(3, {'loss': 1.0}, batch='c')
        assert os.path.getsize(tmp_path / 'metrics.jsonl') == size
        assert sum('metrics.jsonl cannot be written at step 2: No space left' in text for text in warnings) == 1
        assert sum('tensorboard cannot be written at step 2' in text for text in warnings) == 1
        log.metrics(4, {'loss': 1.0}, batch='d')
    assert any('metrics.jsonl can be written again from step 4' in text for text in warnings)
    assert [line['step'] for line in lines(tmp_path / 'metrics.jsonl')] == [1, 4]


def test_unwritable_folder_fails_before_training(tmp_path):
    with pytest.raises(FileNotFoundError):
        writers.Writers(tmp_path / 'missing', tensorboard=False)
