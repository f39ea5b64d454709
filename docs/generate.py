"""Renders the generated parts of the documentation: docs/config.md, the tree of README.md, a table of docs/methods.md.

    python -m docs.generate

A test fails if one of them is outdated.
"""

import pathlib
import re

import lmtrain
from configs import base, compare
from launch import recipe, show

ROOT = pathlib.Path(__file__).resolve().parents[1]
COSTS = re.compile(r'(<!-- costs -->\n).*?(<!-- end -->)', re.DOTALL)
TREE = re.compile(r'(<!-- tree -->\n).*?(<!-- end -->)', re.DOTALL)
OTHERS = (
    ('configs/', 'base.py: every field of a run, compare.py: those of a comparison; one file per recipe'),
    ('launch/', 'one file per subcommand and per launcher; no machine learning'),
    ('experiments/', 'one folder per question: claim, command, cost, result'),
    ('tests/', 'mirrors lmtrain/'),
    ('docs/', 'design, methods, comparison, rewards, policy, data, runs, config, scale; tutorials/'),
)


def tree() -> str:
    """The modules of lmtrain in import order, from its docstring, and the other folders."""
    modules = re.findall(r'^    (\w+(?:\.py|/)) +(.+)$', lmtrain.__doc__, re.MULTILINE)
    lines = ['lmtrain/', *(f'  {name:14} {text}' for name, text in modules)]
    return '\n'.join(['```', *lines, *(f'{name:16} {text}' for name, text in OTHERS), '```']) + '\n'


def readme(text: str) -> str:
    """README.md with its tree rendered."""
    return TREE.sub(lambda match: match[1] + tree() + match[2], text)


def methods(text: str) -> str:
    """docs/methods.md with the page of `lmtrain cost`."""
    from lmtrain.cost import hardware  # late: the other parts need no jax
    from lmtrain.plan import costs, costs_page

    recipe_of_page = recipe.load('pretrain_gpt2', {'plan.price': '2.5'})
    page = costs_page.page(recipe_of_page, costs.Workload(), hardware.parse('h100:1'))
    return COSTS.sub(lambda match: f'{match[1]}```text\n{page}\n```\n{match[2]}', text)


def config() -> str:
    """docs/config.md: every field of configs/base.py, and of a comparison, with its default and its comment."""
    configs = compare.get_config(), base.get_config()
    values = {key: value for each in configs for key, value in recipe.leaves(each)}
    types = {key: kind for each in configs for key, kind in recipe.types(each).items()}
    lines = [
        '# Configuration',
        '',
        'Generated from [configs/base.py](../configs/base.py) and, for the section `compare`,',
        '[configs/compare.py](../configs/compare.py) by `python -m docs.generate`. Set a field in a recipe or with',
        '`--config.SECTION.FIELD=VALUE`. `lmtrain show --config=NAME` prints all values.',
    ]
    notes = show.notes()
    for key, comment in notes.items():
        if key not in values:
            has_fields = any(other.startswith(f'{key}.') for other in notes)
            lines += ['', f'## {key}', '', comment.replace('|', '\\|'), *(('', *HEADER) if has_fields else ())]
            continue
        if '.' not in key:
            lines += ['', f'## {key}', '', *HEADER]
        value, kind = values[key], types[key].__name__
        default = 'not set' if value is None else f'`{show.written(value)}`'.replace('|', '\\|')
        lines.append(f'| `{key}` | {kind} | {default} | {comment.replace("|", chr(92) + "|")} |')
    return '\n'.join(lines) + '\n'


HEADER = ('| field | type | default | meaning |', '|---|---|---|---|')


def files() -> dict[pathlib.Path, str]:
    """{file: its text with the generated parts}."""
    parts = {ROOT / 'README.md': readme, ROOT / 'docs' / 'methods.md': methods}
    rendered = {path: render(path.read_text(encoding='utf-8')) for path, render in parts.items()}
    return {ROOT / 'docs' / 'config.md': config()} | rendered


if __name__ == '__main__':
    for file, text in files().items():
        file.write_text(text, encoding='utf-8')
