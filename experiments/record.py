"""What an experiment leaves behind: results.json, and the block of figures that READMEs show from it.

    python -m experiments.record        # renders every README's figures again from the results.json files

A README shows the figures of an experiment between `<!-- results: NAME -->` and `<!-- end -->`. The text between is
never written by hand; a test renders it again and compares.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = tuple('jax jaxlib flax optax orbax-checkpoint tokenizers numpy torch transformers peft'.split())
BLOCK = re.compile(r'(<!-- results: ([a-z0-9_]+) -->\n).*?(<!-- end -->)', re.DOTALL)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ('git', '-C', ROOT, *arguments), capture_output=True, check=True, encoding='utf-8'
    ).stdout.strip()


def machine() -> dict:
    """The processor, its cores and memory, and what of its speed matters here."""
    cpu = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8') if sys.platform == 'linux' else ''
    model = re.search(r'model name\s*: (.*)', cpu)
    return {
        'processor': model[1].strip() if model else platform.processor(),
        'cores': len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'amx': 'amx_bf16' in cpu,
        'system': platform.system(),
        'python': platform.python_version(),
    }


def versions() -> dict:
    """Installed versions of what the figures rest on; absent packages are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(
    name: str, *, command: str, figures: list[dict], trials: list[dict], not_shown: list[str] = (), **more
) -> None:
    """Writes experiments/NAME/results.json and renders the READMEs.

    Args:
      command: what was typed, from the root of the repository.
      figures: rows {'what', 'figure', 'target', 'reached'}: texts as shown, and True, False or None (none asked).
      trials: raw measurements, one dict each.
      not_shown: what was skipped, simulated or never run.
      more: anything else worth keeping beside the trials.
    """
    # The result files themselves do not make a tree dirty: they are what this run is about to rewrite.
    own = ('results.json', 'README.md', '.png')
    changed = [line for line in _git('status', '--porcelain').splitlines() if not line.endswith(own)]
    results = {
        'name': name,
        'commit': _git('rev-parse', 'HEAD') + (' + uncommitted changes' if changed else ''),
        'date': datetime.date.today().isoformat(),
        'command': command,
        'machine': machine(),
        'versions': versions(),
        'figures': figures,
        'not_shown': list(not_shown),
        'trials': trials,
    } | more
    path = ROOT / 'experiments' / name / 'results.json'
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    for readme in readmes():
        readme.write_text(render(readme.read_text(encoding='utf-8')), encoding='utf-8')


def write_text(folder: pathlib.Path, files: int = 60, words: int = 60) -> None:
    """Makes folder/text: so many files of so many words, the same every time, for runs whose text does not matter."""
    known = 'the cat sat on a mat and saw that dog run to his red ball in our park'.split()
    (folder / 'text').mkdir()
    for number in range(files):
        drawn = random.Random(number).choices(known, k=words)
        (folder / 'text' / f'{number}.txt').write_text(' '.join(drawn), encoding='utf-8')


def block(results: dict) -> str:
    """The figures of one experiment as markdown."""
    verdict = {True: 'yes', False: '**no**', None: ''}
    here, using = results['machine'], results['versions']
    lines = ['| what | measured | asked for | reached |', '|---|---|---|---|']
    lines += [
        f'| {row["what"]} | {row["figure"]} | {row["target"]} | {verdict[row["reached"]]} |'
        for row in results['figures']
    ]
    lines += [
        '',
        f'`{results["command"]}`, {results["date"]}, commit {results["commit"][:10]}; {here["processor"]}, '
        f'{here["cores"]} cores, {here["memory_gib"]} GiB; Python {here["python"]}, '
        + ', '.join(f'{package} {using[package]}' for package in PACKAGES if package in using)
        + '.',
    ]
    lines += [f'* Not shown: {what}' for what in results['not_shown']]
    return '\n'.join(lines) + '\n'


def render(text: str) -> str:
    """Markdown with every block of figures rendered from its results.json, or the word that there is none."""

    def fill(found: re.Match) -> str:
        path = ROOT / 'experiments' / found[2] / 'results.json'
        shown = block(json.loads(path.read_text(encoding='utf-8'))) if path.exists() else 'Not measured yet.\n'
        return found[1] + shown + found[3]

    return BLOCK.sub(fill, text)


def readmes() -> list[pathlib.Path]:
    """Every README that shows figures."""
    return [ROOT / 'README.md', *sorted((ROOT / 'experiments').glob('*/README.md'))]


if __name__ == '__main__':
    for readme in readmes():
        readme.write_text(render(readme.read_text(encoding='utf-8')), encoding='utf-8')
