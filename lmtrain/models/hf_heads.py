"""Which head a checkpoint has, by the name of its architecture, and where the heads of decoders lie in the files.

A family that has heads of its own says in `HEADS` which settings each has, and in its `entries` where they lie; older
names of its architectures are in `ALIASES`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from lmtrain.errors import InputError, did_you_mean
from lmtrain.models.hf import Entry, Fields
from lmtrain.models.settings import HEAD_KINDS

# A decoder reads the last token of a row, or every token, by one projection.
DECODER = {'none': {}, 'classify': {'head_pool': 'last', 'head_bias': False}, 'tag': {}, 'span': {}}
SUFFIXES = {
    'none': 'Model',
    'classify': 'ForSequenceClassification',
    'tag': 'ForTokenClassification',
    'span': 'ForQuestionAnswering',
}
# The tasks for which transformers has no class, by model_type.
LACKING = {
    'gemma': ('span',),
    'gemma2': ('span',),
    'gemma3_text': ('tag', 'span'),
    'phi3': ('span',),
    'olmo2': ('tag', 'span'),
}
# Question answering whose body transformers calls `transformer`, as it did once.
RENAMED = {('llama', 'span'), ('qwen2', 'span'), ('qwen3', 'span')}


def architectures(module, kind: str) -> dict[str, str]:
    """{head: the architecture that has it} of a model_type."""
    whole = module.ARCHITECTURES[kind]
    stem = re.sub('(For|LMHead).*', '', whole) + ('Text' if kind == 'gemma3_text' else '')
    return {'lm': whole} | {head: stem + suffix for head, suffix in SUFFIXES.items()}


def head_of(config: Mapping, module) -> str:
    """The head of a config.json. Raises ValueError where its architecture is none of the family's."""
    kind = config['model_type']
    known = {name: head for head, name in architectures(module, kind).items()}
    known |= getattr(module, 'ALIASES', {})
    found = config.get('architectures') or [module.ARCHITECTURES[kind]]
    if len(found) != 1 or found[0] not in known:
        near = did_you_mean(str(found[0]), known)
        raise InputError(f'config.json: architectures={found} of a {kind} is none of {", ".join(sorted(known))}{near}')
    return known[found[0]]


def settings(head: str, fields: Fields, module) -> dict:
    """The settings that a head changes, of the number of its labels too."""
    names, count = fields.take('id2label', None), fields.take('num_labels', None)
    if head == 'lm':
        return {}
    labels = {'classify': len(names) if names else count or 2, 'span': 2, 'none': 0}
    labels['tag'] = labels['classify']
    return {'head': head, 'mlm_head': False, 'num_labels': labels[head]} | getattr(module, 'HEADS', DECODER)[head]


def headed(model, module, head: str, num_labels: int, pool: str = 'auto'):
    """`model` with the head that transformers' class for a task has in place of its own; None if it pools otherwise.

    Args:
      module: the family's.
      head: 'classify' | 'tag' | 'span'. num_labels: its outputs.
      pool: how rows are pooled for 'classify': 'first' | 'last' | 'mean', or 'auto': as the class does.
    """
    settings = getattr(module, 'HEADS', DECODER)[head]
    pools = getattr(module, 'POOLS', {})  # if config.json has a choice
    own = settings.get('head_pool', model.head_pool if pools else 'first')
    if HEAD_KINDS[head].per_row and pool not in ('auto', own, *pools.values()):
        return None
    plain = {'mlm_head': False, 'head_activation': '', 'head_bias': True, 'head_pool': own}
    plain |= {'head_pool': pool} if HEAD_KINDS[head].per_row and pool != 'auto' else {}
    return dataclasses.replace(model, **plain | settings | {'head': head, 'num_labels': num_labels})


def labels(config: Mapping) -> tuple[str, ...]:
    """The names of the classes in a config.json, in the order of their numbers; () without any.

    transformers names them LABEL_0, LABEL_1, ... if the file has only their number. Raises ValueError if the numbers
    are not 0, 1, ...
    """
    names = config.get('id2label')
    if not names:
        return tuple(f'LABEL_{i}' for i in range(config.get('num_labels') or 2))
    by_number = {int(number): str(name) for number, name in names.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise InputError(f'config.json: id2label has the numbers {sorted(by_number)}, not 0 to {len(by_number) - 1}')
    return tuple(by_number[number] for number in range(len(by_number)))


def named(model, names: Sequence[str]) -> dict:
    """The fields of config.json for the names of the classes and what the outputs are; a number has no name."""
    head = HEAD_KINDS[model.head]
    if not head.classes or not names:
        return {'problem_type': 'regression'} if head.per_row and model.num_labels == 1 else {}
    kind = {'problem_type': 'single_label_classification'} if head.per_row else {}
    return kind | {
        'id2label': {str(number): name for number, name in enumerate(names)},
        'label2id': {name: number for number, name in enumerate(names)},
    }


def fields(model, module) -> dict:
    """The fields of config.json that the head decides; undoes `settings`.

    Raises ValueError if transformers has no class for it.
    """
    if model.head in LACKING.get(model.family, ()):
        raise InputError(
            f'transformers has no {architectures(module, model.family)[model.head]}: a {model.family} with the head '
            f'of {model.head!r} has no Hugging Face form'
        )
    labels = {'num_labels': model.num_labels} if HEAD_KINDS[model.head].classes else {}
    return {'architectures': [architectures(module, model.family)[model.head]]} | labels


def entries(model, module) -> list[Entry]:
    """Where each leaf of a model lies in the files of its family, those of its head with them."""
    found = module.entries(model)
    if model.head == 'lm' or hasattr(module, 'HEADS'):
        return found
    found = [entry for entry in found if entry.paths != ('head/kernel',)]
    key = {'none': '', 'classify': 'score', 'tag': getattr(module, 'TAG', 'score'), 'span': 'qa_outputs'}[model.head]
    if key:
        found.append(Entry(('task_head/out/kernel',), f'{key}.weight', linear=True))
    if key and model.head_bias:
        found.append(Entry(('task_head/out/bias',), f'{key}.bias'))
    if (model.family, model.head) in RENAMED:
        new = {entry.key: re.sub(rf'^{re.escape(module.PREFIX)}', 'transformer.', entry.key) for entry in found}
        found = [entry._replace(key=new[entry.key], also=(entry.key, *entry.also)) for entry in found]
    return found
