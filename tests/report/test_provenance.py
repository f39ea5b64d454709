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
    told = provenance.provenance(SimpleNamespace(devices=devices, size=3))
    assert told['command'] == "lmtrain train --config=tiny '--config.data.source=a b/*.txt'"
    assert told['machine']['devices'] == f'3 x {devices[0].device_kind}' and told['machine']['processes'] == 1
    assert told['versions']['jax'] == jax.__version__ and told['versions']['python'] == platform.python_version()
    assert told['versions']['optax'] == importlib.metadata.version('optax')
