import subprocess
import sys

import pytest

import lmtrain.data
from configs.base import get_config
from lmtrain.data import Stream, python_docs


@pytest.fixture(scope='module')
def documents():
    return list(python_docs.documents())


def test_documents_come_from_this_python(documents):
    modules = {}
    for module, text in documents:
        modules.setdefault(module, []).append(text)
    assert 4e6 < sum(len(text) for _, text in documents) < 40e6
    assert {'json.decoder', 'argparse', 'asyncio.events', 'builtins', 'math', python_docs.TOPICS} <= set(modules)
    assert len(modules[python_docs.TOPICS]) > 50
    assert any('"with" statement' in text for text in modules[python_docs.TOPICS])
    assert 'math.acos(x, /)\n\nReturn the arc cosine' in modules['math'][0]
    assert not {'encodings.cp1252', 'test.test_json', 'test', 'this.pyc', 'readline'} & set(modules)
    assert not [module for module in modules if '.test.' in module or module.startswith('encodings')]


def test_documents_are_deterministic(documents):
    command = 'import hashlib; from lmtrain.data.python_docs import documents; '
    command += 'print(hashlib.sha256(repr(list(documents())).encode()).hexdigest())'
    process = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True, check=True)
    import hashlib

    assert process.stdout.strip() == hashlib.sha256(repr(documents).encode()).hexdigest()


def test_documents_are_unique(documents):
    pages = [text for _, text in documents if len(text) > 300]
    assert len(set(pages)) > 0.99 * len(pages)


def test_private_twin_modules_share_a_group():
    assert python_docs.document('_pyio', 'x').group == python_docs.document('_io', 'x').group == 'io'
    assert python_docs.document('json', 'x').group == 'json'
    assert python_docs.document(python_docs.TOPICS, 'x').split == 'train'


def test_prepare_needs_no_tensorflow(tmp_path):
    command = (
        'import sys; from configs.base import get_config; import lmtrain.data; '
        f'data = get_config().data.to_dict() | {{"cache": {str(tmp_path)!r}, "tokenizer": "bytes"}}; '
        'corpus = lmtrain.data.prepare(**data); print(corpus.fingerprint); '
        'print(sorted({"tensorflow", "torch", "jax"} & set(sys.modules)))'
    )
    process = subprocess.run([sys.executable, '-W', 'error', '-c', command], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[1] == '[]'
    corpus = lmtrain.data.prepare(**get_config().data.to_dict() | {'cache': str(tmp_path), 'tokenizer': 'bytes'})
    assert corpus.fingerprint == process.stdout.splitlines()[0]
    sizes = {name: split.num_bytes for name, split in corpus.splits.items()}
    assert abs(sizes['validation'] / sum(sizes.values()) - 0.05) < 0.02
    text = corpus.tokenizer.decode(Stream(corpus, 'train', 8, 0, True).batch(0)['tokens'].ravel().tolist())
    assert len(text) > 1000
