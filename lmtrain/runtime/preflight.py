"""Size checks before a run starts: too large models, batches and states are rejected by arithmetic alone."""

import os
from collections.abc import Mapping

import jax

from lmtrain.errors import InputError

MAX_LAYERS = 2**16
MAX_PARAMETERS = 2**43  # with gradients and moments 140 TB, more than any machine holds
MIN_COLUMNS = 5  # of a batch: tokens, targets, positions, segment_ids, loss_mask


def check_sizes(model, rows: int, seq_len: int) -> None:
    """Raises InputError if no machine holds the model, or this machine does not hold a batch; names the fields.

    Args:
      model: has the attributes of the config's model section.
      rows: of a batch, read by this process. seq_len: tokens of a row.
    """
    m = model
    if m.num_layers > MAX_LAYERS:
        raise InputError(f'model.num_layers = {m.num_layers}: it must be at most {MAX_LAYERS:,}')
    layer = m.width * (2 * m.head_dim * (m.num_heads + m.num_kv_heads) + 2 * m.mlp_dim)
    parameters = m.width * (m.vocab_size + (m.max_len if m.positions == 'learned' else 0)) + m.num_layers * layer
    if parameters > MAX_PARAMETERS:
        raise InputError(
            f'model.width = {m.width}, model.mlp_dim = {m.mlp_dim}, model.vocab_size = {m.vocab_size} and '
            f'model.num_layers = {m.num_layers} make {parameters:.1e} parameters, more than any machine holds '
            f'({MAX_PARAMETERS:.1e}): lower one of them'
        )
    needed, available = 4 * MIN_COLUMNS * rows * seq_len, host_memory()
    if needed > available:
        raise InputError(
            f'data.batch_size = {rows} rows of data.seq_len = {seq_len} tokens are {_gigabytes(needed)} a batch, and '
            f'this machine has {_gigabytes(available)}: lower one of them'
        )


def check_memory(needed: Mapping[str, int], device: jax.Device) -> None:
    """Raises InputError if a device cannot hold the state of the training.

    Activations are not counted: their size is an estimate, and attention kernels need far less.

    Args:
      needed: bytes on one device as `cost.bytes_per_device` returns them.
      device: one of this process; the devices of a CPU share its memory.
    """
    available = device_memory(device) or host_memory() // jax.local_device_count()
    exact = {part: needed[part] for part in ('parameters', 'gradients', 'moments')}
    if sum(exact.values()) > available:
        parts = ', '.join(f'{part} {_gigabytes(size)}' for part, size in exact.items())
        # JAX reserves three quarters of a GPU, unless this variable says otherwise.
        share = ', or set XLA_PYTHON_CLIENT_MEM_FRACTION=.92, by default .75' if device.platform == 'gpu' else ''
        raise InputError(
            f'training needs {_gigabytes(sum(exact.values()))} on each device ({parts}) and a device has '
            f'{_gigabytes(available)}: lower model.width or model.num_layers, or raise mesh.fsdp, which shards them'
            f'{share}'
        )


def device_memory(device: jax.Device) -> int:
    """Bytes of a device's own memory that this process may use; 0 if it has none or does not report it."""
    return (device.memory_stats() or {}).get('bytes_limit', 0)


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _gigabytes(size: float) -> str:
    return f'{size / 1e9:,.3g} GB'
