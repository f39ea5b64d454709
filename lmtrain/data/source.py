"""Sources of text: files, directories, globs, TFDS datasets and the embedded corpus, one document at a time."""

import collections
import functools
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lmtrain.data import cache, python_docs
from lmtrain.data.chat import conversation
from lmtrain.data.document import Document
from lmtrain.data.rows import Row, check_text, json_rows, jsonl_rows, missing_field, parquet_rows
from lmtrain.data.text_files import decode, text_lines
from lmtrain.errors import InputError
from lmtrain.files import is_run_folder, local_path

# Endings that are read in a directory without a file that DATA_ENDINGS names: a README beside data is not part of it.
TEXT_ENDINGS = ('.md', '.rst', '.tex', '.html', '.py')


class Source(NamedTuple):
    name: str  # the value of data.source
    files: tuple[Path, ...]  # if one of them changes, the text is read again
    documents: Callable[[], Iterator[Document]]
    skipped: dict[str, int] = {}  # files of a directory or a glob that are not read, by reason: {'.png': 3}


def open_source(source: str, root: str, directory: Path, text_field: str, document: str) -> Source:
    """The source that config.data names. Its files are listed now and read by `documents()`.

    Args:
      source: 'python', 'tfds:NAME', or a file, directory or glob; relative paths start at `root`. A file is text unless
        ROW_READERS names its ending, in letters of any case. In a directory, files with those endings are read, else
        those of TEXT_ENDINGS. A .json has rows if `source` names this ending; in a glob of all files, it is text.
      directory: data.cache, where TFDS datasets are prepared; data.source must not contain it.
      text_field: the column of jsonl, parquet and TFDS rows.
      document: 'file', 'line' or 'paragraph', for text.

    Raises FileNotFoundError if there is no file, InputError if one is not text.
    """
    if source == 'python':
        prepared = cache.build(directory / python_docs.directory_name(), python_docs.write_dataset)
        return _tfds_source(source, next(prepared.glob('python_docs/*')), 'text', embedded=True)
    if source.startswith('tfds:'):
        return _tfds_source(source, _prepare_tfds(source.removeprefix('tfds:'), directory / 'tfds'), text_field)
    if document not in DOCUMENT_SPLITTERS:
        choices = ', '.join(map(repr, DOCUMENT_SPLITTERS))
        raise InputError(f'data.document is {document!r}; it is one of {choices}')
    files, skipped = _find_files(source, root, directory)
    split = DOCUMENT_SPLITTERS[document]
    readers = ROW_READERS | ({'.json': _read_json} if source.lower().endswith('.json') else {})

    def documents() -> Iterator[Document]:
        for path in files:
            reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
            for text in reader(path, text_field) if reader else split(path):
                yield Document(text)

    return Source(source, files, documents, skipped)


# --- finding files


def _find_files(source: str, root: str, directory: Path) -> tuple[tuple[Path, ...], dict[str, int]]:
    """(files to read, {reason: number of files that are skipped})."""
    if not source.strip():
        raise InputError(f"data.source is {source!r}; it is 'python', 'tfds:NAME', or a file, directory or glob")
    path = local_path(source, 'data.source', root)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f'{path} is a link to {os.readlink(path)}, which does not exist')
    if path.is_dir():
        candidates, skipped = _list_directory(path)
    elif path.exists():
        candidates, skipped = [path], collections.Counter()
    else:
        candidates, skipped = _match_glob(source, path, root)
    files: list[Path] = []
    seen: set[Path] = set()
    for file in candidates:
        # A file that is named explicitly may be in the cache.
        if file != path and file.resolve().is_relative_to(directory.resolve()):
            raise InputError(
                f'{file} is in data.cache={str(directory)!r}, where tokenised text is stored, and '
                f'data.source={source!r} would read it as text: put data.cache outside of data.source'
            )
        if file.is_symlink() and not file.exists():
            raise FileNotFoundError(f'{file} is a link to {os.readlink(file)}, which does not exist')
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f'{file} is not a regular file: write its text to a file first')
        if file.stat().st_size == 0:  # such as the __init__.py of a package
            skipped['empty'] += 1
        elif file.resolve() in seen:
            skipped['second name of a file'] += 1
        else:
            seen.add(file.resolve())
            files.append(file.absolute())
    if not files:
        raise InputError(f'{path}{"" if candidates == [path] else ": each of its files"} is empty: there is no text')
    return tuple(files), {reason: count for reason, count in sorted(skipped.items()) if count}


