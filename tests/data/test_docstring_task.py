"""The task made from the embedded corpus: no row names its package, and no module of one is in the text."""

import json

from lmtrain.data import docstring_task, python_docs


def test_rows_and_text_have_no_module_in_common(tmp_path, monkeypatch):
    long = 'Parse the header field. ' * 20
    source = f'''
class Parser:
    """Parses header fields of an internet message in chunks."""

    def feed(self):
        """{long}"""

    def close(self):
        """Too short."""

    def email(self):
        """Returns what the email package would return for it."""
'''
    documents = [
        ('email.parser', source),
        ('json.decoder', 'x = 1\n'),
        ('_pydecimal', 'def broken(:'),
        ('topics', 'if'),
    ]
    monkeypatch.setattr(python_docs, 'documents', lambda: iter(documents))
    docstring_task.write(tmp_path)
    rows, texts = (
        [json.loads(line) for line in (tmp_path / name).read_text(encoding='utf-8').splitlines()]
        for name in docstring_task.FILES
    )
    assert [row['name'] for row in rows] == ['email.parser.Parser', 'email.parser.feed']
    assert {row['package'] for row in rows} == {'email'}
    assert 90 < len(rows[1]['docstring']) <= docstring_task.LONGEST and rows[1]['docstring'].endswith('field.')
    assert [text['text'] for text in texts] == ['x = 1\n', 'if']


def test_every_package_has_rows_in_this_python():
    rows = {package: set() for package in docstring_task.PACKAGES}
    for module, source in python_docs.documents():
        package = docstring_task.package_of(module)
        if package in rows:
            rows[package] |= {docstring_task._row(text, package) for _, text in docstring_task.docstrings(source)}
    counts = {package: len(texts - {''}) for package, texts in rows.items()}
    assert min(counts.values()) > 50, counts
