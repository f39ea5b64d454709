"""Conversations as examples: written by a chat template, and the assistant's answers marked as what is learned.

An answer is what a message adds to the text before it and the cue to speak (`add_generation_prompt`). Templates differ
in how they write a conversation of several turns, so it is written in the first of three ways that fits it:

  marked    the template has {% generation %}, and what stands within is learned
  whole     the conversation is written once; each answer stands there as it is written when it is the last message
  separate  one text for each answer, with what was said before it; for templates that write an answer otherwise once
            more is said (Qwen 3 leaves the reasoning out)
"""

import collections
import copy
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.chat.conversation import Conversation, checked, read
from lmtrain.data.chat.template import PLAIN, Template, Text, as_text, encode
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
from lmtrain.data.example_store import Examples
from lmtrain.data.examples import Example, LengthPolicy
from lmtrain.data.progress import progress_bar
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.errors import InputError
from lmtrain.files import local_path

Span = tuple[int, int]


class Written(NamedTuple):
    """A conversation as texts.

    Attributes:
      way: 'marked', 'whole', 'separate' (see above), or 'as it stands' without a template.
      texts: each with [(begin, end)] of what is learned in it.
      unwritten: what the template leaves out.
    """

    way: str
    texts: list[tuple[Text, list[Span]]]
    unwritten: list[str]


def template_of(template: str, tokenizer: Tokenizer, root: str, date: str = '') -> Template | None:
    """The template that config.task.template names; None for 'none'.

    Args:
      template: 'auto' (the tokenizer's own, else 'plain'), 'plain', 'none', the name of one of the tokenizer's several
        templates, or a Jinja file, whose relative path starts at `root`.
      date: what `strftime_now` writes, 'YYYY-MM-DD'.

    Raises FileNotFoundError, ValueError.
    """
    own = tokenizer.config.get('chat_template') or {}
    own = {'default': own} if isinstance(own, str) else {each['name']: each['template'] for each in own}
    if template == 'none':
        return None
    if template == 'auto' and own and 'default' not in own:
        raise InputError(
            f"config.task.template is 'auto', and the tokenizer has several chat templates, none of them called "
            f"'default': name one of {', '.join(map(repr, own))}"
        )
    if template == 'auto' and own:
        result = Template(own['default'], "the tokenizer's chat template")
    elif template in ('auto', 'plain'):
        result = Template(PLAIN, 'the plain template')
    elif template in own:
        result = Template(own[template], f"the tokenizer's chat template {template!r}")
    else:
        path = local_path(template, 'task.template', root)
        if not path.is_file():
            names = ''.join(f'{name!r}, ' for name in own if name != 'default')
            raise FileNotFoundError(
                f"config.task.template: no file {path}; it is 'auto', 'plain', {names}or a Jinja chat template"
            )
        result = Template(path.read_text(encoding='utf-8'), f'the chat template {path}')
    return result._replace(date=date) if result.dated else result


def trained_template(task, tokenizer: Tokenizer) -> Template | None:
    """The template that a run was trained with; None if its rows stood as they are.

    Args:
      task: config.task of a run on conversations.
      tokenizer: of the run, which carries the template.
    """
    if task.template == 'none':
        return None
    return template_of('auto', tokenizer, '', task.date)


def carrying(tokenizer: Tokenizer, template: Template) -> Tokenizer:
    """The tokenizer with `template` as its own: in the folder of a run, and in what is exported from it."""
    fields = {'tokenizer_class': 'PreTrainedTokenizerFast'} | tokenizer.config
    changed = copy.copy(tokenizer)
    for known in ('hash', 'encoding'):
        changed.__dict__.pop(known, None)
    changed.about = json.dumps(fields | {'chat_template': template.source}, sort_keys=True).encode()
    return changed


