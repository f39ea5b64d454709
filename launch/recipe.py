"""Turns `--config=NAME` and `--config.section.field=value` into a locked ConfigDict with the types of base.py.

>>> config = load('configs/quickstart.py', {'model.num_layers': '6'})
"""

import ast
import contextlib
import importlib.util
import math
import pathlib
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections
from absl import flags

from configs import base
from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import flatten_fields, local_path

FOLDER = pathlib.Path(base.__file__).parent
ARMS = 'compare.arms.'  # fields that a comparison may add
# Beginnings of fields that are tuples of texts, also where they are empty; other fields hold what they hold now.
OF_TEXTS = ('task.', 'init.', 'evaluate.', 'sample.', 'model.biased', 'log.trackers', 'compare.only')
NAMED = ('task.text', 'task.labels', 'sample.prompts')  # fields of texts that may look like numbers
WITH_COMMAS = ('prompts', 'templates', 'instructions')  # fields of texts that may have commas
NAMES = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text', tuple: "a tuple, such as ('a', 'b')"}


def define(flag_values: flags.FlagValues) -> None:
    """The flags of a verb that takes a recipe: --config, and override, the form of --config.a.b=... after parsing."""
    flags.DEFINE_string(
        'config', None, 'a recipe: configs/NAME.py, or another file with get_config()', flag_values=flag_values
    )
    text = 'a value of the recipe; `lmtrain show` lists them'
    flags.DEFINE_multi_string('override', [], text, flag_values=flag_values)


def from_flags(flag_values: flags.FlagValues) -> ml_collections.ConfigDict:
    """The config of the flags. Raises InputError if --config is missing, and what `load` raises."""
    if not flag_values.config:
        raise InputError('--config is missing, such as --config=configs/quickstart.py (`lmtrain configs` lists all)')
    return load(flag_values.config, dict(text.split('=', 1) for text in flag_values.override))


def files() -> list[pathlib.Path]:
    """The recipes of lmtrain."""
    return sorted(path for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'base'))


def claim(path: pathlib.Path) -> str:
    """The first line of a recipe's docstring, read without running the file; '' if it has none."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition('\n')[0]


def find(name: str) -> tuple[pathlib.Path, str | None]:
    """'configs/llama.py:8B' -> (file, '8B'); a bare name is looked up among lmtrain's recipes.

    Raises FileNotFoundError naming the nearest recipe.
    """
    name, _, argument = name.partition(':')
    path = local_path(name, '--config')
    if path.suffix == '.py' and path.is_file():
        return path, argument or None
    own = FOLDER / f'{path.stem}.py'
    if own.is_file() and path.suffix in ('', '.py') and path.parent.as_posix() in ('.', 'configs'):
        return own, argument or None
    hint = did_you_mean(path.stem, [path.stem for path in files()]) or ', and no Python file has that name;'
    raise FileNotFoundError(f'unknown recipe {name!r}{hint} `lmtrain configs` lists all')


def stem(name: str) -> str:
    """The name of a recipe's run folder: 'configs/llama.py:8B' -> 'llama_8B'."""
    path, argument = find(name)
    return f'{path.stem}_{argument}' if argument else path.stem


def load(name: str, overrides: dict[str, str] | None = None) -> ml_collections.ConfigDict:
    """The config of a recipe with overrides applied in order; locked.

    A budget among the overrides takes the place of the recipe's own, since exactly one is set.
    Raises FileNotFoundError, or InputError naming the recipe's line, or the field, its type and the nearest name.
    """
    overrides = overrides or {}
    path, argument = find(name)
    config = run(path, argument)
    if any(key.startswith('budget.') for key in overrides):
        for key in config.budget:
            config.budget[key] = None
    for key, text in overrides.items():
        override(config, key, text)
    check_derived(config, name, overrides)
    check(config, name)
    return config.lock()


def run(path: pathlib.Path, argument: str | None) -> ml_collections.ConfigDict:
    """The config that a recipe's `get_config` returns. Raises InputError naming the line that failed."""
    spec = importlib.util.spec_from_file_location(f'recipe_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if argument is None else module.get_config(argument)
    except SyntaxError as error:
        raise InputError(f'{path}, line {error.lineno or 1}: {error.msg}') from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
        place = f'{path}, line {lines[-1]}' if lines else f'{path}'
        if argument is not None and isinstance(error, KeyError) and error.args == (argument,):
            raise InputError(f'{path} knows no {argument!r}: {claim(path)}') from error
        raise InputError(f'{place}: {_message(error)}') from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f'{path}: get_config returned {type(config).__name__}, not a ConfigDict')
    return config


