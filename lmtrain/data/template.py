"""Chat templates: Jinja in a sandbox, as transformers runs them, and text that they cannot take for their own marks.

A template's special tokens are found in the text it has written, so content must not be able to write one. Before a
template sees content, the characters that begin or end the name of any special token are replaced by stand-ins, and
replaced back after the special tokens have been found. Templates may cut, strip and quote content as usual.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain.data.text import Tokenizer

STAND_IN = 0x100000  # the last plane of Unicode, which is for private use
PRIVATE = re.compile('[\U00100000-\U0010ffff]')
# The rule for models without one: what is said, a line each, and the answer up to the end of the text.
PLAIN = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}"


class Template(NamedTuple):
    """A Jinja source and what it is called in errors."""

    source: str
    name: str

    def render(self, messages: Sequence[Mapping], names: Mapping[str, str], place: str, **more) -> str:
        """The text of guarded messages; `names`: of the tokens a template may write, `more`: its other variables.

        Raises ValueError naming the row and the template where it fails.
        """
        import jinja2

        try:
            return _compile(self.source).render(messages=messages, **names, **more)
        except Exception as error:  # a template may raise anything that Python does
            why = f'{type(error).__name__}: {error}' if not isinstance(error, jinja2.TemplateError) else str(error)
            raise ValueError(f'{place}: {self.name} fails on this row: {" ".join(why.split())}') from error


@functools.cache
def _compile(source: str):
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what an assistant says; prefix rendering finds that without it."""

        tags = {'generation'}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(('name:endgeneration',), drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters['tojson'] = tojson
    environment.globals['raise_exception'] = raise_exception
    environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def names_of(tokenizer: Tokenizer) -> dict[str, str]:
    """{'bos_token': '<s>', ...} as a template may write them."""
    told = json.loads(tokenizer.about or b'{}')
    names = {role: name for role, name in told.items() if role.endswith('_token')}
    begin, end = (tokenizer.specials.get(token) for token in (tokenizer.begin_id, tokenizer.end_id))
    return {'bos_token': begin} | names | {'eos_token': names.get('eos_token', end)}


def guard(value: Any, tokenizer: Tokenizer, place: str) -> Any:
    """Content of any shape with stand-ins in its texts. Raises ValueError where it holds one already."""
    names = list(tokenizer.special_ids)
    edges = {name[at] for name in names for at in (0, -1)}

    def walk(value):
        if isinstance(value, Mapping):
            return {stand_in(key, {c for c in edges if not c.isalnum()}): walk(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [walk(each) for each in value]
        if not isinstance(value, str):
            return value
        core = value.strip()
        # What could stand whole inside of a name, the rest of which the template writes, is replaced as a whole.
        return stand_in(value, set(core) if core and any(core in name for name in names) else edges)

    def stand_in(text: str, characters: set[str]) -> str:
        if taken := PRIVATE.search(text):
            raise ValueError(f'{place}: it holds the private character U+{ord(taken[0]):X}, which lmtrain needs itself')
        return text.translate({ord(c): ord(c) + STAND_IN for c in characters if not c.isspace() and ord(c) < 0x10000})

    return walk(value)


def unguard(text: str) -> str:
    """The text that `guard` was given."""
    return PRIVATE.sub(lambda found: chr(ord(found[0]) - STAND_IN), text)


def encode(text: str, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """(ids, whether each stands in a span) of a guarded text in which special tokens are written by name.

    A token never reaches across the border of a span: a span is encoded as a model goes on, which has the text before.
    """
    ids: list[int] = []
    within: list[bool] = []
    borders = sorted({border for span in spans for border in span})
    begun = 0

    def plain(end: int, after_special: bool) -> None:
        cuts = [begun, *(border for border in borders if begun < border < end), end]
        for start, stop in zip(cuts, cuts[1:]):
            if start == stop:
                continue
            whole = start == begun and (not ids or after_special and tokenizer.blank_after_special)
            content = unguard(text[start:stop])
            add(tokenizer.encode(content) if whole else tokenizer.encode_inside(content), start)

    def add(new: list[int], at: int) -> None:
        ids.extend(new)
        within.extend([any(start <= at < end for start, end in spans)] * len(new))

    for found in tokenizer.special_pattern.finditer(text):
        plain(found.start(), begun > 0)
        add([tokenizer.special_ids[found[found.lastindex]]], found.start(found.lastindex))
        begun = found.end()
    plain(len(text), begun > 0)
    return ids, within
