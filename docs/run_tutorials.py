"""Runs the commands of docs/tutorials in a folder and writes their output into the pages.

python -m docs.run_tutorials FOLDER [PAGE ...]

FOLDER holds the files that the pages name. A block of code without a language is a list of commands; the block `text`
after it is replaced by what they print in 80 columns, without stderr, the progress of phases and messages of libraries.
'...' stands for the middle of a long output, and for the end of a longer line, which the scripts of launchers have.
"""

import os
import pathlib
import re
import subprocess
import sys

PAGES = pathlib.Path(__file__).parent / 'tutorials'
BLOCK = re.compile(r'^```\n(?P<commands>.*?)^```\n(\n```text\n.*?^```\n)?', re.MULTILINE | re.DOTALL)
TYPED = 'What is a cat?\n'  # to a command that reads its terminal
LEFT_OUT = re.compile(
    r'^  [a-z].*(?: \.\.\.|: .*\d+ (?:s|min))\n'  # phases: how long they take differs
    r'|^.*(?:\[Gloo\]|peer ranks is|JAX detected proxy).*\n',  # messages of libraries about their connections
    re.MULTILINE,
)
FIRST, LAST = 14, 20  # lines of an output that are shown
WIDTH = 80
REPOSITORY = '/home/you/lmtrain'  # the paths that are shown


def output(commands: str, folder: pathlib.Path) -> str:
    """What the commands print. Raises CalledProcessError if one fails."""
    shown = []
    for command in re.sub(r'\\\n\s*', ' ', commands).splitlines():
        done = subprocess.run(
            ['bash', '-c', command],
            cwd=folder,
            env=os.environ | {'COLUMNS': str(WIDTH)},
            input=TYPED,
            stdout=subprocess.PIPE,
            encoding='utf-8',
            check=True,
        )
        shown.append(LEFT_OUT.sub('', done.stdout).strip('\n').replace('```', "'''"))
    lines = '\n\n'.join(shown).splitlines()
    if len(lines) > FIRST + LAST + 1:
        lines = [*lines[:FIRST], '...', *lines[-LAST:]]
    return '\n'.join(_shown(line, folder) for line in lines)


def _shown(line: str, folder: pathlib.Path) -> str:
    """A line without the paths of this machine, in WIDTH columns."""
    line = line.replace(str(PAGES.parents[1]), REPOSITORY).replace(str(folder.absolute()), '/home/you')
    return line if len(line) <= WIDTH else f'{line[: WIDTH - 4]} ...'


def main() -> None:
    folder, *names = sys.argv[1:]
    for page in sorted(PAGES.glob('*.md')):
        if names and page.stem not in names:
            continue
        text = page.read_text(encoding='utf-8')
        page.write_text(
            BLOCK.sub(
                lambda match: (
                    f'```\n{match["commands"]}```\n\n```text\n{output(match["commands"], pathlib.Path(folder))}\n```\n'
                ),
                text,
            ),
            encoding='utf-8',
        )


if __name__ == '__main__':
    main()
