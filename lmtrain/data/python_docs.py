"""The embedded corpus: text that is part of every Python, prepared once by a TFDS builder.

The format is ArrayRecord, which needs no TensorFlow.

Three kinds of documents, each with the name of its module:
* the language reference, one document per topic of `pydoc_data.topics`;
* the source of the standard library, one document per file, without tests, `encodings/` and other tables. It contains
  the docstrings of these modules, so they are not separate documents;
* the docstrings of modules written in C, which have no source here: one document per module, from the imported objects.
The sources are read as text; no module of the library is imported for them.
"""

import contextlib
import importlib.util
import inspect
import io
import platform
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from lmtrain.data.document import Document
from lmtrain.runtime import progress

DATASET_VERSION = '1.0.1'  # increased if the documents below change
TOPICS = 'pydoc_data.topics'
EXCLUDED_FOLDERS = {
    'test',
    'tests',
    'idle_test',
    'encodings',
    'pydoc_data',
    'site-packages',
    'dist-packages',
    '__pycache__',
}
EXCLUDED_FILES = re.compile(r'_sysconfigdata.*|_sysconfig_vars.*')  # build settings of this machine
NOT_IMPORTED = re.compile(r'_?xx.*|_test.*|_ctypes_test|_tkinter|readline')  # tests, or modules with side effects


def directory_name() -> str:
    """The corpus differs between versions of Python, so the name of its directory contains the version."""
    return f'python_docs-{DATASET_VERSION}-{sys.implementation.name}-{platform.python_version()}'


def documents() -> Iterator[tuple[str, str]]:
    """(module, text) of every document, in an order that does not depend on the machine."""
    topics = importlib.import_module(TOPICS).topics
    for _, text in sorted(topics.items()):
        yield TOPICS, text.strip() + '\n'
    yield from _sources(Path(sysconfig.get_path('stdlib')))
    yield from _pages()


def document(module: str, text: str) -> Document:
    """A text of `module`, in one split with the texts of its private twins: `_io` and `_pyio` belong to `io`.

    The topics of the language reference repeat each other, so all of them are in the train split.
    """
    split = 'train' if module == TOPICS else ''
    return Document(text, re.sub('^_(py)?', '', module), split)


def write_dataset(directory: Path) -> None:
    """Writes the TFDS dataset `python_docs` (features `module` and `text`, one split `text`) under `directory`."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # another call defines it again

        class PythonDocs(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(DATASET_VERSION)
            code_path = None  # TFDS would look for checksums of downloads there, of which there are none

            def _info(self):
                text = tfds.features.Text()
                features = tfds.features.FeaturesDict({'module': text, 'text': text})
                return tfds.core.DatasetInfo(builder=self, description=__doc__, features=features)

            def _split_generators(self, _):
                return {'text': self._generate_examples()}

            def _generate_examples(self):
                for index, (module, text) in enumerate(documents()):
                    yield f'{index:06d}', {'module': module, 'text': text}

    tfds.disable_progress_bar()
    collecting = progress.phase("collecting Python's documentation and source")
    with collecting, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress
        PythonDocs(data_dir=directory, file_format='array_record').download_and_prepare()


def _sources(library: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(library.rglob('*.py')):
        parts = path.relative_to(library).with_suffix('').parts
        if EXCLUDED_FOLDERS & set(parts) or EXCLUDED_FILES.fullmatch(parts[-1]) or parts[0].startswith('config-'):
            continue
        with tokenize.open(path) as file:  # in the encoding of its coding line
            text = file.read()
        if text.strip():
            yield '.'.join(parts).removesuffix('.__init__'), text


def _pages() -> Iterator[tuple[str, str]]:
    seen: set[str] = set()  # 'Return repr(self).' and similar texts once, not a thousand times
    for name in sorted(sys.stdlib_module_names):
        spec = None if NOT_IMPORTED.fullmatch(name) else importlib.util.find_spec(name)
        if spec is None or spec.origin != 'built-in' and not (spec.origin or '').endswith(tuple(EXTENSION_SUFFIXES)):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # about deprecated modules
                module = importlib.import_module(name)
        except ImportError:  # an extension whose C library is not on this machine
            continue
        text = _page(module, seen)
        if text.strip():
            yield name, text


def _page(module, seen: set[str]) -> str:
    entries = [(module.__name__, module)]
    for name, value in inspect.getmembers_static(module):
        entries.append((f'{module.__name__}.{name}', value))
        if inspect.isclass(value) and value.__module__ == module.__name__:
            entries += [(f'{module.__name__}.{name}.{member}', vars(value)[member]) for member in sorted(vars(value))]
    page = []
    for name, value in entries:
        documented = callable(value) or inspect.ismodule(value) or inspect.isdatadescriptor(value)
        text = None if inspect.isfunction(value) or not documented else inspect.getdoc(value)
        if not text or text in seen:
            continue
        seen.add(text)
        page.append(f'{name}{_signature(value)}\n\n{text}\n')
    return '\n\n'.join(page)


def _signature(value) -> str:
    signature = getattr(value, '__text_signature__', None) or ''  # from C: '($module, x, /)', '($self, x, /)'
    return re.sub(r'\$(module|type)(, /)?(, )?', '', signature).replace('$', '')
