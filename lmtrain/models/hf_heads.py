"""The heads of checkpoints: the head that an architecture of config.json names, its settings, and its tensors."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmtrain.errors import InputError, did_you_mean
from lmtrain.models.hf import Entry, Fields, how_to_skip
from lmtrain.models.settings import HEAD_KINDS


class Heads(NamedTuple):
    """The heads of a family beside its language model's, and transformers' classes for them.

    Attributes:
      settings: {head: settings of the model that it changes}.
      projections: {head: module of its last projection in the files, '' if it has none}; {} if the family's `entries`
        contain the heads.
      aliases: {older name of a class: its head}.
      pools: {value of classifier_pooling in config.json: model.head_pool}; {} if the class decides.
      prefixes: {head: prefix that the files of its class have instead of the family's PREFIX}.
      stems: {model_type: first part of the names of its classes}, if the language model's class begins differently.
      missing: {model_type: heads for which transformers has no class}.
    """

    settings: Mapping[str, Mapping[str, Any]]
    projections: Mapping[str, str] = {}
    aliases: Mapping[str, str] = {}
    pools: Mapping[str, str] = {}
    prefixes: Mapping[str, str] = {}
    stems: Mapping[str, str] = {}
    missing: Mapping[str, tuple[str, ...]] = {}


# One projection of the last token of a row, or of every token.
DECODER_HEADS = Heads(
    settings={'none': {}, 'classify': {'head_pool': 'last', 'head_bias': False}, 'tag': {}, 'span': {}},
    projections={'none': '', 'classify': 'score', 'tag': 'score', 'span': 'qa_outputs'},
)
SUFFIXES = {
    'none': 'Model',
    'classify': 'ForSequenceClassification',
    'tag': 'ForTokenClassification',
    'span': 'ForQuestionAnswering',
}


def architectures(module, kind: str) -> dict[str, str]:
    """{head: transformers' class} of a model_type of the family `module`.

    >>> from lmtrain.models.families import llama
    >>> architectures(llama, 'llama')['tag']
    'LlamaForTokenClassification'
    """
    language_model = module.ARCHITECTURES[kind]
    stem = module.HEADS.stems.get(kind) or re.sub('(For|LMHead).*', '', language_model)
    return {'lm': language_model} | {head: stem + suffix for head, suffix in SUFFIXES.items()}


def head_of(config: Mapping, module) -> str:
    """The head of a config.json. InputError: its architecture is unknown to the family `module`."""
    kind = config['model_type']
    known = {name: head for head, name in architectures(module, kind).items()} | module.HEADS.aliases
    names = config.get('architectures') or [module.ARCHITECTURES[kind]]
    if len(names) != 1 or names[0] not in known:
        hint = did_you_mean(str(names[0]), known)
        raise InputError(f'config.json: architectures={names} of a {kind} is none of {", ".join(sorted(known))}{hint}')
    return known[names[0]]


def settings(head: str, fields: Fields, module) -> dict:
    """The settings that a head changes, including the number of its outputs."""
    names, count = fields.take('id2label', None), fields.take('num_labels', None)
    if head == 'lm':
        return {}
    unnamed = 2 if HEAD_KINDS[head].has_outputs else 0  # start and end of a span
    num_labels = (len(names) if names else count or 2) if HEAD_KINDS[head].classes else unnamed
    if HEAD_KINDS[head].per_row:
        _check_problem(fields, num_labels)
    return {'head': head, 'mlm_head': False, 'num_labels': num_labels} | module.HEADS.settings[head]


def _check_problem(fields: Fields, num_labels: int) -> None:
    """Raises InputError if the outputs for a row are neither exclusive classes nor one number."""
    kind = fields.unread.get('problem_type')  # stays unread, so that init.ignore may name it
    known = (None, 'single_label_classification', *(('regression',) if num_labels == 1 else ()))
    if kind not in known and 'problem_type' not in fields.ignore:
        raise InputError(
            f'config.json: problem_type={kind!r} of a head with {num_labels} outputs is not supported, only exclusive '
            'classes (single_label_classification) and one number (regression); to read the outputs as exclusive '
            f'classes, or to train other classes, {how_to_skip("problem_type")}'
        )


def with_task_head(model, module, head: str, num_labels: int, pool: str = 'auto'):
    """`model` with the head of transformers' class for a task instead of its own; None if that class pools differently.

    Args:
      module: the family's.
      head: 'classify' | 'tag' | 'span'. num_labels: its outputs.
      pool: how rows are pooled for 'classify': 'first' | 'last' | 'mean', or 'auto': the same as the class.
    """
    own = module.HEADS.settings[head]
    pools = module.HEADS.pools
    own_pool = own.get('head_pool', model.head_pool if pools else 'first')
    changes = {'mlm_head': False, 'head_activation': '', 'head_bias': True, 'head_pool': own_pool}
    if HEAD_KINDS[head].per_row and pool != 'auto':
        if pool not in (own_pool, *pools.values()):
            return None
        changes['head_pool'] = pool
    return dataclasses.replace(model, **changes | own | {'head': head, 'num_labels': num_labels})


def labels(config: Mapping) -> tuple[str, ...]:
    """The names of the classes in a config.json, in the order of their numbers.

    LABEL_0, LABEL_1, ... if the file has only the number of classes, same as transformers. InputError: the numbers are
    not 0, 1, ...

    >>> labels({'id2label': {'1': 'negative', '0': 'positive'}})
    ('positive', 'negative')
    """
    names = config.get('id2label')
    if not names:
        return tuple(f'LABEL_{i}' for i in range(config.get('num_labels') or 2))
    by_number = {int(number): str(name) for number, name in names.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise InputError(f'config.json: id2label has the numbers {sorted(by_number)}, not 0 to {len(by_number) - 1}')
    return tuple(by_number[number] for number in range(len(by_number)))


def label_fields(model, names: Sequence[str]) -> dict:
    """The fields of config.json for the names of the outputs and the type of the problem; one output is a number."""
    kind = HEAD_KINDS[model.head]
    if not names or not kind.classes:
        return {'problem_type': 'regression'} if kind.per_row and model.num_labels == 1 else {}
    problem = 'regression' if model.num_labels == 1 else 'single_label_classification'
    return ({'problem_type': problem} if kind.per_row else {}) | {
        'id2label': {str(number): name for number, name in enumerate(names)},
        'label2id': {name: number for number, name in enumerate(names)},
    }


def fields(model, module) -> dict:
    """The fields of config.json that the head decides; the inverse of `settings`.

    InputError: transformers has no class for the head.
    """
    name = architectures(module, model.family)[model.head]
    if is_missing(model, module):
        raise InputError(
            f'transformers has no {name}: a {model.family} with the head of {model.head!r} has no Hugging Face form'
        )
    labels = {'num_labels': model.num_labels} if HEAD_KINDS[model.head].classes else {}
    return {'architectures': [name]} | labels


def is_missing(model, module) -> bool:
    """Whether transformers has no class for the head of a model."""
    return model.head in module.HEADS.missing.get(model.family, ())


def entries(model, module) -> list[Entry]:
    """The tensors in the files of a model, including those of its head, and the leaves that each holds."""
    own, heads = module.entries(model), module.HEADS
    if model.head == 'lm' or not heads.projections:
        return own
    own = [entry for entry in own if entry.paths != ('head/kernel',)]
    if projection := heads.projections[model.head]:
        own.append(Entry(('task_head/out/kernel',), f'{projection}.weight', linear=True))
        if model.head_bias:
            own.append(Entry(('task_head/out/bias',), f'{projection}.bias'))
    if prefix := heads.prefixes.get(model.head):
        keys = [re.sub(rf'^{re.escape(module.PREFIX)}', prefix, entry.key) for entry in own]
        own = [entry._replace(key=key, also=(entry.key, *entry.also)) for entry, key in zip(own, keys, strict=True)]
    return own
