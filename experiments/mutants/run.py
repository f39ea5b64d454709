"""How many small plausible faults do the tests detect that mirror the faulty file?

python -m experiments.mutants [--only=lmtrain/optimizer.py] [--root=FOLDER] [--minutes=M] [--jobs=2] [--dry]

Each fault of faults.py is applied to a copy of the repository, in which the tests of the module then run (MIRRORS).
A fault is detected if a test fails or does not end. Without a fault the tests pass: run this on a commit that passed
launch/test.sh. The order of the faults is that of a hash, so those tested within --minutes are a random sample.
Outcomes are stored in --root and reused as long as neither the module nor its tests change.
"""

import argparse
import concurrent.futures
import fnmatch
import hashlib
import json
import math
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time

from experiments import record
from experiments.mutants.faults import EQUIVALENT, FAULTS

TARGET = 0.95
LIMIT = 900  # seconds of the tests of one module
# Tests of a module, if they are not in the file of the same name; the first pattern that matches counts.
MIRRORS = (
    ('lmtrain/adapt/peft/*.py', ('tests/adapt/peft/test_adapters.py',)),
    (
        'lmtrain/adapt/methods.py',
        ('tests/adapt/test_methods.py', 'tests/adapt/test_segments.py', 'tests/adapt/test_contract.py'),
    ),
    (
        'lmtrain/adapt/*.py',
        ('tests/adapt/test_adapter.py', 'tests/adapt/test_contract.py', 'tests/adapt/test_segments.py'),
    ),
    ('lmtrain/runtime/multihost.py', ('tests/launch/test_distributed.py',)),
    ('lmtrain/checkpoint/leaves.py', ('tests/checkpoint/test_checkpoints.py',)),
    ('lmtrain/report/plot.py', ('tests/report/test_page.py',)),
    ('lmtrain/training/init_from.py', ('tests/training/test_sweep.py',)),
    ('lmtrain/training/build.py', ('tests/training/test_checks.py', 'tests/models/test_new_heads.py')),
    (
        'lmtrain/training/loop.py',
        ('tests/training/test_loop.py', 'tests/training/test_train.py', 'tests/training/test_budget_change.py'),
    ),
    ('lmtrain/cost/query.py', ('tests/cost/test_ledger.py',)),
    ('lmtrain/plan/dry_run.py', ('tests/launch/test_train.py',)),
    ('lmtrain/training/evaluate.py', ('tests/training/test_run.py',)),
    ('lmtrain/training/run.py', ('tests/training/test_build.py',)),
    ('lmtrain/training/state.py', ('tests/training/test_step.py',)),
    ('lmtrain/training/load.py', ('tests/training/test_samples.py', 'tests/training/test_train.py')),
    ('lmtrain/data/document.py', ('tests/data/test_splits.py',)),
    (
        'lmtrain/data/chat/sandbox.py',
        ('tests/data/chat/test_encoding.py', 'tests/data/chat/test_traced.py', 'tests/data/chat/test_template.py'),
    ),
    ('lmtrain/data/text_files.py', ('tests/data/test_source.py',)),
    ('lmtrain/data/token_files.py', ('tests/data/test_corpus.py',)),
    ('lmtrain/data/padded_stream.py', ('tests/tasks/test_prepare.py',)),
    ('lmtrain/data/example_store.py', ('tests/tasks/test_prepare.py',)),
    ('lmtrain/data/hash_rng.py', ('tests/data/test_stream.py',)),
    ('lmtrain/data/chat/template.py', ('tests/data/chat/test_encoding.py', 'tests/data/chat/test_template.py')),
    ('lmtrain/plan/compiled.py', ('tests/launch/test_plan.py', 'tests/plan/test_compiled.py')),
    ('lmtrain/models/virtual_tokens.py', ()),
    ('lmtrain/models/settings.py', ()),
    ('lmtrain/models/lm_head.py', ('tests/models/test_lm_head.py',)),
    ('lmtrain/models/hf_heads.py', ('tests/models/test_pretrained.py', 'tests/models/test_encoders.py')),
    ('lmtrain/models/safetensors.py', ('tests/models/test_pretrained.py',)),
    ('lmtrain/models/hf.py', ('tests/models/test_pretrained.py', 'tests/models/test_families.py')),
    (
        'lmtrain/models/[lrb]*.py',
        (
            'tests/models/test_{name}.py',
            'tests/models/test_transformer.py',
            'tests/models/test_families.py',
            'tests/models/test_encoders.py',
        ),
    ),
    (
        'lmtrain/models/attention.py',
        ('tests/models/test_attention_kernels.py', 'tests/models/test_transformer.py', 'tests/models/test_families.py'),
    ),
    (
        'lmtrain/models/transformer.py',
        ('tests/models/test_transformer.py', 'tests/models/test_families.py', 'tests/models/test_encoders.py'),
    ),
    (
        'lmtrain/models/*.py',
        (
            'tests/models/test_{name}.py',
            'tests/models/test_families.py',
            'tests/models/test_encoders.py',
            'tests/models/test_pretrained.py',
        ),
    ),
    ('lmtrain/tasks/task_rows.py', ('tests/tasks/test_prepare.py',)),
    ('lmtrain/tasks/[!p]*.py', ('tests/tasks/test_{name}.py', 'tests/tasks/test_objectives.py')),
    ('lmtrain/inference/[lqr]*.py', ('tests/inference/test_{name}.py', 'tests/inference/test_prompting.py')),
    ('launch/launcher.py', ('tests/launch/test_local.py', 'tests/launch/test_slurm.py')),
    ('launch/distributed.py', ('tests/launch/test_distributed.py',)),
    ('launch/show.py', ('tests/launch/test_recipe.py', 'tests/launch/test_train.py')),
    ('launch/process_setup.py', ('tests/launch/test_cli.py',)),
)


