"""The public functions: their examples run, they are imported lazily, and they refuse arguments that contradict."""

import asyncio
import doctest
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import lmtrain
from lmtrain import api
from lmtrain.errors import InputError


@pytest.fixture(scope='module')
def folder(tmp_path_factory, small_recipe):
    """The current directory, with the run that the example of `train` makes in runs/tiny."""
    folder = tmp_path_factory.mktemp('examples')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_examples('train')
        yield folder


class WithoutPhases(doctest.OutputChecker):
    """Leaves out the lines of phases, which are printed only if they take more than a second."""

    def check_output(self, want, got, optionflags):
        lines = [line for line in got.splitlines(True) if not re.fullmatch(r'  \w+ing\b.*( \.\.\.|: .*s)\n', line)]
        return super().check_output(want, ''.join(lines), optionflags)


def run_examples(name: str) -> None:
    """Runs the examples in the docstring of a public function, or of a method of what `load` returns."""
    public = getattr(api, name) if hasattr(api, name) else getattr(api.Model, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(public, name, globs={})
    report: list[str] = []
    runner = doctest.DocTestRunner(WithoutPhases(), verbose=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    result = runner.run(test, out=report.append)
    assert result.attempted and not result.failed, ''.join(report)


def test_importing_lmtrain_imports_no_library():
    code = 'import sys, lmtrain; dir(lmtrain); print({"jax", "numpy", "flax", "lmtrain.api"} & sys.modules.keys())'
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, encoding='utf-8').stdout
    assert output == 'set()\n'


def test_public_names_are_functions_with_types_and_examples():
    assert set(lmtrain.__all__) == {'load', 'generate', 'evaluate', 'train', 'export', 'load_adapter'}
    assert set(lmtrain.__all__) <= set(dir(lmtrain))
    assert (pathlib.Path(lmtrain.__file__).parent / 'py.typed').is_file()
    for name in lmtrain.__all__:
        function = getattr(lmtrain, name)
        assert function is getattr(api, name) and inspect.signature(function).return_annotation
        assert '>>> ' in function.__doc__ and 'Raises:' in function.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        _ = lmtrain.fit


METHODS = ['chat', 'logprobs', 'predict']


@pytest.mark.parametrize('name', ['load', 'Model', 'generate', 'evaluate', 'export', 'load_adapter', *METHODS])
def test_examples_of_docstrings_run(folder, name):
    run_examples(name)


def test_generate_is_the_concatenation_of_a_stream(folder):
    model = lmtrain.load('runs/tiny')
    settings = {'max_tokens': 12, 'temperature': 1.0, 'seed': 3}
    whole = lmtrain.generate(model, ['a', 'b'], **settings)
    texts, ids = ['', ''], [[], []]
    for row, piece in api.stream(model, ['a', 'b'], **settings):
        texts[row] += piece.text
        ids[row] += piece.ids
    assert [(each.text, each.ids) for each in whole] == list(zip(texts, ids))
    assert whole == lmtrain.generate(model, ['a', 'b'], **settings)
    assert whole != lmtrain.generate(model, ['a', 'b'], **settings | {'seed': 4})


def test_settings_that_are_not_chosen_are_those_of_the_run(folder):
    model = lmtrain.load('runs/tiny')
    assert api.sampling(model, max_tokens=None, top_k=5) == {'max_tokens': 16, 'top_k': 5}
    assert api.sampling(model._replace(config=None), max_tokens=None) == {'max_tokens': 128}


def test_messages_are_prompts_that_need_a_template(folder):
    model = lmtrain.load('runs/tiny')
    turns = [{'role': 'user', 'content': 'Hello'}]
    with pytest.raises(InputError, match='neither the run nor its tokenizer has a chat template'):
        lmtrain.generate(model, [turns])
    (answer,) = lmtrain.generate(model, [turns], chat_template='plain', max_tokens=2)
    assert len(answer.ids) == 2
    with pytest.raises(InputError, match='prompt 0: no message before the answer'):
        lmtrain.generate(model, [[{'role': 'assistant', 'content': 'Hello'}]])


def test_the_object_evaluates_its_own_split(folder):
    loaded = lmtrain.load('runs/tiny')
    assert loaded.evaluate('test') == lmtrain.evaluate('runs/tiny', 'test')
    changed = loaded._replace(directory='')
    with pytest.raises(InputError, match='or has an adapter that no run trained'):
        changed.evaluate('test')
    halved = loaded.evaluate('test', overrides={'data.batch_size': 2, 'data.cache': 'elsewhere'})
    assert halved['loss'] == pytest.approx(loaded.evaluate('test')['loss'], rel=1e-5)
    with pytest.raises(InputError, match='config.model.num_layers has no effect on an evaluation'):
        loaded.evaluate('test', overrides={'model.num_layers': 3})


def test_a_notebook_has_an_event_loop_that_runs(folder):
    """IPython runs cells in one; loading, evaluating and generating work in it."""

    async def cell():
        loaded = lmtrain.load('runs/tiny')
        return loaded.evaluate('test')['loss'], loaded.generate(['a'], max_tokens=2, temperature=0)[0].ids

    loss, ids = asyncio.run(cell())
    assert loss == lmtrain.evaluate('runs/tiny', 'test')['loss'] and len(ids) == 2


def test_arguments_that_contradict_are_refused(folder):
    with pytest.raises(InputError, match="adapter with step='best', member=None"):
        lmtrain.load('runs/tiny', step='best', adapter='adapter')
    with pytest.raises(InputError, match='shots without rows'):
        lmtrain.evaluate('runs/tiny', shots=1)
    with pytest.raises(FileNotFoundError, match='neither the folder of a run nor a Hugging Face directory'):
        lmtrain.load(folder)
