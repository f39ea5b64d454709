"""Whether the sizes of a run can be: refused by arithmetic, before an array of them is described or allocated."""

import os
from collections.abc import Mapping

import jax

from lmtrain.errors import InputError

MAX_LAYERS = 2**16
MAX_PARAMETERS = 2**43  # with gradients and moments 140 TB, more than any machine holds
COLUMNS = 5  # of a batch, at least: tokens, targets, positions, segment_ids, loss_mask


def check_sizes(model, rows: int, seq_len: int) -> None:
    """Raises ValueError naming the fields where a model has more parameters than any machine holds, or a batch more
    tokens than this one.

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
    wanted, there = 4 * COLUMNS * rows * seq_len, host_memory()
    if wanted > there:
        raise InputError(
            f'data.batch_size = {rows} rows of data.seq_len = {seq_len} tokens are {_gigabytes(wanted)} a batch, and '
            f'this machine has {_gigabytes(there)}: lower one of them'
        )


def check_memory(needed: Mapping[str, int], device: jax.Device) -> None:
    """Raises ValueError where a device cannot hold the state of a training, activations left aside: those are an
    estimate, and kernels of attention need far less.

    Args:
      needed: bytes on one device as `cost.memory` gives them.
      device: one of this process; those of a CPU share its memory.
    """
    there = device_memory(device) or host_memory() // jax.local_device_count()
    exact = {part: needed[part] for part in ('parameters', 'gradients', 'moments')}
    if sum(exact.values()) > there:
        parts = ', '.join(f'{part} {_gigabytes(size)}' for part, size in exact.items())
        raise InputError(
            f'training needs {_gigabytes(sum(exact.values()))} on each device ({parts}) and a device has '
            f'{_gigabytes(there)}: lower model.width or model.num_layers, or raise mesh.fsdp, which shares them out'
        )


def device_memory(device: jax.Device) -> int:
    """Bytes that this process may use of a device's own memory; 0 if it has none, or does not say."""
    return (device.memory_stats() or {}).get('bytes_limit', 0)


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _gigabytes(size: float) -> str:
    return f'{size / 1e9:,.3g} GB'
