"""The unit of text."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text that begins and ends with the token END."""

    text: str
    group: str = ''  # documents of one group are in one split; '': the text is its own group
    split: str = ''  # 'train', 'validation' or 'test' if the source decides it
