"""Adaptation: leaves that a method adds to a model's parameters, and the regex of trainable paths."""

from lmtrain.adapt.adapter import Adapter, check, combine, extend
from lmtrain.adapt.methods import METHODS, Method, fold, method
from lmtrain.adapt.multi import largest_change, mix, split_adapter, stack
from lmtrain.adapt.peft.adapters import check_base, labels_of, load_adapter, save_adapter
from lmtrain.adapt.peft.heads import under_class

__all__ = [
    'METHODS', 'Adapter', 'Method', 'check', 'check_base', 'combine', 'extend', 'fold', 'labels_of', 'largest_change',
    'load_adapter', 'method', 'mix', 'save_adapter', 'split_adapter', 'stack', 'under_class',
]  # fmt: skip