def mirror(module: str) -> list[str]:
    """The test files that mirror a module. Raises FileNotFoundError if there is none."""
    path = pathlib.PurePath(module)
    own = 'tests' / path.relative_to('lmtrain' if path.parts[0] == 'lmtrain' else '.').with_name(f'test_{path.name}')
    patterns = next((tests for pattern, tests in MIRRORS if fnmatch.fnmatch(module, pattern)), ())
    names = [str(own), *(pattern.format(name=path.stem) for pattern in patterns)]
    tests = [name for name in dict.fromkeys(names) if (record.ROOT / name).is_file()]
    if not tests:
        raise FileNotFoundError(f'{module} has no tests that mirror it: name them in MIRRORS')
    return tests


def copy(folder: pathlib.Path) -> pathlib.Path:
    """A copy of the files that git knows, and a link to the data beside the repository."""
    tree = folder / 'tree'
    for name in record.git('ls-files').splitlines():
        if (source := record.ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, tree / name)
    return tree


def judge(tree: pathlib.Path, module: str, fault: tuple[str, str, str]) -> dict:
    """Runs the tests of a module with one fault in it."""
    path, begun = tree / module, time.monotonic()
    text = path.read_text(encoding='utf-8')
    what, old, new = fault
    if text.count(old) != 1:
        raise ValueError(f'{module}: the old text of {what!r} stands {text.count(old)} times in it, not once')
    path.write_text(text.replace(old, new), encoding='utf-8')
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-n', '0', '-p', 'no:cacheprovider', *mirror(module)]
    data = os.environ.get('LMTRAIN_DATA', str(record.ROOT.parent / 'shared' / 'data'))
    environment = os.environ | {'PYTHONPATH': str(tree), 'PYTHONDONTWRITEBYTECODE': '1', 'LMTRAIN_DATA': data}
    environment.setdefault('JAX_COMPILATION_CACHE_DIR', str(tree.parents[1] / 'compiled'))  # of all trees
    try:
        options = {'cwd': tree, 'env': environment, 'timeout': LIMIT, 'encoding': 'utf-8', 'errors': 'replace'}
        done = subprocess.run(command, capture_output=True, **options)
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, output = -1, f'no end within {LIMIT} s'
    finally:
        path.write_text(text, encoding='utf-8')
    by = re.search(r'^(?:FAILED|ERROR) (\S+)', output, re.MULTILINE)
    return {
        'code': code,
        'by': by[1] if by else '',
        'seconds': round(time.monotonic() - begun, 1),
        'output': output[-2000:],
    }


