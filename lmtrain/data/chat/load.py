"""The chat template of config.task.template, and the one that a tokenizer carries."""

import copy
import json

from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.hf_files import read_template
from lmtrain.errors import InputError
from lmtrain.files import local_path


def open_template(template: str, tokenizer: Tokenizer, root: str, date: str = '') -> Template | None:
    """The template that config.task.template names; None for 'none'.

    Args:
      template: 'auto' (the tokenizer's own, else 'plain'), 'plain', 'none', the name of one of the tokenizer's
        templates, or a Jinja file, whose relative path starts at `root`.
      date: the result of `strftime_now` in the template, 'YYYY-MM-DD'.

    Raises FileNotFoundError; InputError, also if the file is not UTF-8.
    """
    own = tokenizer.config.get('chat_template') or {}
    own = {'default': own} if isinstance(own, str) else {each['name']: each['template'] for each in own}
    if template == 'none':
        return None
    if template == 'auto' and own and 'default' not in own:
        raise InputError(
            f"config.task.template is 'auto', and the tokenizer has several chat templates, none of them called "
            f"'default': name one of {', '.join(map(repr, own))}"
        )
    if template == 'auto' and own:
        result = Template(own['default'], "the tokenizer's chat template")
    elif template in ('auto', 'plain'):
        result = Template(PLAIN, 'the plain template')
    elif template in own:
        result = Template(own[template], f"the tokenizer's chat template {template!r}")
    else:
        path = local_path(template, 'task.template', root)
        if not path.is_file():
            names = ''.join(f'{name!r}, ' for name in own if name != 'default')
            raise FileNotFoundError(
                f"config.task.template: no file {path}; it is 'auto', 'plain', {names}or a Jinja chat template"
            )
        result = Template(read_template(path), f'the chat template {path}')
    return result._replace(date=date) if result.writes_date else result


def trained_template(task, tokenizer: Tokenizer) -> Template | None:
    """The template that a run on conversations was trained with; None if its rows have none.

    Args:
      task: config.task of the run.
      tokenizer: of the run, which carries the template (`with_template`).
    """
    return None if task.template == 'none' else open_template('auto', tokenizer, '', task.date)


def with_template(tokenizer: Tokenizer, template: Template | None) -> Tokenizer:
    """The tokenizer with `template` as its own, for the folder of a run and for exports; None removes its own."""
    fields = {'tokenizer_class': 'PreTrainedTokenizerFast'} | tokenizer.config
    fields.pop('chat_template', None)
    fields |= {'chat_template': template.source} if template else {}
    changed = copy.copy(tokenizer)
    for cached in ('hash', 'encoding'):
        changed.__dict__.pop(cached, None)
    changed.config_json = json.dumps(fields, sort_keys=True).encode()
    return changed
