"""Imports follow the order of lmtrain's docstring, files stay small, and heavy libraries stay outside."""

import ast
import pathlib
import re

import pytest

import lmtrain

ROOT = pathlib.Path(__file__).parents[1]
ORDER = re.findall(r'^    (\w+)(?:\.py|/) ', lmtrain.__doc__, re.MULTILINE)
FILES = sorted((ROOT / 'lmtrain').rglob('*.py'))
NEVER = {'tensorflow', 'torch', 'transformers', 'pickle', 'yaml'}


def top_of(path: pathlib.Path) -> str:
    """The module or package at the top of lmtrain that a file belongs to."""
    return path.relative_to(ROOT / 'lmtrain').parts[0].removesuffix('.py')


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, at its top or late."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are absolute'
            names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def test_imports_follow_the_order_of_the_docstring():
    tops = {top_of(path) for path in FILES} - {'__init__'}
    assert sorted(ORDER) == sorted(tops), 'the docstring of lmtrain lists every module and package once'
    for path in FILES:
        if (own := top_of(path)) == '__init__':
            continue
        for name in imports(path):
            other = name.split('.')[1] if name.startswith('lmtrain.') else own
            if other != own:
                assert ORDER.index(other) < ORDER.index(own), f'{path}: {own} comes before {other} (lmtrain.__doc__)'


def test_imports_inside_a_package_have_no_cycle():
    def module_of(path):
        return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')

    modules = {module_of(path): path for path in FILES if path.name != '__init__.py'}
    below = {name: imports(path) & modules.keys() for name, path in modules.items()}
    while below:
        leaves = {name for name, others in below.items() if not others & below.keys()}
        assert leaves, f'these modules import each other: {sorted(below)}'
        below = {name: others for name, others in below.items() if name not in leaves}


def test_lmtrain_reads_only_the_defaults_of_configs():
    """The two packages import each other without a cycle: the defaults import nothing of lmtrain."""
    for path in FILES:
        allowed = {'configs', 'configs.base'}
        if path.relative_to(ROOT).as_posix() == 'lmtrain/compare/default.py':
            allowed.add('configs.compare_base')
        found = {name for name in imports(path) if name.split('.')[0] == 'configs'}
        assert found <= allowed, f'{path} imports {sorted(found - allowed)}: only configs/base.py is below lmtrain'
    assert not {name for name in imports(ROOT / 'configs' / 'base.py') if name.split('.')[0] in ('lmtrain', 'configs')}


def test_only_the_card_of_a_model_imports_the_package_root():
    """The root is above all modules: through it, a module could call the functions of api. The card has the version."""
    users = set()
    for path in FILES:
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        if any(alias.name == 'lmtrain' for node in nodes for alias in node.names):
            users.add(path.relative_to(ROOT).as_posix())
    assert users == {'lmtrain/training/model_card.py'}


def test_files_stay_small():
    for path in FILES:
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f'{path} has {lines} lines: split it into files that one line describes'


@pytest.mark.parametrize('folder', ['lmtrain', 'configs', 'launch'])
def test_what_is_never_imported(folder):
    for path in (ROOT / folder).rglob('*.py'):
        found = {name.split('.')[0] for name in imports(path)}
        assert not found & NEVER, path
        assert 'experiments' not in found, path
        if folder != 'launch':
            assert 'launch' not in found, path


def test_models_and_tasks_know_no_device_and_no_adapter():
    for folder in ('models', 'tasks'):
        for path in (ROOT / 'lmtrain' / folder).rglob('*.py'):
            names = imports(path)
            assert not {
                n for n in names if n.startswith(('jax.sharding', 'lmtrain.parallel.sharding', 'lmtrain.adapt'))
            }, path


def test_models_adaptation_and_tasks_ask_for_no_device():
    asking = {'default_backend', 'devices', 'local_devices', 'device_count', 'local_device_count', 'platform'}
    asking |= {'process_index', 'process_count', 'platform_dependent', 'device_put', 'sharding', 'shard_map', 'Mesh'}
    asking |= {'with_sharding_constraint', 'all_gather', 'psum', 'psum_scatter', 'axis_index', 'device_kind'}
    for folder in ('models', 'adapt', 'tasks'):
        for path in (ROOT / 'lmtrain' / folder).rglob('*.py'):
            tokens = ast.walk(ast.parse(path.read_text()))
            names = {getattr(node, 'attr', getattr(node, 'id', '')) for node in tokens}
            assert not names & asking, path


def without_encoding(path: pathlib.Path) -> list[int]:
    """Lines of the calls that read or write text in the encoding of the locale."""
    lines = []
    for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(call, ast.Call) or any(keyword.arg in (None, 'encoding') for keyword in call.keywords):
            continue
        function, given = call.func, {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        name = getattr(function, 'attr', getattr(function, 'id', ''))
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ''
        binary = name not in ('TemporaryFile', 'NamedTemporaryFile')  # whose mode is 'w+b' if none is given
        if name in ('open', 'fdopen') and owner not in ('tokenize', 'importlib'):
            mode = call.args[1:] if name == 'fdopen' or owner in ('', 'io', 'gzip') else call.args[:1]
            mode = given.get('mode') or (ast.unparse(mode[0]) if mode else '"rb"' if owner == 'gzip' else '"r"')
            if 'b' not in mode and 'O_' not in mode and owner != 'os' or name == 'fdopen' and 'b' not in mode:
                lines.append(call.lineno)
        elif not binary and 'b' not in given.get('mode', 'b'):
            lines.append(call.lineno)
        elif name == 'read_text' and not call.args or name == 'write_text' and owner != 'record' and len(call.args) < 2:
            lines.append(call.lineno)
        elif owner == 'subprocess' and ('text' in given or 'universal_newlines' in given):
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize('folder', ['lmtrain', 'configs', 'launch', 'experiments'])
def test_text_is_read_and_written_in_a_named_encoding(folder):
    for path in (ROOT / folder).rglob('*.py'):
        assert not without_encoding(path), f'{path}: name the encoding (utf-8) in these lines'


def test_calls_without_encoding_are_recognised(tmp_path):
    wrong = ['open(p)', "open(p, 'w')", 'p.read_text()', 'p.write_text(t)', "p.open('a')", "os.fdopen(1, 'w')"]
    wrong += ['subprocess.run(a, text=True)', "tempfile.NamedTemporaryFile(mode='w')", "gzip.open(p, 'rt')"]
    right = ["open(p, 'rb')", "p.open('wb')", 'p.read_bytes()', "open(p, 'w', encoding='utf-8')", 'gzip.open(p)']
    right += ['os.open(p, os.O_RDONLY)', 'tempfile.TemporaryFile(dir=p)', 'subprocess.run(a)', 'tokenize.open(p)']
    (tmp_path / 'calls.py').write_text('\n'.join(wrong + right), encoding='utf-8')
    assert without_encoding(tmp_path / 'calls.py') == [*range(1, len(wrong) + 1)]


def test_home_is_expanded_in_one_place():
    for folder in ('lmtrain', 'launch'):
        for path in (ROOT / folder).rglob('*.py'):
            text = path.read_text(encoding='utf-8')
            assert path.name == 'files.py' or 'expanduser' not in text, f'{path}: call lmtrain.files.local'
