"""What a family of models offers, and the table of all families.

To add a family, write one file in this folder with the names of `Family`, and add it to the import and to MODULES here.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from lmtrain.models.families import bert, gemma, gpt2, gpt_neox, llama, mistral, modernbert, olmo2, phi3, qwen, roberta
from lmtrain.models.hf import Entry, Fields
from lmtrain.models.hf_heads import Heads


class Family(Protocol):
    """The module of a family: its settings in config.json, and its names of tensors in safetensors files.

    Attributes:
      ARCHITECTURES: {model_type: transformers' class of the language model}.
      HEADS: its other heads and their classes; most decoders have hf_heads.DECODER_HEADS.
      PREFIX: first part of the keys of tensors, such as 'model.', which files of the bare model lack.
      IGNORED: regex of keys, without PREFIX, that files may have and the model does not; hf.BUFFERS or more.
      SIZES: {name of a published size: its update of `model` in a config}.
    """

    ARCHITECTURES: Mapping[str, str]
    HEADS: Heads
    PREFIX: str
    IGNORED: str
    SIZES: Mapping[str, Mapping[str, Any]]

    def settings(self, fields: Fields) -> dict[str, Any]:
        """The model's settings in a config.json. InputError: a field that this family does not support."""
        ...

    def fields(self, model) -> dict[str, Any]:
        """The fields of config.json that the model's settings decide; the inverse of `settings`."""
        ...

    def entries(self, model) -> list[Entry]:
        """The tensors in the files and the leaves that each holds."""
        ...


MODULES: tuple[Family, ...] = (gpt2, llama, mistral, qwen, gemma, phi3, olmo2, gpt_neox, bert, roberta, modernbert)
FAMILIES: dict[str, Family] = {kind: module for module in MODULES for kind in module.ARCHITECTURES}  # by model_type
