"""A run from its config to its report; resumed, it is the uninterrupted run."""

import contextlib
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from lmtrain import tree
from lmtrain.checkpoint import Checkpoints
from lmtrain.files import local_path, write_json
from lmtrain.models import generation
from lmtrain.parallel import vocab_padding
from lmtrain.report import metrics, page, terminal
from lmtrain.report.live import Live
from lmtrain.report.provenance import provenance, versions
from lmtrain.runtime import lifecycle, multihost, preflight
from lmtrain.training import evaluate, samples
from lmtrain.training import workdir as folder
from lmtrain.training.build import build
from lmtrain.training.loop import Loop


def train(config, workdir) -> dict[str, Any]:
    """Trains what `config` says in the folder `workdir`, going on where an earlier start of it stopped.

    Returns:
      What results.json holds: the last evaluation beside the baselines, and the cost.

    Raises:
      ValueError, OSError: config, data or folder are wrong; nothing has been compiled then.
      survive.Ended: asked to stop (the step is saved) or not worth going on; carries the exit code.
    """
    workdir, first = local_path(workdir, '--workdir'), jax.process_index() == 0
    run = build(on_its_date(on_its_vocabulary(config, workdir), workdir))
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(lifecycle.Watchdog(**config.watchdog))
        multihost.assert_same(
            tree.flatten({'config': resolved(run), 'code': multihost.source_hash()} | versions() | run.fingerprints())
        )
        folder.check(workdir, tree.size(run.shapes), config.checkpoint.keep_last + config.checkpoint.keep_best)
        folder.check_shared(workdir)
        preflight.check_memory(run.memory(), run.mesh.local_devices[0])
        stack.enter_context(folder.exit_on_disk_full(workdir))
        changed = []
        if first:
            stack.enter_context(folder.lock(workdir))
            changed = folder.bind(workdir, resolved(run), run.fingerprints())
        checkpoints = stack.enter_context(Checkpoints(workdir / 'checkpoints', **config.checkpoint))
        signals = stack.enter_context(lifecycle.Signals())
        saved, extra = checkpoints.restore(run.stored(run.shapes)) or (None, {'step': 0, 'elapsed': 0.0})
        finished = metrics.Clock(run.total_steps, config.budget.hours, extra['elapsed']).spent(extra['step']) >= 1.0
        # Compiles while the initial state is made.
        compiling = None if finished else stack.enter_context(ThreadPoolExecutor(1)).submit(run.train_step)
        state = run.complete(saved) if saved else run.initial_state()
        # One process speaks for all.
        out = None if first else stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
        live = stack.enter_context(contextlib.closing(Live(run.total_steps, out)))
        live.print(run.header())
        if first:
            for name in ('metrics.jsonl', 'timings.jsonl'):
                folder.truncate_jsonl(workdir / name, extra['step'])
            folder.record(workdir, extra['step'] if saved else None, changed, **provenance(run.mesh))
            run.corpus.tokenizer.save(workdir / 'tokenizer')
            generation.write(workdir, run.generation)
        if saved:
            live.print(f'  resumed    after step {extra["step"]:,}, {terminal.duration(extra["elapsed"])} in')
        for difference in changed:
            rounding = ' (the same sums in another order: no longer equal to the bit)' * (difference.kind == 'rounding')
            live.print(terminal.note('changed', f'{difference}{rounding}'))
        del saved
        writers = None  # one process writes for all
        if first:
            writers = stack.enter_context(metrics.Writers(workdir, config.log.tensorboard, extra['step'], live.print))
        loop = Loop(run, checkpoints, signals, watchdog, writers, live, extra)
        before = {}
        if config.evaluate.sources:
            kept = workdir / 'before.json'
            measured = {} if multihost.all_gather_object(kept.exists())[0] else loop.domains(state)
            before = multihost.all_gather_object(folder.load_or_create(kept, lambda: measured) if first else None)[0]
        state = loop.go(state, compiling and compiling.result)
        watchdog.expect('save')
        checkpoints.wait()  # while signals and the watchdog still stand
        results = loop.results(state) | evaluate.change(before, loop.domains(state))
        results |= {'data': run.corpus.facts()} if not run.task.reads_rows else {}
        if finished and (workdir / 'results.json').exists():  # the cost of this start is not that of the training
            results['cost'] = folder.read(workdir / 'results.json').get('cost', results['cost'])
        watchdog.expect('evaluate')
        if first:
            write_json(workdir / 'results.json', results, indent=1)
            text = texts(run, state, workdir)
            (workdir / 'samples.txt').write_text(text, encoding='utf-8', errors='backslashreplace')
            page.write(workdir)
    if first:
        live.print(terminal.evaluation(results['validation'], results['baselines'], 'validation'))
        live.print(f'report and samples: {workdir / "report.md"}')
    return results


def resolved(run) -> dict[str, Any]:
    """The config as a folder is bound to it: nested dict, the mesh as it is here."""
    return run.config.to_dict() | {'mesh': dict(run.mesh.shape)}


def on_its_vocabulary(config, workdir: pathlib.Path):
    """The config with as many ids as the run in the folder has, if an earlier version filled them up for its mesh."""
    if config.init.base or not (workdir / 'config.json').exists():
        return config
    saved = folder.read_config(workdir)
    size = saved['model']['vocab_size']
    asked = config.model.vocab_size
    if size != asked + vocab_padding.missing(asked, saved['mesh']['tensor']):
        return config
    config = config.copy_and_resolve_references()
    config.model.vocab_size = size
    return config.lock()


def on_its_date(config, workdir: pathlib.Path):
    """The config with the date that the run in the folder writes in its conversations, if none is asked for."""
    if config.task.date or not (workdir / 'config.json').exists():
        return config
    date = folder.read_config(workdir)['task']['date']
    if not date:
        return config
    config = config.copy_and_resolve_references()
    config.task.date = date
    return config.lock()


def texts(run, state, workdir) -> str:
    """What samples.txt holds; parameters that are divided over several processes make no text here."""
    if jax.process_count() > 1 and samples.makes_text(run) and run.config.sample.prompts:
        if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)):
            word = 'The parameters of this run are divided over several processes'
            return f'{word}: lmtrain generate --workdir={workdir} makes texts of them in one.\n'
        state = jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
    return samples.texts(run, run.one(state).params)
