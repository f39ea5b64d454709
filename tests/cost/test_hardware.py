"""Peaks of devices, and targets to plan for: parsed by name, refused with the right form, simulated as devices."""

import importlib.util
import subprocess
import sys

import pytest

from lmtrain import cost
from lmtrain.cost import hardware


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no machine'),
        ('v5x:4x4', 'known are cpu, v4, v5e'),
        ('v5e', '--target=v5e:4x4'),
        ('v5e:256', '--target=v5e:4x4'),
        ('v5p:4x4', '--target=v5p:4x4x4'),
        ('h100:0', '--target=h100:8'),
        ('cpu:-8', '--target=cpu:8'),
        ('v5e:4x', '--target=v5e:4x4'),
        ('h100:8x8', '--target=h100:8'),
    ],
)
def test_wrong_target_is_refused_with_the_right_form(text, message):
    with pytest.raises(ValueError, match=message):
        hardware.parse(text)


@pytest.mark.parametrize(
    ('text', 'chips', 'accelerator'),
    [
        ('v5e:16x16', 256, 'v5litepod-256'),
        ('v5p:8x8x16', 1024, 'v5p-2048'),
        ('v6e:16x16', 256, 'v6e-256'),
        ('h100:8', 8, None),
        ('cpu:8', 8, None),
    ],
)
def test_target_counts_its_chips_and_names_its_slice(text, chips, accelerator):
    target = hardware.parse(text)
    assert target.chips == chips
    variables = target.environment()
    assert variables.get('TPU_ACCELERATOR_TYPE') == accelerator
    assert variables['JAX_NUM_CPU_DEVICES'] == ('1' if accelerator else f'{chips}')


@pytest.mark.parametrize('name', hardware.CHIPS)
def test_chip_has_a_peak_and_plausible_figures(name):
    chip = hardware.CHIPS[name]
    peak = cost.peak_flops(chip.kind, 'bfloat16')
    assert peak and 20 < peak / chip.bandwidth < 1000  # FLOPs a byte of memory
    assert chip.link < chip.bandwidth


def test_devices_are_simulated_or_refused():
    assert len(hardware.parse('h100:4').devices()) == 4
    with pytest.raises(ValueError, match='JAX_NUM_CPU_DEVICES=64'):
        hardware.parse('cpu:64').devices()
    if importlib.util.find_spec('libtpu') is None:
        with pytest.raises(ValueError, match=r'pip install'):
            hardware.parse('v5e:4x4').devices()


@pytest.mark.parametrize(
    ('kind', 'dtype', 'peak'),
    [
        ('TPU v3', 'bfloat16', 61.5e12),
        ('TPU v4', 'bfloat16', 275e12),
        ('TPU v5 lite', 'bfloat16', 197e12),
        ('TPU v5e', 'float32', 197e12),
        ('TPU v5p', 'bfloat16', 459e12),
        ('TPU v5', 'bfloat16', 459e12),
        ('TPU v6 lite', 'bfloat16', 918e12),
        ('TPU7x', 'bfloat16', 1153.5e12),
        ('NVIDIA A100-SXM4-80GB', 'bfloat16', 312e12),
        ('NVIDIA A100-SXM4-40GB', 'float32', 156e12),
        ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.5e12),
        ('NVIDIA H100 PCIe', 'bfloat16', 756e12),
        ('NVIDIA H200', 'bfloat16', 989.5e12),
        ('NVIDIA GH200 480GB', 'bfloat16', 989.5e12),
        ('NVIDIA B200', 'bfloat16', 2250e12),
        ('NVIDIA GB200', 'bfloat16', 2500e12),
        ('NVIDIA GeForce RTX 4090', 'bfloat16', 165.2e12),
        ('NVIDIA L4', 'bfloat16', 121e12),
        ('NVIDIA L40S', 'bfloat16', 362e12),
        ('cpu', 'float32', None),
        ('NVIDIA H1000', 'bfloat16', None),
        ('NVIDIA H100 80GB HBM3', 'int4', None),
    ],
)
def test_peak_flops_by_device_kind(kind, dtype, peak):
    assert cost.peak_flops(kind, dtype) == peak


def test_hardware_is_imported_without_jax():
    """The variables of `Target.environment` have no effect on a jax that is imported already."""
    code = "import sys; from lmtrain.cost import hardware; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_measured_peak_is_that_of_a_product():
    """Between a slow and an impossible processor."""
    assert 1e8 < hardware.measured_peak('float32', side=256) < 1e14