def key(module: str, fault: tuple) -> str:
    """Changes with the fault, the module, and its tests."""
    parts = [module, *fault, *((record.ROOT / name).read_text(encoding='utf-8') for name in (module, *mirror(module)))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def order(fault: tuple[str, tuple]) -> str:
    """Sorts (module, fault) pairs at random, the same in every run."""
    return hashlib.sha256(f'{fault[0]}: {fault[1][0]}'.encode()).hexdigest()


def judged(chosen: list[tuple[str, tuple]], root: pathlib.Path, jobs: int, minutes: float) -> list[dict]:
    """One trial for each (module, fault) that is begun within `minutes`, in the order of `order`."""
    trees: queue.Queue = queue.Queue()
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        for number in range(jobs):
            trees.put(copy(pathlib.Path(folder) / str(number)))

        def one(pair: tuple[str, tuple]) -> dict | None:
            module, fault = pair
            stored = root / f'{key(module, fault)}.json'
            if time.monotonic() > end:
                return None
            if stored.exists():
                outcome = json.loads(stored.read_text(encoding='utf-8'))
            else:
                tree = trees.get()
                try:
                    outcome = judge(tree, module, fault)
                finally:
                    trees.put(tree)
                stored.write_text(json.dumps(outcome), encoding='utf-8')
                verdict = 'detected' if outcome['code'] else 'passes'
                print(f'{outcome["seconds"]:6.1f} s  {verdict:8}  {module}: {fault[0]}', flush=True)
            return {'module': module, 'fault': fault[0], 'detected': outcome['code'] != 0, 'by': outcome['by']}

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            return [trial for trial in pool.map(one, sorted(chosen, key=order)) if trial]


def figures(trials: list[dict]) -> list[dict]:
    """The rate of all, and of each package."""
    real = [trial for trial in trials if (trial['module'], trial['fault']) not in EQUIVALENT]
    groups: dict[str, list[dict]] = {'all modules': real}
    for trial in real:
        groups.setdefault('/'.join(pathlib.PurePath(trial['module']).parts[:-1]), []).append(trial)
    rows = []
    for name, group in groups.items():
        detected = sum(trial['detected'] for trial in group)
        whole = name == 'all modules'
        rows.append(
            {
                'what': f'{name}: faults detected by the tests that mirror the file',
                'figure': f'{detected} of {len(group)}, {100 * detected / len(group):.1f} %',
                'target': '>= 95 % of at least 150' if whole else '',
                'reached': (detected >= TARGET * len(group) and len(group) >= 150) if whole else None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default='*', help='modules, as a glob')
    parser.add_argument('--root', default='', help='directory of outcomes for later runs; none by default')
    parser.add_argument('--minutes', type=float, default=math.inf, help='no fault is begun after so many minutes')
    parser.add_argument('--jobs', type=int, default=2, help='modules tested at once')
    parser.add_argument('--dry', action='store_true', help='judges, and writes no results')
    flags = parser.parse_args()
    chosen = [
        (module, fault) for module, faults in FAULTS.items() for fault in faults if fnmatch.fnmatch(module, flags.only)
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(flags.root or folder)
        root.mkdir(parents=True, exist_ok=True)
        trials = judged(chosen, root, flags.jobs, flags.minutes)
    for trial in trials:
        if not trial['detected'] and (trial['module'], trial['fault']) not in EQUIVALENT:
            print(f'not detected: {trial["module"]}: {trial["fault"]}')
    for row in figures(trials):
        print(f'{row["figure"]:20} {row["what"]}')
    if flags.dry or flags.only != '*':
        return
    not_shown = [f'equivalent, and not counted: {module}: {what} ({why})' for (module, what), why in EQUIVALENT.items()]
    not_shown.append('faults that only a test of another file would detect count as not detected')
    if left := len(chosen) - len(trials):
        not_shown.append(f'{left} of {len(chosen)} faults: those tested are a random sample')
    record.write(
        'mutants',
        command='python -m experiments.mutants' + (f' --minutes={flags.minutes:g}' if flags.minutes < math.inf else ''),
        figures=figures(trials),
        trials=trials,
        not_shown=not_shown,
    )


if __name__ == '__main__':
    main()
