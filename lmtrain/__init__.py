"""lmtrain: pretraining and adaptation of language models, on one backbone, one data pipeline and one evaluator.

Modules in import order: each imports only from those above it.

    errors.py      InputError: errors that a user can fix
    tree.py        parameter paths, regex rules, split and join of trees, segments of layers
    files.py       local paths, atomic writes, digests, JSON
    runtime/       exit codes, signals, watchdog, progress of phases, injected faults, agreement between processes
    optimizer.py   schedules and optimizers
    data/          text and rows, tokenizers, conversations, splits, packing, streams of batches
    models/        one Transformer and its layers; families/ reads and writes Hugging Face's files
    checkpoint/    asynchronous atomic saves through Orbax, with a manifest of hashes
    adapt/         methods: leaves that they add, and regexes of trainable paths; peft/ reads and writes PEFT's files
    tasks/         one file per task: batch columns, losses, predictions, score; prepare.py reads and encodes the rows
    parallel/      mesh, partition rules, placement, collectives of a train step
    cost/          FLOPs, memory, budgets, hardware, compiled programs, exchanged bytes; the ledger of an arm
    report/        metrics, terminal, plots, report.md, provenance
    inference/     sampling, rollouts; prompting with demonstrations, likelihood of choices, prompt search
    evaluation/    evaluation tasks as files; predictions on a split, scores, and their statistics
    rewards/       rewards of completions: verifiers, unit tests in a sandbox, reward models, a user's file, mixtures
    training/      from a config to a trained model: resolve, build, run, step, loop; load and export
    plan/          memory, time and cost of a run that is not started, here or on machines that are not present
    compare/       prompting and training on the same rows: arms, trials, selection, test stage, report
    api/           the public functions, and the object that `load` returns
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmtrain.api import evaluate, export, generate, load, load_adapter, train

__version__ = '0.1.0'
__all__ = ['evaluate', 'export', 'generate', 'load', 'load_adapter', 'train']


def __getattr__(name: str) -> Any:
    """A public function, imported when it is first used: `import lmtrain` alone must not wait for jax."""
    if name in __all__:
        return getattr(importlib.import_module('lmtrain.api'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
