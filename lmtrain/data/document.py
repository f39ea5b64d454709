"""The unit of text."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text that begins and ends with END."""

    text: str
    group: str = ''  # documents of one group stay in one split; '' stands for the text itself
    split: str = ''  # where its source itself says 'train', 'validation' or 'test'