def prompt(
    messages: str | list[dict[str, Any]], tokenizer: Tokenizer, template: Template, system: str = '', tools: Any = None
) -> list[int]:
    """Ids of a conversation up to where the assistant begins to speak.

    Args:
      messages: one user's turn, or messages with `role` and `content`.
      system: a text of the system before them; '' is none.

    Raises ValueError if a message is wrong or the template fails.
    Example: `prompt('Hi', tokenizer, trained_template(config.task, tokenizer))`.
    """
    messages = [{'role': 'user', 'content': messages}] if isinstance(messages, str) else list(messages)
    first = [{'role': 'system', 'content': system}] if system else []
    dialogue = Conversation(checked(first + messages, 'the prompt'), tools=tools)
    text = render(dialogue, tokenizer, template, 'the prompt', True)
    return _begun(encode(text, [], tokenizer)[0], tokenizer, template, 'the prompt')


def answer_end(tokenizer: Tokenizer, template: Template | None) -> int | None:
    """The id of the token that ends an answer: the special token that the template writes after it, else the end token.

    None if the template refuses a question and its answer, also with a text of the system before them: what ends its
    answers is only known from rows (`learned_end`).
    """
    if template is None:
        return tokenizer.end_id
    pair = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    for messages in (pair, [{'role': 'system', 'content': 'c'}, *pair]):
        dialogue = Conversation(messages, (len(messages) - 1,))
        try:
            (text, _), *_ = written(dialogue, tokenizer, template, 'a short conversation').texts
        except ValueError:
            continue
        spoken = _runs(text.origin, ANSWER)
        behind = [each.token for each in text.specials if spoken and each.begin >= spoken[-1][1]]
        return behind[0] if behind else tokenizer.end_id
    return None


def learned_end(examples: Examples, tokenizer: Tokenizer) -> int:
    """The id of the special token that most answers of some rows end with, else the end token."""
    learned = np.append(examples.flat['loss_mask'] > 0, False)
    last = examples.tokens[1:][learned[:-1] & ~learned[1:]].tolist()
    ends = collections.Counter(token for token in last if token in tokenizer.specials)
    return ends.most_common(1)[0][0] if ends else tokenizer.end_id


def conversations(
    rows: Sequence[Row],
    text: tuple[str, ...],
    label: str,
    tokenizer: Tokenizer,
    template: Template | None,
    long: LengthPolicy,
) -> tuple[list[Example], list[str], bool]:
    """(examples, what was recognised, a line each, whether the template has written any).

    Columns: `loss_mask` float32 [n], 1 if the next token is one that the assistant says; `bytes` int32 [n], those of
    the text behind the next token.

    Args:
      text, label: fields of prompt and completion, or of a conversation; () recognises the format of every row.

    Raises ValueError naming the row: fields of two formats or of none, a template that fails, no token to learn.
    """
    examples, forms, beyond = [], collections.Counter(), []
    ways, unwritten, answers = collections.Counter(), collections.Counter(), 0
    for number, row in enumerate(progress_bar(rows, 'writing conversations', len(rows))):
        form, dialogue = read(row, text, label)
        forms[form, bool(dialogue.messages)] += 1
        how, each_tokens = tokens(dialogue, tokenizer, template, row.place)
        ways[how.way] += 1
        unwritten.update(how.unwritten)
        answers += len(each_tokens) * (how.way == 'separate')
        if not any(_says(ids, learns, tokenizer) for ids, learns, _ in each_tokens):
            left = f'; the template does not write the {" and ".join(how.unwritten)}' if how.unwritten else ''
            raise InputError(
                f'{row.place}: not a single token to learn: the assistant says nothing, or nothing that is to be '
                f'learned ("weight", "train"){left}'
            )
        for ids, learns, sizes in each_tokens:
            if not _says(ids, learns, tokenizer) or not long.fits(row, len(ids) - 1):
                continue
            ids, learns = ids[: long.seq_len + 1], learns[: long.seq_len + 1]
            if not _says(ids, learns, tokenizer):
                beyond.append(row.place)
                continue
            mask = np.array([*learns[1:], False], np.float32)
            spelled = np.array([*sizes[1 : len(ids)], 0], np.int32)
            examples.append(Example(number, np.array(ids, np.int32), {'loss_mask': mask, 'bytes': spelled}, {}))
    notes = [
        f'{count} rows of {form}, {f"written by {template.name}" if by_template else "as they stand"}'
        for (form, by_template), count in forms.items()
    ]
    if ways['marked']:
        notes.append(f'{ways["marked"]} rows: learned is what the template marks with {{% generation %}}')
    if ways['separate']:
        notes.append(
            f'{ways["separate"]} rows as {answers} texts, one an answer: the template rewrites earlier answers'
        )
    notes += [f'{count} rows: the template does not write their {what}' for what, count in unwritten.items()]
    if beyond:
        notes.append(
            f'{len(beyond)} of the cut rows are left out, what they teach lies behind the cut: {beyond[0]}, ...'
        )
    return examples, notes, any(by_template for _, by_template in forms)


