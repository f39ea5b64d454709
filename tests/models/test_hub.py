import sys
import types

import pytest

from configs import tiny
from lmtrain import errors
from lmtrain.models import hub
from lmtrain.training import load
from lmtrain.training.resolve import resolve


@pytest.fixture
def client(monkeypatch):
    """A stand-in for huggingface_hub: `cached` models have a directory; `error` is raised by a download."""
    client = types.ModuleType('huggingface_hub')
    client.cached, client.error, client.calls = {}, None, []

    def snapshot_download(name, local_files_only=False, allow_patterns=()):
        client.calls.append((name, local_files_only))
        if name in client.cached:
            return client.cached[name]
        if local_files_only:
            raise FileNotFoundError('not cached')
        if client.error:
            raise client.error
        return f'/cache/{name}'

    client.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, 'huggingface_hub', client)
    return client


@pytest.mark.parametrize('text', ['', 'gpt2', '/models/gpt2', './org/name', 'a/b/c', 'runs/tiny', 'org/'])
def test_paths_are_left_alone(text, client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs').mkdir()
    assert hub.local_directory(text) == text and not client.calls


def test_existing_directory_is_no_name(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'org' / 'name').mkdir(parents=True)
    assert hub.local_directory('org/name') == 'org/name' and not client.calls


def test_name_is_downloaded_once(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.local_directory('org/name') == '/cache/org/name'
    assert client.calls == [('org/name', True), ('org/name', False)]
    client.cached['org/name'] = '/cache/old'
    assert hub.local_directory('org/name') == '/cache/old' and client.calls[2:] == [('org/name', True)]


@pytest.mark.parametrize('error', [OSError('no network\nat all'), RuntimeError('no network')])
def test_failed_download_gives_the_command(error, client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client.error = error
    with pytest.raises(errors.InputError) as raised:
        hub.local_directory('org/name', '--base')
    text = str(raised.value)
    assert text.startswith("--base='org/name': ") and text.endswith('The download failed: no network')
    assert 'hf download org/name --local-dir name, then init.base=name' in text and '\n' not in text


def test_config_and_load_take_names(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)  # not installed
    config = tiny.get_config()
    config.init.base = 'org/name'
    with pytest.raises(errors.InputError, match=r'init.base=.*hf download org/name .*pip install -e "\.\[hub\]"'):
        resolve(config)
    with pytest.raises(errors.InputError, match='--base=.*hf download org/name '):
        load.load_directory('org/name')
