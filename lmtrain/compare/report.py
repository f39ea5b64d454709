"""The report of a comparison, from results.json alone: report.html, report.md, texts for a README and a terminal."""

import importlib.resources
import os
import pathlib
import re
import textwrap

from lmtrain.compare.pages import choice, drawing, recommendation, sections, values
from lmtrain.compare.pages.blocks import Figures
from lmtrain.compare.pages.values import Results, interval, percent
from lmtrain.errors import InputError
from lmtrain.files import read_json_object, write_atomic
from lmtrain.report import terminal

WIDTH = 80  # columns of a terminal
ANSWERS = 14  # rows of `answer_table`


def read(workdir: str | os.PathLike) -> Results:
    """The results of a comparison. Raises InputError if they are missing or broken."""
    path = pathlib.Path(workdir) / 'results.json'
    if not path.exists():
        raise InputError(f'{path} does not exist: `lmtrain compare --workdir={workdir}` writes it at its end')
    return read_json_object(path)


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html, which needs no other file, and report.md with its figures/; returns the path of the first.

    Reads results.json. What it lacks is reported as not measured. May be called again. Raises as `read`.
    """
    folder, results = pathlib.Path(workdir), read(workdir)
    advice = recommendation.recommend(results)
    with drawing.settings():
        parts = sections.sections(results, advice)
    content = {'title': _title(results), 'scope': _scope(results), 'advice': advice, 'sections': parts}
    content['use_title'] = use_title(results)
    content['use'] = terminal.printable(textwrap.dedent(use(results, folder)))
    (folder / 'figures').mkdir(exist_ok=True)
    for part in parts:
        for panel in (panel for block in part.blocks if isinstance(block, Figures) for panel in block.panels):
            write_atomic(folder / 'figures' / f'{panel.name}.svg', drawing.standalone(panel.svg).encode())
    for name in ('report.md', 'report.html'):
        template = 'page' + pathlib.Path(name).suffix + '.j2'
        write_atomic(folder / name, _render(template, content).encode('utf-8', 'backslashreplace'))
    return folder / 'report.html'


def _title(results: Results) -> str:
    task = results.get('task') or {}
    label, text = (
        value if isinstance(value, str) else ', '.join(value or []) for value in map(task.get, ('label', 'text'))
    )
    return 'Prompt or train? ' + (f'{label} from {text}' if label and text else str(task.get('name') or ''))


def _scope(results: Results) -> str:
    """What was compared, in one line."""
    rows, base = (results.get('task') or {}).get('rows') or {}, results.get('base') or {}
    seeds = {trial['seed'] for trial in results.get('trials') or []}
    parts = [terminal.counted(len(results.get('arms') or {}), 'arm')]
    if base.get('parameters'):
        parts.append(f'a base of {terminal.number(base["parameters"])} parameters')
    parts.append(values.labelled(results, [size for size in values.sizes(results) if size]))
    parts.append(terminal.counted(len(seeds), 'seed'))
    if rows.get('test'):
        parts.append(terminal.counted(rows['test'], 'test row'))
    return '; '.join(filter(None, parts))


def _render(template: str, content: dict) -> str:
    import jinja2  # late: only the report needs it

    source = importlib.resources.files('lmtrain.compare.pages').joinpath(template).read_text(encoding='utf-8')
    environment = jinja2.Environment(
        autoescape=template.endswith('.html.j2'), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['plain'] = _plain
    schemes = {'light': drawing.variables(dark=False), 'dark': drawing.variables(dark=True)}
    page = environment.from_string(source).render(content, **schemes, absent=values.NOT_MEASURED)
    return terminal.printable(page)


def _plain(text: str) -> str:
    """Text in markdown that stays as it is: no markup, no end of a line or of a cell of a table.

    >>> _plain('a_b | <i>*c*')
    'a\\\\_b &#124; &lt;i>\\\\*c\\\\*'
    """
    escaped = ' '.join(text.split()).replace('&', '&amp;').replace('<', '&lt;')
    return re.sub(r'([\\`*_\[\]$~])', r'\\\1', escaped).replace('|', '&#124;')


def answer_table(results: Results) -> str:
    """The arms at the largest size as a markdown table: accuracy with interval, cost to create, cost of a query.

    It has the `ANSWERS` most accurate arms and the recommended one, and says how many it leaves out.
    """
    sizes = values.sizes(results)
    if not sizes:
        return 'No arm has a result.'
    size = sizes[-1]
    advised = choice.choose(results, size).arm
    lines = [
        f'| arm, {values.labelled(results, [size])} | accuracy (95 % interval) | to create | for a query |',
        '|---|---|---|---|',
    ]
    scored = values.scored(results, size)
    shown = [arm for rank, arm in enumerate(scored) if rank < ANSWERS or arm == advised]
    for arm in shown:
        name, about = _plain(arm), _plain(((results.get('arms') or {}).get(arm) or {}).get('description') or '')
        name = ': '.join(filter(None, [f'**{name}**' if arm == advised else name, about]))
        accuracy = values.accuracy(values.summary(results, arm, size))
        fields = (('create_flops', 'device_seconds'), ('query_flops', 'query_seconds'))
        costs = [_short_cost(*(values.cost(results, arm, size, field) for field in pair)) for pair in fields]
        lines.append(f'| {" | ".join([name, accuracy, *costs])} |')
    if len(shown) < len(scored):
        lines += ['', f'Not shown: {terminal.counted(len(scored) - len(shown), "less accurate arm")}.']
    return '\n'.join(lines)


def _short_cost(flops: float | None, seconds: float | None) -> str:
    text = values.quantity(flops, 'FLOP', significant=2)
    return text if seconds is None else f'{text}, {values.seconds(seconds, significant=2)}'


def terminal_summary(results: Results) -> str:
    """The recommendation, and a line for each arm with its accuracy and costs; at most 80 columns."""
    advice = recommendation.recommend(results)
    blocks = [textwrap.fill(advice.headline, WIDTH)]
    if arms := values.scored(results, advice.choice.size):
        rows = [
            (name if len(name) <= 24 else f'{name[:21]}...', *_row(results, name, advice.choice.size)) for name in arms
        ]
        columns = list(zip(('arm', 'accuracy', '95 % interval', 'to create', 'for a query'), *rows))
        measured = [column for column in columns if set(column[1:]) != {values.NOT_MEASURED}]
        blocks.append('\n'.join(terminal.table(list(zip(*measured)), right=tuple(range(1, len(measured))))))
    lines = [f'{label}: {text}' for label, text in advice.evidence] + advice.changes + values.end_notes(results)
    points = [textwrap.fill(line, WIDTH, initial_indent='* ', subsequent_indent='  ') for line in lines]
    return '\n\n'.join([*blocks, *(['\n'.join(points)] if points else [])])


def ending(results: Results, workdir: str | os.PathLike, page: pathlib.Path) -> str:
    """The last lines of a comparison: the summary, the command that uses an arm, the report."""
    command = use(results, workdir)
    title = textwrap.fill(use_title(results), WIDTH)
    return '\n\n'.join(filter(None, [terminal_summary(results), command and f'{title}\n{command}', str(page)]))


def use_title(results: Results) -> str:
    """The line above the command of `use`."""
    choice = recommendation.recommend(results).choice
    if choice.arm is None:
        return f'None is recommended. The classes of new rows by the most accurate arm, {choice.leader}:'
    return f'The classes of new rows by {choice.arm}:'


def use(results: Results, workdir: str | os.PathLike) -> str:
    """The command that predicts the classes of new rows by a trial: the first that is done, of the recommended arm.

    If no arm is recommended, it is of the most accurate one; '' if no arm has a result.
    """
    choice = recommendation.recommend(results).choice
    trials = [
        trial
        for trial in results.get('trials') or []
        if trial['arm'] == (choice.arm or choice.leader) and trial['size'] in (choice.size, 0)  # 0: it reads no rows
        if trial.get('status') == 'done' and trial.get('folder')
    ]
    if not trials:
        return ''
    folder = pathlib.Path(workdir) / min(trials, key=lambda trial: trial['seed'])['folder']
    return terminal.command(['lmtrain', 'predict', f'--workdir={folder}', '--rows=new.csv', '--to=predicted.csv'])


def _row(results: Results, arm: str, size: int) -> tuple[str, ...]:
    """Accuracy, interval, cost to create, cost of a query."""
    entry = values.summary(results, arm, size)
    costs = [values.cost(results, arm, size, field) for field in ('create_flops', 'query_flops')]
    texts = [values.quantity(flops, 'FLOP') for flops in costs]
    return percent(entry['accuracy']), interval(entry.get('interval')), *texts
