"""Bases by their name on the Hugging Face Hub: the command that downloads one, and the download (extra `hub`)."""

import re
from pathlib import Path

from lmtrain.errors import InputError
from lmtrain.files import local_path
from lmtrain.runtime import progress

NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
FILES = ('*.json', '*.safetensors', '*.model', '*.txt', '*.jinja')  # weights of other formats are not read


def command(name: str) -> str:
    """The command that downloads a model, and the flag that names the result.

    >>> command('openai-community/gpt2')
    'hf download openai-community/gpt2 --local-dir gpt2, then init.base=gpt2'
    """
    folder = name.partition('/')[2]
    return f'hf download {name} --local-dir {folder}, then init.base={folder}'


def local_directory(text: str, field: str = 'init.base') -> str:
    """The directory of a base that a user typed: itself, or that of the Hub's cache for a name such as org/model.

    It is a name if it has that form and neither it nor its first part exists here. A model that was downloaded before
    is not downloaded again. The directory is chosen by huggingface_hub.

    Raises InputError with the command that downloads it if huggingface_hub is not installed or cannot.
    """
    path = local_path(text, field) if text else Path()
    if not text or path.exists() or not NAME.fullmatch(text) or path.parent.exists():
        return text
    place = f'{field}={text!r}: there is no such directory here. A model of the Hugging Face Hub is downloaded by'
    try:
        import huggingface_hub
    except ImportError:
        way_out = 'With the extra hub (pip install -e ".[hub]") lmtrain downloads it'
        raise InputError(f'{place} {command(text)}. {way_out}') from None
    patterns = {'allow_patterns': list(FILES)}
    try:
        return huggingface_hub.snapshot_download(text, local_files_only=True, **patterns)
    except OSError:
        pass  # not in the cache
    try:
        with progress.phase(f'downloading {text} from the Hugging Face Hub'):
            return huggingface_hub.snapshot_download(text, **patterns)
    except Exception as error:  # of the Hub, or of the HTTP library that this version uses
        reason = (str(error) or type(error).__name__).partition('\n')[0]
        raise InputError(f'{place} {command(text)}. The download failed: {reason}') from error
