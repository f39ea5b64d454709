"""Chat templates: rendered like in transformers, and encoded so that content is never a special token.

A template sees the real texts of a row. Every character of its output has an origin (traced.py), and the name of a
special token is that token only if all of its characters are from the template.
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain.data.chat.traced import CONTENT, TEMPLATE, JsonText, Traced, origin_of, traced
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError

# For models without a template: each message on a line of its own, and the end of the text after an answer.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}"
    '{% endfor %}'
)
# In the fingerprint of rows that no template writes, in place of one: the first version of the plain template.
UNWRITTEN = (
    "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}",
    'the plain template',
)
REASONING = ('reasoning_content', 'thinking', 'reasoning')  # names of one field in transformers
NOT_OWN = re.compile(b'[' + b''.join(re.escape(bytes([flags])) for flags in range(256) if not flags & TEMPLATE) + b']+')


class Special(NamedTuple):
    """A special token in a text: its name from `begin` to `end`; `span` includes the white space that it strips."""

    token: int
    begin: int
    end: int
    span: tuple[int, int]


class RenderedText(NamedTuple):
    """The output of a template: n characters, n bytes of flags (traced.py), and its special tokens in order."""

    text: str
    origin: bytes
    specials: tuple[Special, ...]

    def traced(self) -> Traced:
        """The text and its origin."""
        return Traced(self.text, self.origin)

    def cut(self, at: int) -> int:
        """`at`, or the beginning of the special token that contains it."""
        return next((each.begin for each in self.specials if each.begin < at < each.end), at)


class Template(NamedTuple):
    """A Jinja source, its name for errors, and the date that it may write ('YYYY-MM-DD'; '' if it writes none)."""

    source: str
    name: str
    date: str = ''

    @property
    def writes_date(self) -> bool:
        """Whether it writes the date of the run."""
        return 'strftime_now' in self.source

    @property
    def marks_answers(self) -> bool:
        """Whether it has {% generation %}."""
        return bool(re.search(r'\{%[-+]?\s*generation\s*[-+]?%\}', self.source))

    def render(
        self, messages: Sequence[Mapping], tokenizer: Tokenizer, place: str, tools: Any = None, prompt=False
    ) -> RenderedText:
        """The text of messages.

        Args:
          messages: their texts are `Traced`; characters without the flag TEMPLATE are content.
          tools: a list of JSON schemas, with `Traced` texts.
          prompt: whether the text ends with the generation prompt (`add_generation_prompt`).

        Raises InputError naming the row and the template if it fails.
        """
        import jinja2

        from lmtrain.data.chat.sandbox import compiled

        names = traced(special_token_names(tokenizer), TEMPLATE)
        try:
            text = compiled(self.source).render(
                messages=[_with_reasoning(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                strftime_now=self._strftime_now,
                **names,
            )
        except Exception as error:  # a template may raise any exception
            reason = f'{type(error).__name__}: {error}' if not isinstance(error, jinja2.TemplateError) else str(error)
            raise InputError(f'{place}: {self.name} fails on this row: {" ".join(reason.split())}') from error
        if lost := _lost_token(text, [messages, tools], tokenizer):
            raise InputError(
                f'{place}: {self.name} writes {lost!r} with % or format, so that it cannot be distinguished from '
                'content: change it to write special tokens as literals'
            )
        return as_text(text, tokenizer)

    def _strftime_now(self, form: str) -> str:
        return datetime.datetime.fromisoformat(self.date).strftime(form)


def _with_reasoning(message: Mapping) -> Mapping:
    """A message whose reasoning has every name that a template may use."""
    text = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if text is None else {'thinking': text} | message | {'reasoning_content': text}


def special_token_names(tokenizer: Tokenizer) -> dict[str, str]:
    """{'bos_token': '<s>', ...}, the variables of a template."""
    names = {role: name for role, name in tokenizer.config.items() if role.endswith('_token')}
    begin, end = (tokenizer.specials.get(token) for token in (tokenizer.begin_id, tokenizer.end_id))
    return {'bos_token': begin} | names | {'eos_token': names.get('eos_token', end)}


def as_text(text: str, tokenizer: Tokenizer) -> RenderedText:
    """A text (`Traced`, or content as a whole) with the special tokens that the template wrote."""
    origin, plain = origin_of(text), ''.join((text,))
    parts, at = [], 0
    for run in NOT_OWN.finditer(origin):  # names are not in content, but white space there may belong to a token
        content = plain[run.start() : run.end()]
        core = content.strip()
        parts += [plain[at : run.start()], content.replace(core, '\0' * len(core)) if core else content]
        at = run.end()
    masked, at, specials = ''.join([*parts, plain[at:]]), 0, []
    while match := tokenizer.special_pattern.search(masked, at):
        begin, end = match.span(match.lastindex)
        own = all(flags & TEMPLATE for flags in origin[begin:end])
        if own:
            specials.append(Special(tokenizer.special_ids[plain[begin:end]], begin, end, match.span()))
        at = match.end() if own else match.start() + 1
    return RenderedText(plain, origin, tuple(specials))


def _lost_token(text: str, contents: Any, tokenizer: Tokenizer) -> str | None:
    """The name of a special token that is neither from content nor known to be from the template; None without one."""
    origin = origin_of(text)
    if 0 not in origin:
        return None
    for match in tokenizer.special_pattern.finditer(text):
        begin, end = match.span(match.lastindex)
        if any(flags & CONTENT for flags in origin[begin:end]) or all(flags & TEMPLATE for flags in origin[begin:end]):
            continue
        name = match[match.lastindex]
        if not any(name in each for each in _texts(contents)):
            return name
    return None


def _texts(value: Any):
    """The texts and keys in a JSON value."""
    if isinstance(value, JsonText):
        yield str(value)
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


class EncodedText(NamedTuple):
    """A text as tokens; three lists of equal length."""

    ids: list[int]
    within: list[bool]  # whether each is in a span
    sizes: list[int]  # bytes of the text behind each; 0 behind special tokens


def encode(text: RenderedText, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> EncodedText:
    """The tokens of a text.

    No token crosses the boundary of a span: a span is encoded like the continuation that a model generates after the
    text before it.
    """
    ids: list[int] = []
    within: list[bool] = []
    sizes: list[int] = []
    bounds = sorted({bound for span in spans for bound in span})
    begun = 0

    def add_plain(end: int, after_special: bool) -> None:
        cuts = [begun, *(bound for bound in bounds if begun < bound < end), end]
        for start, stop in zip(cuts, cuts[1:]):
            if start == stop:
                continue
            whole = start == begun and (not ids or after_special and tokenizer.restarts_after_special)
            content = text.text[start:stop]
            add(tokenizer.encode(content) if whole else tokenizer.encode_inside(content), start, content)

    def add(new: list[int], at: int, content: str) -> None:
        ids.extend(new)
        sizes.extend(tokenizer.bytes_behind(content, new))
        within.extend([any(start <= at < end for start, end in spans)] * len(new))

    for special in text.specials:
        add_plain(special.span[0], begun > 0)
        space = text.text[special.span[0] : special.begin] + text.text[special.end : special.span[1]]
        add([special.token], special.begin, space)
        begun = special.span[1]
    add_plain(len(text.text), begun > 0)
    return EncodedText(ids, within, sizes)
