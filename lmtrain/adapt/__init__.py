"""Adaptation: leaves that a method adds to a model's parameters, and the regex of trainable paths."""

from lmtrain.adapt import ia3, lora
from lmtrain.adapt.adapter import Adapter, check, combine, extend
from lmtrain.adapt.methods import METHODS, Method, method
from lmtrain.adapt.multi import largest_change, mix, split_adapter, stack
from lmtrain.adapt.peft.adapters import check_base, labels_of, load_adapter, save_adapter
from lmtrain.adapt.peft.heads import under_class
from lmtrain.models.virtual_tokens import materialise

__all__ = [
    'METHODS', 'Adapter', 'Method', 'check', 'check_base', 'combine', 'extend', 'fold', 'labels_of', 'largest_change',
    'load_adapter', 'method', 'mix', 'save_adapter', 'split_adapter', 'stack', 'under_class',
]  # fmt: skip


def fold(params):
    """`params` with every adapter merged into the model's leaves, as far as it has a closed form (LoRA, DoRA, IA3).

    The networks of P-tuning and prefix tuning are replaced by their outputs. Sums and products are in float32, and each
    leaf keeps its dtype. Raises InputError for a LoRA of an embedding to which the head is tied.
    """
    return ia3.fold(lora.fold(materialise(params)))
