"""generation_config.json: the tokens that begin, end and pad a text, and the sampling settings of the model's authors.

https://huggingface.co/docs/transformers/main_classes/text_generation describes the fields.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError
from lmtrain.files import read_json_object, write_json

FILE = 'generation_config.json'
END = 'eos_token_id'


def read(directory: str | Path) -> dict[str, Any]:
    """The fields of a directory's generation_config.json, {} without one.

    If it lacks `bos_token_id` or `pad_token_id`, they are those of config.json. `eos_token_id` is a list of the ids in
    both files, in each of which it may be a number, a list or null; negative ids, which mean none, are omitted.

    InputError: a file is not a JSON object, or an id is not an integer.
    """
    directory = Path(directory)
    own, model = (_object(directory / name) for name in (FILE, 'config.json'))
    fields = {name: value for name, value in own.items() if name != '_from_model_config'}  # it is a separate file now
    for name in ('bos_token_id', 'pad_token_id'):
        ids = _ids(own, name, directory / FILE) or _ids(model, name, directory / 'config.json')
        fields.pop(name, None)
        fields |= {name: ids[0]} if ids else {}
    ends = _ids(own, END, directory / FILE) + _ids(model, END, directory / 'config.json')
    fields.pop(END, None)
    return fields | ({END: list(dict.fromkeys(ends))} if ends else {})


def fields_of(base: Mapping[str, Any], tokenizer, size: int, ends: Iterable[int] = ()) -> dict[str, Any]:
    """The fields for a model trained from a base with the fields `base` (`read`), or {}.

    Args:
      tokenizer: a `data.Tokenizer`; its begin and pad tokens are used if the base has none.
      size: rows of the embedding; larger ids cannot be drawn and are omitted.
      ends: further tokens that end a text, beside those of the tokenizer and the base.
    """
    pad = tokenizer.special_ids.get(tokenizer.config.get('pad_token')) if tokenizer.config_json else None
    roles = {'bos_token_id': tokenizer.begin_id} | ({} if pad is None else {'pad_token_id': pad})
    fields = {name: token for name, token in roles.items() if token < size} | dict(base)
    every = dict.fromkeys((tokenizer.end_id, *base.get(END, ()), *ends))
    return fields | {END: [token for token in every if token < size]}


def write(directory: str | Path, fields: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all."""
    write_json(Path(directory) / FILE, fields, indent=2, ensure_ascii=False)


def _object(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _ids(fields: Mapping[str, Any], name: str, path: Path) -> list[int]:
    """The ids in a field."""
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int:
            raise InputError(f'{path}: {name} is {value!r}; the id of a token is expected, or a list of ids')
    return [token for token in ids if token >= 0]
