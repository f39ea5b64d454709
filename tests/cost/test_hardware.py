"""Machines that are not here: what is named wrongly is told, what is named rightly can be asked for devices."""

import importlib.util

import pytest

from lmtrain import cost
from lmtrain.cost import hardware


@pytest.mark.parametrize(
    ('text', 'said'),
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
def test_what_is_no_target_is_told(text, said):
    with pytest.raises(ValueError, match=said):
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
def test_chips_are_counted_and_named_for_their_compiler(text, chips, accelerator):
    found = hardware.parse(text)
    assert found.chips == chips
    wanted = found.environment()
    assert wanted.get('TPU_ACCELERATOR_TYPE') == accelerator
    assert wanted['JAX_NUM_CPU_DEVICES'] == ('1' if accelerator else f'{chips}')


@pytest.mark.parametrize('name', hardware.CHIPS)
def test_every_chip_has_a_peak_and_sane_figures(name):
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
