"""the recipes, one line each: the first line of a recipe's docstring.

lmtrain configs
"""

from absl import flags

from launch import cli, recipe

FLAGS = flags.FlagValues()


def run(values: flags.FlagValues) -> None:
    bold, dim, plain = cli.style('bold', 'dim', 'plain')
    claims = {path.stem: recipe.claim(path) for path in recipe.files()}
    width = max(map(len, claims)) + 2
    for name, claim in claims.items():
        print(f'  {bold}{name:{width}}{plain}{cli.wrapped(claim, " " * (width + 2)).lstrip()}')
    print(f'\n{dim}lmtrain show --config=configs/NAME.py    every value of one')
    print('lmtrain train --config=configs/NAME.py   trains it')
    print(f'--config=configs/ladder.py:10M           selects a variant{plain}')
