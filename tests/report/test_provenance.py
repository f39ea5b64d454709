import importlib.metadata
import platform
import subprocess
import sys

import jax

from lmtrain.report import provenance


def test_command_is_quoted_and_devices_are_those_that_are_named(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['cli.py', 'train', '--config=tiny', '--config.data.source=a b/*.txt'])
    devices = jax.devices()[:3]
    facts = provenance.provenance(devices)
    assert facts['command'] == "lmtrain train --config=tiny '--config.data.source=a b/*.txt'"
    assert facts['machine']['devices'] == f'3 x {devices[0].device_kind}' and facts['machine']['processes'] == 1
    assert facts['versions']['jax'] == jax.__version__ and facts['versions']['python'] == platform.python_version()
    assert facts['versions']['optax'] == importlib.metadata.version('optax')


def test_commit_of_a_checkout(tmp_path):
    assert provenance.commit(tmp_path) is None
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
    (tmp_path / 'file').write_text('one')
    for words in ('init --quiet', 'add file', 'commit --quiet --message=one', 'tag --annotate --message=v v1'):
        subprocess.run([*git, *words.split()], check=True)
    head = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, check=True, encoding='utf-8').stdout
    assert provenance.commit(tmp_path) == head[:12]
    (tmp_path / 'file').write_text('two')
    assert provenance.commit(tmp_path) == f'{head[:12]}-dirty'
    (tmp_path / '.git/HEAD').write_text('broken')
    assert provenance.commit(tmp_path) is None