def _message(error: Exception) -> str:
    """The message of an error in a recipe; in place of ml_collections' list of a whole section, the nearest field."""
    unknown = re.search(r'Key ["\'](\w+)["\'] does not exist', str(error))
    if unknown:
        return f'unknown field {unknown[1]!r}{_similar_field(unknown[1], types(base.get_config()))}'
    return str(error) or type(error).__name__


def _similar_field(name: str, fields: Iterable[str]) -> str:
    return did_you_mean(f'config.{name}', [f'config.{field}' for field in fields])


def fields_named(name: str) -> list[str]:
    """The fields of base.py of this name in any section.

    >>> fields_named('steps'), fields_named('temperature')
    (['budget.steps'], ['policy.temperature', 'sample.temperature'])
    """
    return [key for key in types(base.get_config()) if key.rpartition('.')[2] == name]


def leaves(config: ml_collections.ConfigDict) -> Iterator[tuple[str, Any]]:
    """('section.field', value) in the order of the file, references resolved."""
    yield from flatten_fields(config.to_dict()).items()


def types(config: ml_collections.ConfigDict) -> dict[str, type]:
    """{'section.field': type}, also of a field that is not set."""
    reference = ml_collections.FieldReference
    fields = flatten_fields(_unresolved(config))
    return {key: value.get_type() if isinstance(value, reference) else type(value) for key, value in fields.items()}