def _match_glob(source: str, path: Path, root: str) -> tuple[list[Path], collections.Counter]:
    """The files that match data.source as a glob, and the number of directories that do."""
    pattern = str(path)
    if root:  # a folder, not a pattern
        pattern = os.path.join(glob.escape(str(local_path(root, 'data.root'))), local_path(source, 'data.source'))
    names = sorted(glob.glob(pattern, recursive=True))
    matches = [Path(name) for name in names if not os.path.isdir(name)]
    files, of_runs = _without_runs(matches, pattern)
    if not files:
        kind = 'no file matches this glob' if glob.has_magic(source) else 'no such file or directory'
        start = f'data.root, {root!r}' if root else 'the current directory'
        raise FileNotFoundError(
            f'{path}: {kind} (relative paths start at {start}; '
            "data.source is 'python', 'tfds:NAME', or a file, directory or glob)"
        )
    directories = 0 if '**' in source else len(names) - len(matches)
    return files, collections.Counter({'directories': directories, 'of runs': of_runs})


def _without_runs(files: list[Path], pattern: str) -> tuple[list[Path], int]:
    """(the files that are in no run folder below the part of the glob without wildcards, the number of others).

    Otherwise a run in the folder of its own text would train the next one on samples and logs.
    """
    parts = Path(pattern).parts
    fixed = Path(*parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)])
    is_run = functools.cache(lambda folder: is_run_folder(os.listdir(folder)))
    own = [file for file in files if not any(is_run(each) for each in file.parents if fixed in each.parents)]
    return own, len(files) - len(own)


def _list_directory(path: Path) -> tuple[list[Path], collections.Counter]:
    """The files of a directory to read, selected by their endings, and the number of others by ending.

    Hidden files and folders are left out, as in a glob, and folders of runs (`_without_runs`).
    """
    candidates, skipped = [], collections.Counter()
    for parent, directories, names in os.walk(path):
        if parent != str(path) and is_run_folder((*directories, *names)):
            skipped['of runs'] += len(names)
            directories.clear()
            continue
        skipped['hidden'] += sum(name.startswith('.') for name in (*directories, *names))
        directories[:] = [name for name in directories if not name.startswith('.')]
        names = [name for name in names if not name.startswith('.')]
        candidates += [Path(parent) / name for name in names]
        skipped['links to directories'] += sum(os.path.islink(os.path.join(parent, name)) for name in directories)
    candidates.sort()
    lower = {file: file.name.lower() for file in candidates}
    endings = next(
        (each for each in (DATA_ENDINGS, TEXT_ENDINGS) if any(name.endswith(each) for name in lower.values())), ()
    )
    files = [file for file in candidates if lower[file].endswith(endings)]
    skipped.update(file.suffix or 'no ending' for file in candidates if not lower[file].endswith(endings))
    if not files:
        others = ', '.join(f'{count} {ending}' for ending, count in sorted(skipped.items()) if count) or 'no file'
        raise FileNotFoundError(
            f'{path}: no file in this directory ends in {", ".join((*DATA_ENDINGS, *TEXT_ENDINGS))} (it has {others}): '
            f"select text files of any ending with a glob, such as data.source='{path}/**/*.ENDING'"
        )
    return files, skipped


# --- reading text files: path -> texts


def _whole_file(path: Path) -> Iterator[str]:
    yield decode(path.read_bytes(), path)


def _lines(path: Path) -> Iterator[str]:
    return (text for _, text in text_lines(path) if text.strip())


