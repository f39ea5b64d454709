"""Executes the code cells of a notebook in one namespace and stores what they print; needs no Jupyter."""

import contextlib
import io
import json
import pathlib


def execute(notebook: dict, parameters: dict) -> dict:
    """Executes the code cells in order, replaces their outputs by what they print, and returns the namespace.

    Args:
      notebook: nbformat 4; its outputs are changed in place.
      parameters: replace names after the cell tagged 'parameters', as papermill does.

    Raises whatever a cell raises, with the number of the cell in the traceback.
    """
    namespace = {'__name__': 'notebook'}
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    for number, cell in enumerate(code, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(''.join(cell['source']), f'cell {number}', 'exec'), namespace)
        if 'parameters' in cell['metadata'].get('tags', ()):
            if unknown := parameters.keys() - namespace.keys():
                raise KeyError(f'the notebook has no parameter {", ".join(sorted(unknown))}')
            namespace |= parameters
        lines = printed.getvalue().splitlines(keepends=True)
        cell['execution_count'] = number
        cell['outputs'] = [{'name': 'stdout', 'output_type': 'stream', 'text': lines}] if lines else []
    return namespace


def load(path: pathlib.Path) -> dict:
    """A notebook file."""
    return json.loads(path.read_text(encoding='utf-8'))


def save(notebook: dict, path: pathlib.Path) -> None:
    """Writes a notebook as Jupyter does."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
