"""every value of a recipe, its differences from base.py, and whether its model can be exported.

lmtrain show --config=configs/quickstart.py
lmtrain show --config=configs/pretrain_gpt2.py --config.model.num_layers=6
lmtrain show --config=configs/quickstart.py --batch
"""

import pathlib
import re
import shutil
import textwrap

from absl import flags

from configs import base, compare
from launch import cli, process_setup, recipe

FLAGS = flags.FlagValues()
recipe.define(FLAGS)
flags.DEFINE_bool('batch', False, 'the first batch instead, decoded, with its targets marked', flag_values=FLAGS)


def notes() -> dict[str, str]:
    """{'section.field' or 'section': its comment in base.py or compare.py}, in the order of the files."""
    comments, heading = {}, ''
    lines = [line for file in (base, compare) for line in pathlib.Path(file.__file__).read_text('utf-8').splitlines()]
    for line in lines:
        text = line.strip()
        if field := re.match(r'config\.([\w.]+) = .*?(?:  # (.*))?$', text):
            comments.setdefault(field[1], field[2] or heading)
        heading = f'{heading} {text.removeprefix("# ")}'.strip() if text.startswith('#') else ''
    return comments


def written(value) -> str:
    """A value as in a recipe, with long fractions shortened."""
    text = repr(value)
    return f'{value:.6g}' if isinstance(value, float) and len(text) > 10 else text


def run(values: flags.FlagValues) -> None:
    process_setup.configure()
    config = recipe.from_flags(values)  # a mistyped field needs no jax
    from lmtrain.plan import dry_run

    if values.batch:
        print(dry_run.first_batch(config))
    else:
        dry_run.check(config)
        page(values)


def title(values: flags.FlagValues) -> str:
    """The name of the recipe and what it claims."""
    path, argument = recipe.find(values.config)
    bold, plain = cli.style('bold', 'plain')
    name = path.stem + (f':{argument}' if argument else '')
    text = textwrap.fill(f'{name}  {recipe.claim(path)}', shutil.get_terminal_size().columns, subsequent_indent='    ')
    return text.replace(name, f'{bold}{name}{plain}', 1)


def changes(values: flags.FlagValues) -> str:
    """What the command line changes in the recipe, by field, and where all other values are."""
    set_here = dict(recipe.leaves(recipe.from_flags(values)))
    in_recipe = dict(recipe.leaves(recipe.run(*recipe.find(values.config))))
    names = dict.fromkeys(text.partition('=')[0] for text in values.override)
    fields = [key for key in set_here if key in names or set_here[key] != in_recipe.get(key)]
    lines = [f'{key} = {written(set_here[key])} (recipe {written(in_recipe.get(key))})' for key in fields]
    screen = shutil.get_terminal_size().columns
    options = {'initial_indent': '  ', 'subsequent_indent': ' ' * 6, 'break_on_hyphens': False}
    wrapped = [textwrap.fill(line, screen, **options) for line in lines]
    heading = 'what this command line changes in the recipe' if lines else 'the recipe is not changed'
    others = textwrap.fill(
        f'`lmtrain show --config={values.config}` prints every value of the recipe.', screen, subsequent_indent='    '
    )
    return '\n'.join([heading, *wrapped, others])


def page(values: flags.FlagValues) -> None:
    """Prints the recipe with every value resolved."""
    config = recipe.from_flags(values)
    bold, dim, green, cyan, plain = cli.style('bold', 'dim', 'green', 'cyan', 'plain')
    resolved, standard = dict(recipe.leaves(config)), dict(recipe.leaves(recipe.standard_of(config)))
    overridden = {text.partition('=')[0] for text in values.override}
    screen = shutil.get_terminal_size().columns

    cells = {key: written(value) for key, value in resolved.items()}
    changed = [key for key in cells if key in standard and resolved[key] != standard[key]]
    origin = {key: f'(base {written(standard[key])})' for key in changed}
    widest = max(len(f'{cell} {origin.get(key, "")}') for key, cell in cells.items())
    width = min(36 if screen > 120 else 16, widest)  # of the values
    names = max(len(key.rpartition('.')[2]) for key in notes() if key in cells) + 1
    margin = names + width + 4  # of the comments

    print(title(values))
    for key, note in notes().items():
        if key not in resolved and not any(other.startswith(f'{key}.') for other in resolved):
            continue  # of a comparison
        if key not in resolved:  # a section
            text = textwrap.fill(
                f'{key}  {note.partition(": ")[2].partition(". ")[0]}', screen, subsequent_indent=' ' * (len(key) + 2)
            )
            print(f'\n{bold}{key}{plain}{dim}{text.removeprefix(key)}{plain}')
            continue
        if '.' not in key:
            print()
        mark, colour = ('>', cyan) if key in overridden else ('*', green) if key in origin else (' ', '')
        name, was = key.rpartition('.')[2], origin.get(key, '')
        cell, *more = textwrap.wrap(f'{cells[key]} {was}', screen - names - 2, break_on_hyphens=False) or ['']
        comment = textwrap.wrap(note, screen - margin, break_on_hyphens=False)
        if len(cell) > width or more:  # the comment starts on the next line
            comment.insert(0, '')
        first, *rest = comment or ['']
        blank = ' ' * (width - len(cell) + 2) if first else ''
        own, base_value = (cells[key], cell.removeprefix(cells[key])) if cell.startswith(cells[key]) else (cell, '')
        print(f'{colour}{mark} {name:{names}}{own}{plain}{dim}{base_value}{blank}{first}{plain}')
        for line in more:
            print(f'{" " * (names + 2)}{line}')
        for line in rest:
            print(f'{dim}{" " * margin}{line}{plain}')
    from lmtrain.training import init_from

    answer = textwrap.fill(f'exportable: {init_from.exportable(config)}', screen, subsequent_indent='    ')
    print(f'\n{answer}')
    print(f'\n{green}*{plain} differs from base.py    {cyan}>{plain} set on this command line')
