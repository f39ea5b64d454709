"""Conversations written by a chat template, and where the answers are in the text.

An answer is what a message adds to the text before it and the generation prompt (`add_generation_prompt`). Templates
write conversations of several turns differently, so the first of three methods is used that fits the template:

  marked    the template has {% generation %}, and the text inside is trained
  whole     the conversation is written once; each answer is in it as it is written when it is the last message
  separate  one text for each answer, with the messages before it; for templates that change an answer when more
            messages follow (Qwen 3 removes the reasoning)
"""

from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import RenderedText, Template, as_text
from lmtrain.data.chat.traced import (
    ANSWER,
    CALLS,
    CONTENT,
    GENERATION,
    RESULT,
    SYSTEM,
    TEMPLATE,
    TOOLS,
    Traced,
    traced,
)
from lmtrain.errors import InputError

Span = tuple[int, int]


class Written(NamedTuple):
    """A conversation as texts.

    Attributes:
      method: 'marked', 'whole', 'separate' (see above), or 'unchanged' without a template.
      texts: each with its trained spans [(begin, end)].
      unwritten: what the template leaves out.
    """

    method: str
    texts: list[tuple[RenderedText, list[Span]]]
    unwritten: list[str]


def render(
    dialogue: Conversation, tokenizer, template: Template, place: str, prompt: bool, count: int | None = None
) -> RenderedText:
    """The text of the first `count` messages (of all, if None), with flag ANSWER on the trained ones.

    Args:
      prompt: whether the text ends with the generation prompt.
    """
    messages = [
        _flag_message(message, CONTENT | ANSWER if index in dialogue.trained else CONTENT)
        for index, message in enumerate(dialogue.messages[:count])
    ]
    return template.render(messages, tokenizer, place, traced(dialogue.tools, CONTENT | TOOLS), prompt)


def _flag_message(message: dict[str, Any], flags: int) -> dict[str, Any]:
    """A message whose texts have `flags`. Roles are from a fixed list and may be part of a special token's name."""
    kind = {'system': SYSTEM, 'developer': SYSTEM, 'tool': RESULT}.get(message['role'], 0)
    calls = {'tool_calls': traced(message['tool_calls'], flags | CALLS)} if 'tool_calls' in message else {}
    return traced(message, flags | kind) | calls | {'role': Traced(message['role'], TEMPLATE)}


def write(dialogue: Conversation, tokenizer, template: Template, place: str) -> Written:
    """A conversation of messages as the template writes it. Raises InputError if the template fails.

    An answer of which the template writes nothing (tool calls, in many templates) is not trained.
    """
    whole = render(dialogue, tokenizer, template, place, False)
    if template.marks_answers:
        return _written('marked', [(whole, flagged_spans(whole.origin, GENERATION))], dialogue)
    separate, spans = [], []
    for index in dialogue.trained:
        one = dialogue._replace(trained=(index,))
        alone = render(one, tokenizer, template, place, False, index + 1)
        if not flagged_spans(alone.origin, ANSWER):
            continue
        try:
            before = render(one, tokenizer, template, place, True, index)
        except InputError:  # a template may require a question: there is nothing before an answer that comes first
            before = RenderedText('', b'', ())
        begin, prompt_kept = _answer_begin(before, alone)
        if prompt_kept:
            separate.append((alone, [(begin, len(alone.text))]))
        else:
            question, answer = before.traced(), alone.traced()[begin:]
            span = len(question), len(question) + len(answer)
            separate.append((as_text(question + answer, tokenizer), [span]))
        spans.append((begin, _answer_end(alone, whole, begin) if prompt_kept else None))
    if all(end is not None for _, end in spans):
        return _written('whole', [(whole, spans)], dialogue)
    return _written('separate', separate, dialogue)


def _written(method: str, texts: list[tuple[RenderedText, list[Span]]], dialogue: Conversation) -> Written:
    """Adds the kinds of content that the conversation has and none of the texts contains."""
    roles = {message['role'] for message in dialogue.messages if message['content']}
    kinds = {
        'tools': (TOOLS, bool(dialogue.tools)),
        'tool_calls': (CALLS, any(message.get('tool_calls') for message in dialogue.messages)),
        'messages of the system': (SYSTEM, bool(roles & {'system', 'developer'})),
        'messages of tools': (RESULT, 'tool' in roles),
    }
    origins = [text.origin for text, _ in texts]
    unwritten = [
        name
        for name, (flag, present) in kinds.items()
        if present and not any(flagged_spans(origin, flag) for origin in origins)
    ]
    return Written(method, texts, unwritten)


def flagged_spans(origin: bytes, flag: int) -> list[Span]:
    """The spans of consecutive characters with a flag.

    >>> flagged_spans(b'\\1\\1\\0\\3', 1)
    [(0, 2), (3, 4)]
    """
    flagged = np.frombuffer(origin, np.uint8) & flag > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flagged, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _answer_begin(before: RenderedText, alone: RenderedText) -> tuple[int, bool]:
    """(where the last answer of `alone` begins, whether `alone` contains the prompt `before` unchanged).

    The answer begins where the generation prompt ends, but not after any of its own text; without a prompt, with its
    text. The prompt is unchanged if none of its content is written differently (Mistral moves the system's text to the
    last question).
    """
    first = flagged_spans(alone.origin, ANSWER)[0][0]
    if not before.text:
        return first, True
    common = alone.cut(_common_prefix(before.text, alone.text))
    others = [end for _, end in flagged_spans(alone.origin[:first], CONTENT)]
    questions = [end for _, end in flagged_spans(before.origin, CONTENT)]
    if not questions or questions[-1] <= common:
        return max(min(common, first), *others[-1:], 0), True
    prompt, start = before.text[questions[-1] :], others[-1] if others else 0
    at = alone.text.rfind(prompt, start, first) if prompt else -1
    return (at + len(prompt) if at >= 0 else start), False


def _answer_end(alone: RenderedText, whole: RenderedText, begin: int) -> int | None:
    """Where in `whole` the last answer of `alone` ends; None if `whole` does not contain it unchanged.

    What a template writes only after the last message (Phi-3: the end of the text) may be missing in `whole`, but not
    the text of the answer, nor the only special token that ends it.
    """
    end = whole.cut(alone.cut(_common_prefix(alone.text, whole.text)))
    last = flagged_spans(alone.origin, ANSWER)[-1][1]
    marks = [each.end for each in alone.specials if each.begin >= last]
    return end if end > begin and end >= last and not (marks and marks[0] > end) else None


def _common_prefix(one: str, other: str) -> int:
    """The length of the common prefix of two texts, by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
