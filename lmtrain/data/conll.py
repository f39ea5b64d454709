"""Sentences of words with tags from CoNLL files."""

import collections
import re
from collections.abc import Iterator
from pathlib import Path

from lmtrain.data.text_files import text_lines
from lmtrain.errors import InputError


def read_sentences(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, list[str]], tuple[str, ...]]]:
    """(place, {'tokens', 'tags'}, the place of each word) of every sentence, the parts of a `Row`.

    One word in a line, its tag in the last column, separated by spaces or tabs; blank lines end a sentence.

    '-DOCSTART-' lines and comments before a sentence ('# sent_id = 3', '# id 5f2a') are skipped; if tabs separate the
    columns, so are all lines without a tab that begin with '# '. Raises InputError if the first column numbers the
    words, as in CoNLL-U.
    """
    lines = [(place, text.strip(' \t\r')) for place, text in text_lines(path)]
    counts = collections.Counter(len(_columns(text)) for _, text in lines if text and not text.startswith('# '))
    words = [text for _, text in lines if text and not text.startswith(('#', '-DOCSTART-'))]
    tabs = bool(words) and all('\t' in text for text in words)
    columns = counts.most_common(1)[0][0] if counts else 0
    sentences: list[list[tuple[str, list[str]]]] = [[]]
    comments = 0
    for place, text in lines:
        cells = _columns(text)
        if not text or cells[0] == '-DOCSTART-':
            if sentences[-1]:
                sentences.append([])
        elif tabs and '\t' not in text and text.startswith('# '):
            comments += 1
        elif not sentences[-1] and _is_comment(text, cells, columns):
            comments += 1
        elif len(cells) < 2 or not cells[0] or not cells[-1]:
            raise InputError(f'{place}: expected a word and its tag, not {text[:60]!r}')
        else:
            sentences[-1].append((place, cells))
    sentences = [sentence for sentence in sentences if sentence]
    if sentences:
        _reject_numbered_words(sentences, columns)
    if comments:
        notes.append(f'{path}: {comments:,} comment lines (# ...) skipped')
    for sentence in sentences:
        places = tuple(place for place, _ in sentence)
        fields = {'tokens': [cells[0] for _, cells in sentence], 'tags': [cells[-1] for _, cells in sentence]}
        yield places[0], fields, places


def _columns(text: str) -> list[str]:
    """The columns of a line of CoNLL. Other white space does not separate: a no-break space is part of a word."""
    return [cell.strip(' ') for cell in text.split('\t')] if '\t' in text else re.split(' +', text)


def _is_comment(text: str, cells: list[str], columns: int) -> bool:
    """Whether the first line of a sentence is a comment: the word '#' has as many columns as the other lines."""
    if '\t' in text:
        return cells[0].startswith('# ')
    if len(cells) == 1:  # '#' or '#id=3', without a tag
        return text.startswith('#')
    assigns = re.match(r'# *[\w.:-]+ *=', text)  # '# sent_id = 3', '#id=3 a'
    return bool(assigns) or text.startswith('# ') and len(cells) != columns


def _reject_numbered_words(sentences: list[list[tuple[str, list[str]]]], columns: int) -> None:
    place, cells = sentences[0][0]
    if len(cells) == 10 and re.fullmatch(r'\d+([-.]\d+)?', cells[0]):
        raise InputError(
            f'{place}: ten columns, the first of which numbers the words: this is CoNLL-U, which has several tags. '
            'Keep a column of words and one of tags, without the lines of several words (1-2) and of none (1.1), such '
            "as: grep -vE '^[0-9]+[-.]' FILE | cut -f2,4"
        )
    numbered = all([cells[0] for _, cells in each] == list(map(str, range(1, len(each) + 1))) for each in sentences)
    if columns > 2 and numbered and max(map(len, sentences)) > 2:
        raise InputError(
            f'{place}: the first column numbers the words: keep a column of words and one of tags, such as: cut -f2,3'
        )
