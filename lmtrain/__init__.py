"""lmtrain: every way of giving a language model a behaviour, on one backbone, one dataset and one evaluator.

Modules in import order: each imports only from those above it.

    errors.py      InputError, for what a user can fix
    tree.py        parameter paths, regex rules, split and join, segments of layers
    files.py       local paths that a user names, and the cache directory
    runtime/       exit codes, signals, watchdog, fault points, agreement between processes, checks before a start
    optimizer.py   schedules and optimizers, by path
    data/          sources, tokenizers, splits, packing, streams; rows, conversations, padded batches
    models/        one Transformer and its layers; families/ maps it to Hugging Face's files
    checkpoint/    asynchronous atomic saves through Orbax, with a manifest of hashes
    adapt/         leaves that a method adds, and the regex of trainable paths; peft/ reads and writes PEFT's files
    tasks/         one file per task: columns, loss, predictions, score; prepare.py reads and encodes the rows
    parallel/      mesh, partition rules, placement, collectives of a train step
    cost/          FLOPs, memory, budget, hardware, compiled programs, exchanged bytes
    report/        metrics, terminal, plots, the page of a run, provenance
    inference/     sampling with a KV cache, prompting, likelihoods of choices
    evaluation/    predictions of a task on a split, and their scores
    training/      from a config to a trained model: resolve, build, run, step, loop; load and export
    plan/          what a run would need and cost, here or on machines that are not present
    api.py         the public functions
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmtrain.api import evaluate, export, generate, load, load_adapter, train

__all__ = ['evaluate', 'export', 'generate', 'load', 'load_adapter', 'train']


def __getattr__(name: str) -> Any:
    """A public function, imported when it is first used: `import lmtrain` alone must not wait for jax."""
    if name in __all__:
        return getattr(importlib.import_module('lmtrain.api'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