def _unresolved(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A nested dict with the references themselves: until all overrides are applied, one may divide by 0."""
    section = ml_collections.ConfigDict
    items = config.items(preserve_field_references=True)
    return {name: _unresolved(value) if isinstance(value, section) else value for name, value in items}


def override(config: ml_collections.ConfigDict, key: str, text: str) -> str:
    """Sets one field from the text of a command line; its present name, if `key` is an earlier one.

    Raises InputError naming the nearest field if there is none of that name, or the field, its type and the text.
    """
    known = types(config)
    section, _, field = key.rpartition('.')
    current = key.removesuffix(field) + base.RENAMED.get(field, field)
    if key not in known and current in known:
        print(f'note: config.{key} is now called config.{current}', file=sys.stderr)
        key, field = current, base.RENAMED[field]
    if key not in known:
        inside = [name for name in known if name.startswith(f'{key}.')]
        if inside:
            raise InputError(f'config.{key} is a section; its fields are {", ".join(inside)}')
        raise InputError(f'unknown field config.{key}{_similar_field(key, known)}')
    for name in section.split('.') if section else ():
        config = config[name]
    kind, optional = known[key], dict(leaves(base.get_config())).get(key, 0) is None
    try:
        if optional and text.lower() == 'none':
            config[field] = None
        else:
            config[field] = parse_tuple(text, config[field], key) if kind is tuple else parse(text, kind)
    except ValueError as error:
        expected = NAMES[kind] + (' or none' if optional else '')
        value = repr(text if len(text) < 80 else f'{text[:80]}...')
        reason = f' ({error})' if isinstance(error, Unparsable) and str(error) else ''
        raise InputError(f'config.{key} must be {expected}, not {value}{reason}{_current(config, field)}') from None
    return key


def _current(config: ml_collections.ConfigDict, field: str) -> str:
    """The present value of a field for a message; '' if it is not set, or is computed by a division by zero."""
    with contextlib.suppress(ZeroDivisionError):
        value = config[field]
        if value is not None:
            first, *more = textwrap.wrap(repr(value), 80, break_on_hyphens=False)
            return f'; now it is {first}{" ..." if more else ""}'
    return ''


class Unparsable(ValueError):
    """A text that is not a value of a type; the message is the reason, '' if the type is reason enough."""


def parse(text: str, kind: type) -> Any:
    """The text of a command line as a value of a type. Raises ValueError or Unparsable.

    >>> parse('2_000', int), parse('1e3', int), parse('true', bool), parse("[('.*', 8)]", tuple)
    (2000, 1000, True, (('.*', 8),))
    """
    if kind is bool and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if kind is int and re.fullmatch(r'[+-]?\d+(_\d+)*', text) and len(text) < 20:
        return int(text)
    if kind is int and re.fullmatch(r'[+-]?\d+(\.\d+)?[eE]\+?\d{1,2}', text) and float(text).is_integer():
        return int(float(text))
    if kind is float:
        value = float(text)
        if not math.isfinite(value):
            raise Unparsable('it must be finite')
        return value
    if kind is tuple:
        with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            value = tuples(ast.literal_eval(text))
            if isinstance(value, tuple):
                return value
    if kind is str:
        return text
    raise Unparsable


def parse_tuple(text: str, current: tuple, key: str) -> Any:
    """The text of a command line for a field that is a tuple now; also one number or text, for `base.Section`.

    Without quotes and brackets commas separate texts, except in the fields `WITH_COMMAS`.

    >>> parse_tuple('16', (('.*', 8),), 'adapt.lora.rank'), parse_tuple('question,context', (), 'task.text')
    (16, ('question', 'context'))
    """
    if base.has_pairs(current):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return parse(text, kind)
    bare = text and not re.match(r'[(\[{\'"]', text)
    if bare and key in NAMED:
        return split_texts(text, key)
    try:
        return parse(text, tuple)
    except Unparsable:
        value: Any = None
        with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
        if not bare and isinstance(value, str | int | float):
            raise Unparsable(f'a tuple of one value has a comma: ({value!r},)') from None
        of_texts = key.startswith(OF_TEXTS) or (current and all(isinstance(each, str) for each in current))
        if not bare or not of_texts or isinstance(value, int | float | complex):
            raise
    return split_texts(text, key)


def split_texts(text: str, key: str) -> tuple[str, ...]:
    """The texts between commas; one text in the fields `WITH_COMMAS`."""
    return (text,) if key.rpartition('.')[2] in WITH_COMMAS else tuple(text.split(','))


def tuples(value: Any) -> Any:
    """Nested lists as tuples: a config contains no list."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def check_derived(config: ml_collections.ConfigDict, name: str, overridden: Iterable[str], prefix: str = '') -> None:
    """Raises InputError naming a field that is computed by a division by zero, and a field of its section that is 0.

    `overridden` are the fields of the command line, which are named first.
    """
    failed, zeros = [], []
    for key, field in config.items(preserve_field_references=True):
        if isinstance(field, ml_collections.ConfigDict):
            check_derived(field, name, overridden, f'{prefix}{key}.')
            continue
        try:
            value = config[key]
        except ZeroDivisionError:
            failed.append(f'config.{prefix}{key}')
            continue
        if type(value) is int and value == 0:
            zeros.append(f'{prefix}{key}')
    if failed:
        standard = dict(leaves(base.get_config()))
        zeros = sorted((key for key in zeros if standard.get(key) != 0), key=lambda key: key not in overridden)
        divisor = f'config.{zeros[0]} = 0' if zeros else '0'
        raise InputError(f'{name}: {failed[0]} is computed by a division by zero ({divisor}); set either to 1 or more')


def standard_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config whose fields and types a config must have: that of compare.py for a comparison, else base.py."""
    if 'compare' not in config:
        return base.get_config()
    from configs import compare  # late: other recipes have no such section

    return compare.get_config()


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Raises InputError if a config's fields or their types are not those of base.py, or a number is not finite."""
    standard, own = types(standard_of(config)), types(config)
    own = {key: kind for key, kind in own.items() if not key.startswith(ARMS)}
    standard = {key: kind for key, kind in standard.items() if not key.startswith(ARMS)}
    unset = {key for key, value in leaves(base.get_config()) if value is None}
    for key in standard.keys() - own.keys():
        raise InputError(f'{name}: config.{key} is missing; a recipe starts from configs.base.get_config()')
    if 'budget' in config and all(value is None for value in config.budget.values()):
        fields = ', '.join(f'config.budget.{field}' for field in base.get_config().budget)
        raise InputError(f'{name}: no budget is set; set one of {fields}')
    for key, value in leaves(config):
        if key.startswith(ARMS):
            continue  # lmtrain.compare.arms reads them
        if key not in standard:
            raise InputError(f'{name}: unknown field config.{key}{_similar_field(key, standard)}')
        if value is None and key in unset:
            continue
        if value is None:
            raise InputError(f'{name}: config.{key} follows a field that is not set; set config.{key} as well')
        if type(value) is not standard[key]:
            raise InputError(f'{name}: config.{key} must be {NAMES[standard[key]]}, not {value!r}')
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f'{name}: config.{key} must be finite, not {value}')
