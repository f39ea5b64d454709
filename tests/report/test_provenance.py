import importlib.metadata
import platform
import sys
from types import SimpleNamespace

import jax
import numpy as np

from lmtrain.report import provenance


def test_command_is_quoted_and_devices_are_those_of_the_mesh(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['cli.py', 'train', '--config=tiny', '--config.data.source=a b/*.txt'])
    devices = np.array(jax.devices()[:3])
    facts = provenance.provenance(SimpleNamespace(devices=devices, size=3))
    assert facts['command'] == "lmtrain train --config=tiny '--config.data.source=a b/*.txt'"
    assert facts['machine']['devices'] == f'3 x {devices[0].device_kind}' and facts['machine']['processes'] == 1
    assert facts['versions']['jax'] == jax.__version__ and facts['versions']['python'] == platform.python_version()
    assert facts['versions']['optax'] == importlib.metadata.version('optax')
