"""Writes results.json of an experiment, and renders every table of figures from the results.json files.

    python -m experiments.record                    # renders all tables again
    python -m experiments.record COMMIT:FILE ...    # records what `write` has left in `out` elsewhere

README.md shows the rows of HEADLINES, README.md of each folder its own table, experiments/README.md all tables. None of
them is edited by hand; a test renders them again and compares.
"""

import ast
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
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = tuple('jax jaxlib flax optax orbax-checkpoint tokenizers numpy torch transformers peft lm-eval'.split())
BLOCK = re.compile(r'(<!-- results: ([a-z0-9_]+) -->\n).*?(<!-- end -->)', re.DOTALL)
HEADLINE_BLOCK = re.compile(r'(<!-- headlines -->\n).*?(<!-- end -->)', re.DOTALL)
ANSWER_BLOCK = re.compile(r'(<!-- answer -->\n).*?(<!-- end -->)', re.DOTALL)
# (experiment, beginning of the row's text): the eight rows of README.md.
HEADLINES = (
    ('quickstart', 'validation, bits per byte'),
    ('shakespeare', 'validation loss after 2,000 steps'),
    ('parity', 'llama: logits, 12 models'),
    ('bench', 'CPU, float32, 4 layers, 128 wide, T 64, B 12: tokens/s'),
    ('bench_adapters', '6 layers, 384 wide, T 256, B 12: tokens/s of LoRA over PEFT'),
    ('reliability', 'killed (kill -9) at a named point'),
    ('sharding', 'loss of 20 AdamW steps'),
    ('plans', 'pretrain_llama_70b on v5p:8x8x16: does it fit'),
)


def git(*arguments: str) -> str:
    return subprocess.run(
        ('git', '-C', ROOT, *arguments), capture_output=True, check=True, encoding='utf-8'
    ).stdout.strip()


def machine() -> dict:
    """Processor, cores, memory, and whether it has AMX (which decides the speed of bfloat16)."""
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
    """Installed versions of PACKAGES, without those that are missing."""
    result = {}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def row(what: str, figure: str, target: str = '', reached: bool | None = None) -> dict:
    """A row of figures for `write`."""
    return {'what': what, 'figure': figure, 'target': target, 'reached': reached}


def write(
    name: str,
    *,
    command: str,
    figures: list[dict],
    trials: list[dict],
    not_shown: Sequence[str] = (),
    out: str = '',
    **more,
) -> None:
    """Writes experiments/NAME/results.json and renders the READMEs.

    Args:
      command: the command, from the root of the repository.
      figures: rows {'what', 'figure', 'target', 'reached'}: texts, and True, False or None (no target); see `row`.
      trials: raw measurements, one dict each.
      not_shown: what was skipped, simulated or never run.
      out: the file to write instead, without a commit: for a machine without the history of the repository.
      more: further entries of results.json.
    """
    results = {
        'name': name,
        'commit': '' if out else commit(),
        'date': datetime.date.today().isoformat(),
        'command': command,
        'machine': machine(),
        'versions': versions(),
        'figures': figures,
        'not_shown': list(not_shown),
        'trials': trials,
    } | more
    path = pathlib.Path(out) if out else ROOT / 'experiments' / name / 'results.json'
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    if not out:
        write_readmes()


def commit() -> str:
    """The present commit, and whether files differ from it that neither `write` nor an experiment rewrites."""
    own = re.compile(r'README\.md$|results\.json$|\.png$|\.ipynb$|/goldens\w*\.json$')
    changed = [line for line in git('status', '--porcelain').splitlines() if not own.search(line)]
    return git('rev-parse', 'HEAD') + (' + uncommitted changes' if changed else '')


def adopt(arguments: Sequence[str]) -> None:
    """Writes results.json of each COMMIT:FILE, a file that `write` has left in `out` elsewhere at that commit."""
    for argument in arguments:
        measured_at, file = argument.split(':', 1)
        results = json.loads(pathlib.Path(file).read_text(encoding='utf-8'))
        results['commit'] = git('rev-parse', measured_at)
        path = ROOT / 'experiments' / results['name'] / 'results.json'
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def write_text(folder: pathlib.Path, files: int = 60, words: int = 60) -> None:
    """Writes folder/text, a number of files with a number of random words each: the same text in every call."""
    known = 'the cat sat on a mat and saw that dog run to his red ball in our park'.split()
    (folder / 'text').mkdir()
    for number in range(files):
        drawn = random.Random(number).choices(known, k=words)
        (folder / 'text' / f'{number}.txt').write_text(' '.join(drawn), encoding='utf-8')


def load(name: str) -> dict | None:
    """results.json of an experiment; None if it was never run."""
    path = ROOT / 'experiments' / name / 'results.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def table(rows: list[list[str]]) -> str:
    """Rows of figures as a markdown table."""
    header = ['| what | measured | target | met |', '|---|---|---|---|']
    return '\n'.join([*header, *(f'| {" | ".join(row)} |' for row in rows)]) + '\n'


