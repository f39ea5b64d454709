"""The model card of an export: README.md with the base, data, method, figures, command and licence of a run.

https://huggingface.co/docs/hub/model-cards describes the fields between the dashes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmtrain
from lmtrain import tree
from lmtrain.files import read_json_lines, read_json_object
from lmtrain.models import Transformer
from lmtrain.report import terminal
from lmtrain.report.writers import numbers
from lmtrain.tasks import TASKS

FILE = 'README.md'
PIPELINES = {  # PEFT's task_type -> the pipeline of transformers
    'CAUSAL_LM': 'text-generation',
    'SEQ_CLS': 'text-classification',
    'TOKEN_CLS': 'token-classification',
    'QUESTION_ANS': 'question-answering',
}
UNKNOWN = 'unknown'  # a licence, also for the hub


def write(
    to: Path, name: str, workdir, opened, model: Transformer, params: tree.Params, *, form: str, licence: str = ''
) -> None:
    """Writes the card of a model of the run in `workdir` into the directory `to`.

    Args:
      name: of the directory when it is complete.
      opened: `init_from.Base` of the run.
      model, params: as they are exported.
      form: 'hf' or 'peft'.
      licence: an identifier such as 'apache-2.0'; '' is unknown.
    """
    config, folder = opened.config, Path(workdir)
    results = numbers(read_json_object(folder / 'results.json')) if (folder / 'results.json').is_file() else {}
    starts = read_json_lines(folder / 'lineage.jsonl')
    command = next((start['command'] for start in reversed(starts) if start.get('command')), '')
    task = TASKS[config.task.name]
    masked = task.predicts_tokens and not model.causal
    pipeline = 'fill-mask' if masked else PIPELINES.get(task.peft_type, 'feature-extraction')
    rows = [('base', _base(config)), ('method', _method(config)), ('data', _data(config, results))]
    rows += [('figures', line) for line in _figures(results, opened.step)]
    parts = [
        _front_matter(licence, form, pipeline),
        f'# {folder.resolve().name}',
        f'A {model.family} model of {tree.count(params):,} parameters with a context of {model.max_len:,} tokens, '
        f'trained with lmtrain {lmtrain.__version__} (step {opened.step:,}).',
        '\n'.join(['| | |', '|---|---|', *(f'| {title} | {_cell(text)} |' for title, text in rows)]),
        '## Use\n\n' + _use(name, form, pipeline, opened),
        '## Command\n\n' + (f'```\n{command}\n```' if ' ' in command else 'It was trained from Python.'),
        '## Licence\n\n' + (licence or 'Unknown. Those of the base and of the data may apply.'),
    ]
    text = terminal.printable('\n\n'.join(parts) + '\n').replace(str(Path.home()), '~')
    (to / FILE).write_text(text, encoding='utf-8', errors='backslashreplace')


def _front_matter(licence: str, form: str, pipeline: str) -> str:
    fields = {'license': licence or UNKNOWN, 'library_name': {'hf': 'transformers', 'peft': 'peft'}[form]}
    fields |= {'pipeline_tag': pipeline}
    lines = [f'{name}: {json.dumps(value)}' for name, value in fields.items()]
    return '\n'.join(['---', *lines, 'tags: ["lmtrain"]', '---'])


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '\\|').split())


def _base(config) -> str:
    if not config.init.base:
        return 'none: the parameters were random at the start'
    adapter = f', with the adapter `{Path(config.init.adapter).name}`' if config.init.adapter else ''
    return f'`{Path(config.init.base).name}`{adapter}'


def _method(config) -> str:
    optimizer = f'{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}'
    return f'{config.adapt.method}, task {config.task.name}; {optimizer}, seed {config.seed}'


def _data(config, results: Mapping[str, Any]) -> str:
    if not TASKS[config.task.name].reads_rows:
        if 'data' in results:
            return '; '.join(f'`{name}`: {line}' for name, line in terminal.sources(results['data']))
        return ', '.join(f'`{name}`' for name in (config.data.source, *(name for name, _ in config.data.mix)))
    files = [each if isinstance(each, str) else each[0] for each in config.task.train]
    fields = ', '.join(f'`{name}`' for name in (*config.task.text, config.task.label) if name)
    return ', '.join(f'`{Path(name).name}`' for name in files) + (f', fields {fields}' if fields else '')


def _figures(results: Mapping[str, Any], step: int) -> list[str]:
    """One line for each split that was evaluated."""
    last = (results.get('cost') or {}).get('steps', step)
    unit = results.get('unit', '')
    other = '' if last == step else f' (of step {last:,}, the last one; this is step {step:,})'
    return [
        f'{split}: {terminal.evaluation_line(results[split], results.get("baselines") or {}, unit)}{other}'
        for split in ('validation', 'test')
        if results.get(split)
    ]


def _use(name: str, form: str, pipeline: str, opened) -> str:
    """How the directory is opened."""
    if form == 'peft':
        base, other = Path(opened.config.init.base).name, '' if opened.on_run else "  # or PEFT's PeftModel"
        lines = ['import lmtrain', '', f"model = lmtrain.load('{base}', adapter='{name}'){other}"]
    else:
        lines = ['from transformers import pipeline', '', f"model = pipeline('{pipeline}', '{name}')"]
    return '\n'.join(['```python', *lines, '```'])
