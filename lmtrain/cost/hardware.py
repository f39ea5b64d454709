"""Chips by their data sheets: peaks, memory and links; and targets: devices to compile for without having them.

Jax is imported late, by functions: the variables of `Target.environment` must be set before.
"""

import math
import re
import time
from typing import NamedTuple

from lmtrain.errors import InputError


class Chip(NamedTuple):
    """Peaks of one device.

    Attributes:
      kind: `jax.Device.device_kind`, the key of `peak_flops`.
      memory: bytes. bandwidth: of that memory, bytes/s.
      link: bytes/s that it receives from other devices of its slice or machine, over all its links together.
      accelerator: libtpu's name of a slice of {n} chips or {cores} cores; '' if it is not a TPU.
      dimensions: of the torus, in the name of a topology.
      capability: CUDA compute capability; () if it is not a GPU of NVIDIA.
      compiled: whether its compiler runs on machines without the device.
    """

    kind: str
    memory: float
    bandwidth: float
    link: float
    accelerator: str = ''
    dimensions: int = 1
    capability: tuple[int, ...] = ()

    @property
    def compiled(self) -> bool:
        return bool(self.accelerator)


# TPU: cloud.google.com/tpu/docs, system architecture, HBM capacity and bandwidth; interconnect in one direction, links
# times bandwidth of a link (jax-ml.github.io/scaling-book/tpus): v4 6 x 45, v5e 4 x 45, v5p 6 x 90, v6e 4 x 90 GB/s.
# NVIDIA: data sheets of the SXM modules (A100 80 GB, H100, H200, B200); NVLink in one direction, half of their figure.
CHIPS = {
    'v4': Chip('TPU v4', 32 * 2**30, 1228e9, 270e9, 'v4-{cores}', 3),
    'v5e': Chip('TPU v5 lite', 16 * 2**30, 800e9, 180e9, 'v5litepod-{n}', 2),
    'v5p': Chip('TPU v5', 95 * 2**30, 2765e9, 540e9, 'v5p-{cores}', 3),
    'v6e': Chip('TPU v6 lite', 32 * 2**30, 1600e9, 360e9, 'v6e-{n}', 2),
    'a100': Chip('NVIDIA A100', 80e9, 2039e9, 300e9, capability=(8, 0)),
    'h100': Chip('NVIDIA H100', 80e9, 3350e9, 450e9, capability=(9, 0)),
    'h200': Chip('NVIDIA H200', 141e9, 4800e9, 450e9, capability=(9, 0)),
    'b200': Chip('NVIDIA B200', 180e9, 7700e9, 900e9, capability=(10, 0)),
}


# (regex of device_kind, FLOP/s in bfloat16, FLOP/s in float32) of one JAX device, without sparsity. First match wins.
# float32 is JAX's default precision of products: bfloat16 passes on TPU, TF32 on NVIDIA since Ampere. Sources:
# jax._src.tpu_info and the data sheets of Google and NVIDIA. A device of TPU v2, v3 and 7x is one core, half a chip.
PEAKS = (
    (r'TPU v2', 23e12, 23e12),
    (r'TPU v3', 61.5e12, 61.5e12),
    (r'TPU v4 lite', 137e12, 137e12),
    (r'TPU v4', 275e12, 275e12),
    (r'TPU (v5e|v5 lite)', 197e12, 197e12),
    (r'TPU (v5p|v5)', 459e12, 459e12),
    (r'TPU (v6e|v6 lite)', 918e12, 918e12),
    (r'TPU ?(7x|v7x|v7)', 1153.5e12, 1153.5e12),
    (r'.*\bGB200\b.*', 2500e12, 1250e12),
    (r'.*\bGB300\b.*', 2500e12, 1250e12),
    (r'.*\bB200\b.*', 2250e12, 1125e12),
    (r'.*\bB300\b.*', 2250e12, 1125e12),
    (r'.*\bGH200\b.*', 989.5e12, 494.7e12),
    (r'.*\bH200 NVL\b.*', 835e12, 417e12),
    (r'.*\bH200\b.*', 989.5e12, 494.7e12),
    (r'.*\bH100 PCIe\b.*', 756e12, 378e12),
    (r'.*\bH100 NVL\b.*', 835e12, 417e12),
    (r'.*\bH100\b.*', 989.5e12, 494.7e12),
    (r'.*\bA100\b.*', 312e12, 156e12),
    (r'.*\bA10G\b.*', 70e12, 35e12),
    (r'.*\bA40\b.*', 149.7e12, 74.8e12),
    (r'.*\bA10\b.*', 125e12, 62.5e12),
    (r'.*\bL40S\b.*', 362e12, 183e12),
    (r'.*\bL4\b.*', 121e12, 60e12),
    (r'.*RTX 5090\b.*', 209.5e12, 104.8e12),
    (r'.*RTX 4090\b.*', 165.2e12, 82.6e12),
    (r'.*RTX 4080\b.*', 97.5e12, 48.7e12),
    (r'.*RTX 3090\b.*', 71e12, 35.6e12),
    (r'.*RTX A6000\b.*', 154.8e12, 77.4e12),
)


