"""The Jinja environment of chat templates: the same as in transformers, sandboxed, with `Traced` texts."""

import functools
import json
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.sandbox

from lmtrain.data.chat.traced import ANSWER, CONTENT, GENERATION, TEMPLATE, Traced, concat, flags_of, origin_of


@functools.cache
def compiled(source: str) -> jinja2.Template:
    """A chat template that renders to `Traced`. Raises jinja2.TemplateSyntaxError."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters |= {'tojson': _tojson, 'join': _join}
    environment.globals['raise_exception'] = _raise_exception
    return environment.from_string(source)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Without escapes for HTML, same as transformers."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return Traced(text, flags_of(value) & ~TEMPLATE | CONTENT)


@jinja2.pass_environment
def _join(environment, value, d='', attribute=None):
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return Traced(d, origin_of(d)).join(map(str, value))


@functools.cache
def _literal(text: str) -> Traced:
    return Traced(text, TEMPLATE)


class _Generator(jinja2.compiler.CodeGenerator):
    """Flags the literals of a template, and keeps origins in `~`."""

    def _output_const_repr(self, group):
        return _source(''.join(group))

    def visit_Const(self, node, frame):
        self.write(_source(node.as_const(frame.eval_ctx)))

    def visit_Concat(self, node, frame):
        self.write('environment.concat(map(str, (')
        for each in node.nodes:
            self.visit(each, frame)
            self.write(', ')
        self.write(')))')


def _source(value: Any) -> str:
    """The Python source of a constant in a template."""
    if isinstance(value, str):
        return f'environment.literal({value!r})'
    if isinstance(value, tuple):
        return f'({"".join(f"{_source(each)}, " for each in value)})'
    if isinstance(value, list):
        return f'[{", ".join(map(_source, value))}]'
    if isinstance(value, dict):
        return f'{{{", ".join(f"{_source(key)}: {_source(each)}" for key, each in value.items())}}}'
    return repr(value)


class _Generation(jinja2.ext.Extension):
    """{% generation %}, which in transformers contains the text of the assistant."""

    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method('_mark'), [], [], body).set_lineno(line)

    def _mark(self, caller):
        text = caller()
        if not flags_of(text) & ANSWER:  # of a message that is not trained
            return text
        return Traced(text, bytes(flag | GENERATION for flag in origin_of(text)))


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(concat)
    literal = staticmethod(_literal)


def _raise_exception(message):
    raise jinja2.TemplateError(message)
