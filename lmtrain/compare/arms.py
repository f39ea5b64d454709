"""Arms of a comparison: ways to give a base a behaviour, each a few lines of the config."""

import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from lmtrain.compare.choice_scores import SCORES
from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import flatten_fields
from lmtrain.inference.demonstrations import ALL, SELECTORS
from lmtrain.inference.prompt_search import SEARCHES
from lmtrain.tasks import TASKS
from lmtrain.training.checks import unread

# The fields of each kind of arm in the config, beside kind and description.
FIELDS = {
    'train': ('overrides', 'learning_rates', 'vectorised', 'shots', 'select', 'scores'),
    'prompt': ('shots', 'select', 'scores', 'instructions', 'search', 'budget', 'chat_template'),
}


class Arm(NamedTuple):
    """An arm.

    Attributes:
      kind: 'train' or 'prompt'.
      settings: FIELDS of the kind, see configs/compare.py.
    """

    name: str
    kind: str
    description: str
    settings: dict[str, Any]

    @property
    def uses_rows(self) -> bool:
        """Whether trials of several sizes and seeds differ: zero-shot prompting reads no labelled row."""
        return self.kind == 'train' or self.settings['shots'] != 0


def read(compare: ml_collections.ConfigDict, also: Sequence[str] = ()) -> list[Arm]:
    """The arms of config.compare that `only` selects, and those named by `also`.

    Raises InputError naming the arm and what is wrong.
    """
    sections = compare.arms.to_dict()
    if unknown := [name for name in compare.only if name not in sections]:
        hint = did_you_mean(unknown[0], sections)
        raise InputError(f'config.compare.only has {unknown[0]!r}, which is no arm: {", ".join(sections)}{hint}')
    names = {*compare.only, *also} if compare.only else sections
    arms = [_arm(name, section) for name, section in sections.items() if name in names]
    arms.sort(key=lambda arm: arm.kind)  # prompts first
    if not arms:
        raise InputError('config.compare.arms is empty: there is nothing to compare')
    return arms


def _arm(name: str, section: dict[str, Any]) -> Arm:
    place = f'config.compare.arms.{name}'
    if not re.fullmatch(r'\w[\w.-]*', name):
        raise InputError(f'{place}: the name of an arm is the name of its folder: letters, digits, _, - and .')
    kind = section.get('kind') if isinstance(section, dict) else None
    if kind not in FIELDS:
        raise InputError(f'{place}: an arm is configs.compare.arm(...) or prompt(...), not {section!r}')
    settings = {field: value for field, value in section.items() if field not in ('kind', 'description')}
    if odd := sorted(settings.keys() ^ set(FIELDS[kind])):
        raise InputError(f'{place}.{odd[0]}: the fields of this kind of arm are {", ".join(FIELDS[kind])}')
    if kind == 'train' and not settings['learning_rates']:
        raise InputError(f'{place}.learning_rates is empty: give at least one rate')
    if settings['select'] not in SELECTORS:
        hint = did_you_mean(settings['select'], SELECTORS)
        raise InputError(f'{place}.select = {settings["select"]!r} is none of {", ".join(SELECTORS)}{hint}')
    if settings['shots'] < ALL:
        raise InputError(f'{place}.shots = {settings["shots"]}: at least 0, or {ALL} for as many as fit')
    if not settings['scores'] or set(settings['scores']) - set(SCORES):
        raise InputError(f'{place}.scores = {settings["scores"]!r}: one or more of {", ".join(SCORES)}')
    if set(settings['scores']) == {'contrast'} and settings['shots'] == 0:
        raise InputError(
            f'{place}.scores = {settings["scores"]!r} with shots = 0: it is what demonstrations add, and there are '
            "none: add 'sum', or set shots"
        )
    for instruction in settings.get('instructions', ()):
        _check_instruction(f'{place}.instructions', instruction)
    if kind != 'train' and settings['search'] not in ('', *SEARCHES):
        raise InputError(f"{place}.search = {settings['search']!r} is none of '', {', '.join(SEARCHES)}")
    return Arm(name, kind, section['description'], settings)


def _check_instruction(place: str, text: str) -> None:
    """Raises InputError naming the field `place` of the config if `instructions` cannot fill in a text."""
    way = "'{labels}' is replaced by the classes, and braces that belong to the text are doubled, '{{' and '}}'"
    try:
        fields = [field for _, *field in string.Formatter().parse(text) if field[0] is not None]
    except ValueError as error:
        raise InputError(f'{place}: {text!r}: {error}: {way}') from None
    for name, form, conversion in fields:
        if name != 'labels' or form or conversion:
            shown = name + (f'!{conversion}' if conversion else '') + (f':{form}' if form else '')
            raise InputError(f'{place}: {text!r} has the unknown placeholder {{{shown}}}: {way}')


def instructions(arm: Arm, classes: Sequence[str]) -> tuple[str, ...]:
    """The instructions of an arm that prompts, with the names of the classes in place of {labels}; ('',) is none.

    >>> arm = Arm('a', 'prompt', '', {'instructions': ('', 'One of {labels}, as {{}}:')})
    >>> instructions(arm, ('cats', 'dogs'))
    ('', 'One of cats, dogs, as {}:')
    """
    return tuple(text.format(labels=', '.join(classes)) for text in arm.settings['instructions'] or ('',))


def recipe(config: ml_collections.ConfigDict, arm: Arm) -> ml_collections.ConfigDict:
    """The recipe of an arm: the shared sections with its overrides; unlocked, without the section `compare`.

    Shared settings of objectives have their defaults in arms whose objective does not read them.
    """
    own = config.copy_and_resolve_references().unlock()
    del own.compare
    known = flatten_fields(own.to_dict())
    for field, value in arm.settings.get('overrides', ()):
        place = f'config.compare.arms.{arm.name}.overrides'
        if field not in known:
            raise InputError(f'{place}: unknown field {field!r}{did_you_mean(field, known)}')
        *sections, last = field.split('.')
        section = own
        for part in sections:
            section = section[part]
        try:
            section[last] = value
        except TypeError as error:
            raise InputError(f'{place}: {field} = {value!r}: {error}') from None
    if own.task.name in TASKS:
        overridden = {field for field, _ in arm.settings.get('overrides', ())}
        own.update_from_flattened_dict({field: x for field, x in unread(own).items() if field not in overridden})
    return own
