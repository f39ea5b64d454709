"""The command line of lm-eval gets the model `lmtrain`, loaded from a path."""

import sys
import types

import pytest

from launch import lm_eval as command
from launch import process_setup
from lmtrain import api
from lmtrain.training.load import LoadedModel


@pytest.fixture(autouse=True)
def _prepared(monkeypatch):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)


def test_a_path_is_loaded_and_the_flags_go_to_lm_eval(monkeypatch, computes):
    registered, calls = {}, []

    class LM:
        pass

    modules = {name: types.ModuleType(name) for name in ('lm_eval', 'lm_eval.api', 'lm_eval.__main__')}
    modules['lm_eval.api.model'] = types.SimpleNamespace(LM=LM)
    modules['lm_eval.api.registry'] = types.SimpleNamespace(
        register_model=lambda name: lambda cls: registered.setdefault(name, cls)
    )
    modules['lm_eval.__main__'].cli_evaluate = lambda: calls.append(registered['lmtrain'])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, 'lmtrain.evaluation.lm_eval', raising=False)
    small, params, tokenizer = computes
    loaded = LoadedModel(None, small, tokenizer, params, 0, [256], None)
    monkeypatch.setattr(api, 'load', lambda path, **settings: calls.append((path, settings)) or loaded)
    command.main()
    model = calls.pop()('runs/x', step='best', batch_size='auto', device=None)
    assert calls == [('runs/x', {'step': 'best', 'member': None, 'adapter': ''})]
    assert (model.batch, model.context) == (32, 64)


def test_without_lm_eval_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    with pytest.raises(SystemExit, match=r'error: this command needs lm-eval: pip install'):
        command.main()