def _says(ids: list[int], learns: list[bool], tokenizer: Tokenizer) -> bool:
    """Whether a token of content is learned, which the first one cannot be."""
    return any(learn and token not in tokenizer.specials for token, learn in zip(ids[1:], learns[1:]))


def tokens(
    dialogue: Conversation, tokenizer: Tokenizer, template: Template | None, place: str
) -> tuple[Written, list[tuple[list[int], list[bool], list[int]]]]:
    """(how it is written, [(ids, whether each is learned, the bytes of text behind each)]) of a conversation.

    BOS stands once at the beginning, and the end of every answer is learned.
    """
    if not dialogue.messages:
        asked, answer = dialogue.texts
        span = len(asked), len(asked) + len(answer)
        result = Written('as it stands', [(as_text(asked + answer, tokenizer), [span])], [])
    elif template is None:
        raise InputError(f"{place}: a conversation, and config.task.template is 'none': set it to 'auto'")
    else:
        result = written(dialogue, tokenizer, template, place)
    rows = []
    for text, spans in result.texts:
        ids, learns, sizes = encode(text, spans, tokenizer)
        _end_at_the_mark(ids, learns, tokenizer)
        if learns and learns[-1] and ids[-1] not in tokenizer.specials:
            ids, learns, sizes = [*ids, tokenizer.end_id], [*learns, True], [*sizes, 0]
        begun = _begun(ids, tokenizer, template if dialogue.messages else None, place)
        more = len(begun) - len(ids)
        rows.append((begun, [False] * more + learns, [0] * more + sizes))
    return result, rows


def _begun(ids: list[int], tokenizer: Tokenizer, template: Template | None, place: str) -> list[int]:
    """The ids with the token that begins a text, if the tokenizer asks for it. Raises ValueError if it stands twice."""
    begin = tokenizer.begin_id
    if ids[:1] != [begin] and (template is None or begin in tokenizer.layout.prefix):
        ids = [begin, *ids]
    if template and ids[:2] == [begin, begin]:
        name = tokenizer.specials[begin]
        raise InputError(f'{place}: {template.name} begins with {name!r} twice; a text begins with it once')
    return ids


def _traced(message: dict[str, Any], flags: int) -> dict[str, Any]:
    """A message whose texts have `flags`. A role is one of ours and may be part of a special token's name."""
    kind = {'system': SYSTEM, 'developer': SYSTEM, 'tool': RESULT}.get(message['role'], 0)
    calls = {name: traced(message[name], flags | CALLS) for name in ('tool_calls',) if name in message}
    return traced(message, flags | kind) | calls | {'role': Traced(message['role'], TEMPLATE)}


def render(
    dialogue: Conversation, tokenizer: Tokenizer, template: Template, place: str, cue: bool, count: int | None = None
) -> Text:
    """The text of the first `count` messages (of all, if None); those that are learned are marked ANSWER."""
    messages = [
        _traced(each, CONTENT | ANSWER * (at in dialogue.learned)) for at, each in enumerate(dialogue.messages[:count])
    ]
    return template.render(messages, tokenizer, place, traced(dialogue.tools, CONTENT | TOOLS), cue)


