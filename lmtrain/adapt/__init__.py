"""Adaptation: leaves to add to a model's parameters, and one regex of the leaves that learn."""

from lmtrain.adapt import ia3, lora, prompt
from lmtrain.adapt.adapter import Adapter, check, combine, extend
from lmtrain.adapt.methods import NAMES, Method, method
from lmtrain.adapt.peft import check_base, labels_of, load_adapter, save_adapter
from lmtrain.adapt.peft_heads import under_class
from lmtrain.adapt.several import largest_change, mix, separate, stack

__all__ = [
    'NAMES', 'Adapter', 'Method', 'check', 'check_base', 'combine', 'extend', 'fold', 'labels_of', 'largest_change',
    'load_adapter', 'method', 'mix', 'save_adapter', 'separate', 'stack', 'under_class',
]  # fmt: skip


def fold(params):
    """`params` without the leaves of adapters that have a closed form (LoRA, DoRA, IA3), and with prompts and prefixes
    in place of the networks that make them; in float32, each leaf then in its own dtype.

    Raises ValueError for a LoRA of an embedding to which the head is tied.
    """
    return ia3.fold(lora.fold(prompt.plain(params)))