class Target(NamedTuple):
    """`chips` devices of the kind `chip`; None: simulated devices of a CPU."""

    name: str
    chip: Chip | None
    chips: int

    @property
    def topology(self) -> str:
        """The topology for the TPU's compiler; '' if the target is not a TPU."""
        return self.name if self.chip and self.chip.compiled else ''

    def environment(self) -> dict[str, str]:
        """Environment variables for `devices`; to be set before jax is imported."""
        variables = {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1' if self.topology else f'{self.chips}'}
        if self.chip and self.topology:
            accelerator = self.chip.accelerator.format(n=self.chips, cores=2 * self.chips)
            variables |= {
                'TPU_ACCELERATOR_TYPE': accelerator,
                'TPU_WORKER_HOSTNAMES': 'localhost',
                'TPU_WORKER_ID': '0',
            }
            variables |= {'TPU_SKIP_MDS_QUERY': '1', 'TPU_MIN_LOG_LEVEL': '3', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
        return variables

    def devices(self) -> list:
        """Devices to compile for: those of the topology, or simulated devices.

        Raises InputError if libtpu is missing, or if fewer devices are simulated.
        """
        import jax

        if self.topology:
            from importlib.util import find_spec

            from jax.experimental import topologies

            if not find_spec('libtpu'):
                raise InputError(f"--target={self.name}: the TPU's compiler is missing; pip install -e '.[plan]'")
            return list(topologies.get_topology_desc(self.name, platform='tpu').devices)
        devices = jax.devices('cpu')
        if len(devices) < self.chips:
            raise InputError(
                f'--target={self.name}: needs {self.chips} simulated devices, but this process has {len(devices)}; '
                f'set JAX_NUM_CPU_DEVICES={self.chips} before it starts'
            )
        return devices[: self.chips]


def parse(text: str) -> Target:
    """'v5e:16x16', 'h100:8' or 'cpu:8' as a Target. Raises InputError naming the known chips, or the right form."""
    name, _, shape = text.partition(':')
    if name != 'cpu' and name not in CHIPS:
        raise InputError(f'--target={text}: no machine {name!r}; known are cpu, {", ".join(CHIPS)}')
    chip = CHIPS.get(name)
    dimensions = chip.dimensions if chip else 1
    if not re.fullmatch(r'[1-9]\d{0,4}(x[1-9]\d{0,4})*', shape) or shape.count('x') + 1 != dimensions:
        form = 'x'.join(['4'] * dimensions) if dimensions > 1 else '8'
        raise InputError(f'--target={text}: {name} needs its size after a colon, such as --target={name}:{form}')
    return Target(text, chip, math.prod(map(int, shape.split('x'))))


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of one device of a `jax.Device.device_kind` in 'bfloat16' or 'float32'; None if unknown.

    >>> peak_flops('NVIDIA H100 80GB HBM3', 'bfloat16')
    989500000000000.0
    """
    for pattern, bfloat16, float32 in PEAKS:
        if re.fullmatch(pattern, device_kind):
            return {'bfloat16': bfloat16, 'float32': float32}.get(str(dtype))
    return None


def measured_peak(dtype: str, side: int = 1024) -> float:
    """FLOP/s of one product of two square matrices on the first device, for a device without a data sheet.

    The fastest of three, so that another process that uses the device counts little.
    """
    import jax
    import jax.numpy as jnp

    matrix, seconds = jnp.ones((side, side), dtype), []
    multiply = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    for _ in range(4):  # the first one warms up
        begun = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds[1:])
