"""Adaptation: leaves to add to a model's parameters, and one regex of the leaves that learn."""

from lmtrain.adapt import ia3, lora, prompt
from lmtrain.adapt.adapter import Adapter, check, combine, extend
from lmtrain.adapt.methods import NAMES, Method, method
from lmtrain.adapt.multi import largest_change, mix, split_adapter, stack
from lmtrain.adapt.peft.adapters import check_base, labels_of, load_adapter, save_adapter
from lmtrain.adapt.peft.heads import under_class

__all__ = [
    'NAMES', 'Adapter', 'Method', 'check', 'check_base', 'combine', 'extend', 'fold', 'labels_of', 'largest_change',
    'load_adapter', 'method', 'mix', 'save_adapter', 'split_adapter', 'stack', 'under_class',
]  # fmt: skip


def fold(params):
    """`params` without the leaves of adapters that have a closed form (LoRA, DoRA, IA3), and with prompts and prefixes
    in place of the networks that make them; in float32, each leaf then in its own dtype.

    Raises ValueError for a LoRA of an embedding to which the head is tied.
    """
    return ia3.fold(lora.fold(prompt.materialise(params)))
