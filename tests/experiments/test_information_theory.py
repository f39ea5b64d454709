"""The notebook executes: its asserts hold on a small text and three games."""

import pytest

from experiments.information_theory import __main__ as main
from experiments.information_theory import run_notebook


@pytest.fixture(scope='module')
def executed(text):
    notebook = run_notebook.load(main.NOTEBOOK)
    parameters = {'SOURCE': str(text), 'TOKENIZER': 'bytes', 'VOCAB_SIZE': 257, 'STEPS': 2, 'CHESS': ''}
    return notebook, run_notebook.execute(notebook, parameters)


@pytest.mark.slow
def test_the_notebook_runs_and_its_figures_follow(executed, tmp_path):
    notebook, values = executed
    assert len(values['games']) == 3 and values['games'][0][:2] == ['e4', 'e5'] and values['games'][2][-1] == 'Bxe7#'
    rows = main.figures(values)
    assert rows[2]['figure'].split('transformer ')[1] == rows[3]['figure']
    main.plot(values['words'], [1.0] * len(values['words']), tmp_path / 'surprise.png')
    assert (tmp_path / 'surprise.png').stat().st_size > 1000
    printed = [cell['outputs'] for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert any('perplexity' in line for outputs in printed for output in outputs for line in output['text'])


def test_a_failing_assert_names_its_cell():
    cells = [{'cell_type': 'code', 'metadata': {}, 'source': [line]} for line in ('x = 1', 'assert x == 2')]
    with pytest.raises(AssertionError) as caught:
        run_notebook.execute({'cells': cells}, {})
    assert caught.traceback[-1].path == 'cell 2' or str(caught.traceback[-1].path).endswith('cell 2')


def test_an_unknown_parameter_is_an_error():
    cell = {'cell_type': 'code', 'metadata': {'tags': ['parameters']}, 'source': ['STEPS = 1']}
    with pytest.raises(KeyError, match='STEP'):
        run_notebook.execute({'cells': [cell]}, {'STEP': 2})
    assert run_notebook.execute({'cells': [cell]}, {'STEPS': 3})['STEPS'] == 3


def test_saved_notebook_is_the_stored_one(tmp_path):
    run_notebook.save(run_notebook.load(main.NOTEBOOK), tmp_path / 'copy.ipynb')
    assert (tmp_path / 'copy.ipynb').read_bytes() == main.NOTEBOOK.read_bytes()