def _paragraphs(path: Path) -> Iterator[str]:
    """Lines between blank lines."""
    paragraph: list[str] = []
    for _, text in text_lines(path):
        if text.strip():
            paragraph.append(text)
        elif paragraph:
            yield '\n'.join(paragraph)
            paragraph = []
    if paragraph:
        yield '\n'.join(paragraph)


# --- reading files of rows or games: (path, text_field) -> texts


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    return (_text_of(row, text_field) for row in jsonl_rows(path, []))


def _read_json(path: Path, text_field: str) -> Iterator[str]:
    try:
        rows = list(json_rows(path, []))
    except InputError as error:
        raise InputError(f'{error}; to train on its characters, name it .txt') from None
    return (_text_of(row, text_field) for row in rows)


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    return (_text_of(row, text_field) for row in parquet_rows(path, [text_field], 'data.text_field'))


def _read_pgn(path: Path, text_field: str) -> Iterator[str]:
    """The moves of each game and its result, without tags, move numbers, comments, annotations and variations."""
    moves: list[str] = []
    for _, text in text_lines(path):
        if text.startswith('%'):  # a line for other programs
            continue
        if not re.match(r'\[\w+ "', text):
            moves.append(text)
        elif moves:
            yield _moves(moves)
            moves = []
    yield _moves(moves)


def _moves(lines: list[str]) -> str:
    text = re.sub(r'\{[^}]*\}|;.*', ' ', '\n'.join(lines))  # comments
    variations = 1
    while variations:  # the innermost ones first
        text, variations = re.subn(r'\([^()]*\)', ' ', text)
    return ' '.join(re.sub(r'\b\d+\.+|\$\d+|[!?]+', ' ', text).split())


def _text_of(row: Row, field: str) -> str:
    """The text of a row; null is '', a document without text, which is counted."""
    if field not in row.fields:
        error = missing_field(row.place, field, row.fields, 'data.text_field')
        raise InputError(f'{error}{_conversation_note(row)}')
    text = row.fields[field]
    return check_text('' if text is None else text, f'{row.place}: {field!r}')


def _conversation_note(row: Row) -> str:
    """The recipe for a row that is a conversation; '' if it is none."""
    try:
        form, _ = conversation.recognise_format(row)
    except InputError:
        return ''
    return f'; the rows look like conversations ({form}): --config=configs/instruct.py trains on them'


DOCUMENT_SPLITTERS = {'file': _whole_file, 'line': _lines, 'paragraph': _paragraphs}
ROW_READERS = {
    '.jsonl': _read_jsonl,
    '.ndjson': _read_jsonl,
    '.jsonl.gz': _read_jsonl,
    '.ndjson.gz': _read_jsonl,
    '.parquet': _read_parquet,
    '.pgn': _read_pgn,
}
DATA_ENDINGS = ('.txt', *ROW_READERS)


# --- TFDS


def _prepare_tfds(name: str, directory: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=directory, file_format='array_record')
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever the code of the dataset does
        raise InputError(
            f'tfds:{name} could not be prepared in {directory} without TensorFlow: {type(error).__name__}: '
            f'{(str(error).splitlines() or [""])[0].rstrip(".")}. Prepare it elsewhere with '
            f'`tfds build {name} --file_format=array_record` and copy the result there'
        ) from error
    return Path(builder.data_path)


def _tfds_source(name: str, directory: Path, text_field: str, embedded: bool = False) -> Source:
    """Every example of a prepared dataset. Its validation and test splits are kept (which data.split='tail' cannot)."""

    def documents() -> Iterator[Document]:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(directory)
        for split in sorted(builder.info.splits):
            fixed = split if split in ('validation', 'test') else ''
            for index, fields in enumerate(builder.as_data_source(split=split)):
                place = f'{name}: {split} {index}'
                if text_field in fields and isinstance(fields[text_field], bytes):
                    fields = fields | {text_field: decode(fields[text_field], Path(place))}
                text = _text_of(Row(place, fields), text_field)
                yield python_docs.document(fields['module'].decode(), text) if embedded else Document(text, '', fixed)

    return Source(name, tuple(sorted(path for path in directory.iterdir() if path.is_file())), documents)