def cells(row: dict) -> list[str]:
    """The cells of a figure."""
    verdict = {True: 'yes', False: '**no**', None: ''}
    return [row['what'], row['figure'], row['target'], verdict[row['reached']]]


def block(results: dict) -> str:
    """The figures of one experiment as markdown, with the command, the machine and what was not measured."""
    here, using = results['machine'], results['versions']
    about = (
        f'`{results["command"]}`, {results["date"]}, commit {results["commit"][:10]}; {here["processor"]}, '
        f'{here["cores"]} cores, {here["memory_gib"]} GiB; Python {here["python"]}, '
        + ', '.join(f'{package} {using[package]}' for package in PACKAGES if package in using)
    )
    notes = ''.join(f'* Not shown: {what}\n' for what in results['not_shown'])
    return f'{table([cells(row) for row in results["figures"]])}\n{about}.\n{notes}'


def headlines() -> str:
    """The rows of HEADLINES as a table, each with a link to its experiment, and which experiments missed a target."""
    rows = []
    for name, beginning in HEADLINES:
        (row,) = (row for row in load(name)['figures'] if row['what'].startswith(beginning))
        what, *others = cells(row)
        rows.append([f'[{name}](experiments/{name}): {what}', *others])
    return f'{table(rows)}\n{targets()}\n'


def targets() -> str:
    """How many targets of all experiments were missed, and where."""
    verdicts = {
        path.parent.name: [row['reached'] for row in load(path.parent.name)['figures'] if row['reached'] is not None]
        for path in sorted((ROOT / 'experiments').glob('*/results.json'))
    }
    missed = {name: own.count(False) for name, own in verdicts.items() if False in own}
    where = ', '.join(f'{count} of [{name}](experiments/{name})' for name, count in missed.items())
    return (
        f'All experiments have {sum(map(len, verdicts.values()))} targets. {sum(missed.values())} were missed'
        f'{": " if where else ""}{where}.'
    )


def answer() -> str:
    """The answer table of the default comparison at its largest size, what it measured, and what is undecided."""
    from lmtrain.compare import report  # late: only README.md shows it
    from lmtrain.compare.pages import recommendation, values

    results = load('prompt_or_train')
    if results is None:
        return 'Not measured yet.'
    (whole,) = (row['figure'] for row in results['figures'] if row['what'] == 'the whole command')
    results = results['comparisons']['docstrings'] | {'trials': results['trials']}
    task, seeds = results['task'], max(entry['seeds'] for entry in results['summary'])
    about = (
        f'\n\nBold: the recommended arm. {task["rows"]["test"]} test rows, {seeds} seeds; chance is '
        f'{values.percent(task["chance"])} and the most frequent class {values.percent(task["majority"])}. The whole '
        f'command took {whole} on {results["provenance"]["machine"]["cores"]} CPU cores.'
    )
    choice = recommendation.recommend(results).choice
    others = ', '.join(f'`{arm}`' for arm in choice.undecided)
    lead = (
        f'Undecided: whether `{choice.leader}` is more accurate than {others}. The differences are not significant '
        f"after Holm's correction, and not shown to be within {100 * results['margin']:.0f} points."
    )
    lead = f'\n\n{lead}' if others else ''
    return f'{report.answer_table(results)}{about}{lead}'


def render(text: str) -> str:
    """Markdown with every block of figures rendered from results.json."""

    def fill(match: re.Match) -> str:
        results = load(match[2])
        return match[1] + (block(results) if results else 'Not measured yet.\n') + match[3]

    text = HEADLINE_BLOCK.sub(lambda match: match[1] + headlines() + match[2], text)
    text = ANSWER_BLOCK.sub(lambda match: f'{match[1]}{answer()}\n{match[2]}', text)
    return BLOCK.sub(fill, text)


def overview() -> str:
    """experiments/README.md: the question and the figures of every experiment."""
    parts = ['# Experiments\n', 'Generated by `python -m experiments.record`. One folder per question: its README']
    parts[-1] += (
        ' explains the measurement, `python -m experiments.NAME` repeats it, `results.json` holds every trial.\n'
        '\nThe command under a table was recorded with the measurement. If it is `experiments/NAME/run.py`, that file'
        " has been renamed since: the current command is in the experiment's own README.\n"
    )
    for path in sorted((ROOT / 'experiments').glob('*/__main__.py')):
        name = path.parent.name
        question = (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition('\n')[0]
        results = load(name)
        parts.append(f'## [{name}]({name})\n\n{question}\n')
        parts.append(block(results) if results else 'Not measured yet.\n')
    return '\n'.join(parts)


def readmes() -> dict[pathlib.Path, str]:
    """{file: its text with all figures rendered} of every README with figures."""
    files = [ROOT / 'README.md', *sorted((ROOT / 'experiments').glob('*/README.md'))]
    texts = {file: render(file.read_text(encoding='utf-8')) for file in files}
    return texts | {ROOT / 'experiments' / 'README.md': overview()}


def write_readmes() -> None:
    """Renders every table again."""
    for file, text in readmes().items():
        file.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    adopt(sys.argv[1:])
    write_readmes()
