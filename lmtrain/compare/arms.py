"""Arms of a comparison: ways to give a base a behaviour, each a few lines of the config."""

from typing import Any, NamedTuple

import ml_collections

from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import flatten_fields
from lmtrain.tasks import TASKS

KINDS = ('train', 'prompt')


class Arm(NamedTuple):
    """An arm.

    Attributes:
      kind: 'train' or 'prompt'.
      settings: of the config, without kind and description. 'train': `overrides` ((field, value), ...) of the recipe,
        `learning_rates` (the grid), `vectorised`. 'prompt': `shots`, `select`.
    """

    name: str
    kind: str
    description: str
    settings: dict[str, Any]

    @property
    def uses_rows(self) -> bool:
        """Whether trials of several sizes and seeds differ: zero-shot prompting reads no labelled row."""
        return self.kind == 'train' or self.settings['shots'] > 0


def read(compare: ml_collections.ConfigDict) -> list[Arm]:
    """The arms of config.compare that `only` selects. Raises InputError naming the arm and what is wrong."""
    sections = compare.arms.to_dict()
    if unknown := [name for name in compare.only if name not in sections]:
        hint = did_you_mean(unknown[0], sections)
        raise InputError(f'config.compare.only has {unknown[0]!r}, which is no arm: {", ".join(sections)}{hint}')
    arms = [_arm(name, section) for name, section in sections.items() if name in (compare.only or sections)]
    if not arms:
        raise InputError('config.compare.arms is empty: there is nothing to compare')
    return arms


def _arm(name: str, section: dict[str, Any]) -> Arm:
    place = f'config.compare.arms.{name}'
    fields = {'train': ('overrides', 'learning_rates', 'vectorised'), 'prompt': ('shots', 'select')}
    kind = section.get('kind') if isinstance(section, dict) else None
    if kind not in fields:
        raise InputError(f'{place}: an arm is configs.compare.arm(...) or prompt(...), not {section!r}')
    settings = {field: value for field, value in section.items() if field not in ('kind', 'description')}
    if settings.keys() != set(fields[kind]):
        odd = sorted(settings.keys() ^ set(fields[kind]))[0]
        raise InputError(f'{place}.{odd}: the fields of this kind of arm are {", ".join(fields[kind])}')
    if kind == 'train' and not settings['learning_rates']:
        raise InputError(f'{place}.learning_rates is empty: give at least one rate')
    if kind == 'prompt' and settings['shots'] < 0:
        raise InputError(f'{place}.shots is {settings["shots"]}: it must be at least 0')
    return Arm(name, kind, section['description'], settings)


def recipe(config: ml_collections.ConfigDict, arm: Arm) -> ml_collections.ConfigDict:
    """The recipe of an arm: the shared sections with its overrides; unlocked, without the section `compare`."""
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
    return own


def as_text(recipe: ml_collections.ConfigDict) -> bool:
    """Whether a trained arm learns the answer as text, so that its classes are scored by their likelihood."""
    return TASKS[recipe.task.name].predicts_tokens