def written(dialogue: Conversation, tokenizer: Tokenizer, template: Template, place: str) -> Written:
    """A conversation of messages as the template writes it. Raises ValueError if the template fails.

    An answer of which the template writes nothing (tool calls, in many) is not learned.
    """
    whole = render(dialogue, tokenizer, template, place, False)
    if template.marks_answers:
        return _written('marked', [(whole, _runs(whole.origin, GENERATION))], dialogue)
    separate, spans = [], []
    for index in dialogue.learned:
        one = dialogue._replace(learned=(index,))
        alone = render(one, tokenizer, template, place, False, index + 1)
        if not _runs(alone.origin, ANSWER):
            continue
        try:
            before = render(one, tokenizer, template, place, True, index)
        except ValueError:  # a template may ask for a question: nothing stands before an answer that comes first
            before = Text('', b'', ())
        begin, kept = _begin(before, alone)
        if kept:
            separate.append((alone, [(begin, len(alone.text))]))
        else:
            asked, answer = before.traced(), alone.traced()[begin:]
            separate.append((as_text(asked + answer, tokenizer), [(len(asked), len(asked) + len(answer))]))
        spans.append((begin, _end(alone, whole, begin) if kept else None))
    if all(end is not None for _, end in spans):
        return _written('whole', [(whole, spans)], dialogue)
    return _written('separate', separate, dialogue)


def _written(way: str, texts: list[tuple[Text, list[Span]]], dialogue: Conversation) -> Written:
    """With what a conversation has and none of the texts holds."""
    roles = {message['role'] for message in dialogue.messages if message['content']}
    kinds = {
        'tools': (TOOLS, bool(dialogue.tools)),
        'tool_calls': (CALLS, any(message.get('tool_calls') for message in dialogue.messages)),
        'messages of the system': (SYSTEM, bool(roles & {'system', 'developer'})),
        'messages of tools': (RESULT, 'tool' in roles),
    }
    origins = [text.origin for text, _ in texts]
    unwritten = [
        name for name, (flag, there) in kinds.items() if there and not any(_runs(origin, flag) for origin in origins)
    ]
    return Written(way, texts, unwritten)


def _runs(origin: bytes, flag: int) -> list[Span]:
    """Where the characters with a flag stand, a span for each run of them."""
    flagged = np.frombuffer(origin, np.uint8) & flag > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flagged, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _begin(before: Text, alone: Text) -> tuple[int, bool]:
    """(where the answer that ends `alone` begins, whether `alone` keeps the prompt `before` it).

    The answer begins where the cue to speak ends, and not behind any of its own text; without a prompt, with its text.
    A prompt is kept if none of its content is written otherwise (Mistral moves the system's text to the last question).
    """
    first = _runs(alone.origin, ANSWER)[0][0]
    if not before.text:
        return first, True
    common = alone.cut(_common(before.text, alone.text))
    others = [end for _, end in _runs(alone.origin[:first], CONTENT)]
    asked = [end for _, end in _runs(before.origin, CONTENT)]
    if not asked or asked[-1] <= common:
        return max(min(common, first), *others[-1:], 0), True
    cue, begun = before.text[asked[-1] :], others[-1] if others else 0
    at = alone.text.rfind(cue, begun, first) if cue else -1
    return (at + len(cue) if at >= 0 else begun), False


def _end(alone: Text, whole: Text, begin: int) -> int | None:
    """Where in `whole` the answer ends that ends `alone`; None if it is not written there as it is alone.

    What a template writes after the last message only (Phi-3: the end of the text) may be missing in `whole`, but not
    the text of the answer, nor the only special token that ends it.
    """
    end = whole.cut(alone.cut(_common(alone.text, whole.text)))
    last = _runs(alone.origin, ANSWER)[-1][1]
    marks = [each.end for each in alone.specials if each.begin >= last]
    return end if end > begin and end >= last and not (marks and marks[0] > end) else None


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _end_at_the_mark(ids: list[int], learns: list[bool], tokenizer: Tokenizer) -> None:
    """Blanks that a template writes behind the mark that ends an answer are not learned: nobody waits for them."""
    for at in range(len(ids)):
        if learns[at] and ids[at] not in tokenizer.specials and (at + 1 == len(ids) or not learns[at + 1]):
            back = at
            while learns[back] and ids[back] not in tokenizer.specials and not tokenizer.pieces[ids[back]].strip():
                back -= 1
            if back >= 0 and learns[back] and ids[back] in tokenizer.specials:
                learns[back + 1 : at + 1] = [False] * (at - back)
