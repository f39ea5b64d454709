"""Trains a run from its config to its report. A resumed run equals the uninterrupted one."""

import contextlib
import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from lmtrain import checkpoint, files, tree
from lmtrain.checkpoint import Checkpoints
from lmtrain.evaluation import predictions
from lmtrain.models import generation
from lmtrain.parallel import sharding
from lmtrain.report import evaluations, metrics, page, summary, terminal, trackers
from lmtrain.report.live import Live
from lmtrain.report.provenance import provenance, versions
from lmtrain.report.writers import Writers, numbers, plain
from lmtrain.runtime import lifecycle, multihost, preflight, progress
from lmtrain.training import budget_change, evaluate, next_steps, reference, samples, workdir
from lmtrain.training.build import build
from lmtrain.training.loop import Loop
from lmtrain.training.resolve import resolve
from lmtrain.training.run import Run

NEW = {'step': 0, 'elapsed': 0.0}  # the counters of a run without a checkpoint


def train(config, directory, extend: bool = False, programs: dict[Any, Any] | None = None) -> dict[str, Any]:
    """Trains `config` in the folder `directory`, or resumes the run that is there.

    The training starts from the first of these that exists:
      1. the newest intact checkpoint of this run;
      2. the one before it, if the newest is damaged, and so on: damaged ones are renamed to `<step>.corrupt`;
      3. the base, config.init.base; what it lacks (adapter, head) is drawn from config.seed;
      4. a random initialisation from config.seed.
    If the run is finished, nothing is computed. A larger budget continues a run whose schedule is 'constant', or 'wsd'
    from its last checkpoint before the decay (`workdir.bind` renames the later ones, so that the newest is that one);
    with `extend` every run, with a new schedule from its newest checkpoint. It adds to `programs`, see `Run.programs`.

    Returns the content of results.json: the last evaluation, the baselines and the cost.

    Raises:
      InputError, OSError: config, data or folder are wrong; nothing was compiled.
      lifecycle.RunEnded: a signal requested a stop (the step is saved), or the run cannot continue; has the exit code.
    """
    directory = files.local_path(directory, '--workdir')
    with contextlib.ExitStack() as stack:
        process_0 = jax.process_index() == 0
        output = sys.stdout if process_0 else stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
        screen = stack.enter_context(progress.on(progress.Screen(output)))
        run = dataclasses.replace(build(*resolve(config, directory, extend=extend)), programs=programs)
        watchdog = stack.enter_context(lifecycle.Watchdog(**config.watchdog))
        changed = _claim(stack, run, directory, stored := run.initial.stored(run.shapes))
        # All see the folder as process 0 does: `workdir.check_shared`.
        if (directory / 'results.json').exists() and (results := _finished(run, directory, changed, screen)):
            return results
        if run.initial.reference_mode:
            watchdog.expect('evaluate')
            run = reference.complete(run)
            watchdog.expect('start')
        branch = _branch(run, directory) if config.schedule.name == 'wsd' else None
        checkpoints = stack.enter_context(Checkpoints(directory / 'checkpoints', **config.checkpoint, branch=branch))
        signals = stack.enter_context(lifecycle.Signals())
        with progress.phase('restoring the last checkpoint'):
            saved, extra = checkpoints.restore(stored) or (None, NEW)
        finished = _is_over(run, extra)
        # The step compiles on a thread while the first state is created or completed.
        compiling = None if finished else stack.enter_context(ThreadPoolExecutor(1)).submit(run.train_steps)
        with progress.phase('loading the parameters' if run.initial.base else 'drawing the parameters'):
            state = run.initial.complete(saved) if saved else run.initial.on_mesh()
        live = _announce(stack, screen, run, extra['step'] if saved else None, extra['elapsed'], changed)
        del saved  # its arrays are part of the state
        writers = _record_start(stack, run, directory, extra, changed, finished, live) if process_0 else None
        loop = stack.enter_context(contextlib.closing(Loop(run, checkpoints, signals, watchdog, writers, live, extra)))
        before = _evaluate_before(loop, state, directory) if config.evaluate.sources else {}
        state = loop.train(state, compiling and compiling.result)
        watchdog.expect('save')
        with progress.phase('saving', brief=True):
            checkpoints.wait()  # under the watchdog and the signal handlers
        results = loop.results(state) | (evaluate.change(before, loop.domains(state)) if before else {})
        watchdog.expect('evaluate')
        results |= _details(run, state) if run.task.details else {}
        if process_0:
            with progress.phase('sampling texts, writing the report'):
                _write_results(run, state, directory, results, finished)
    live.print(_ending(run, directory, results))
    return results


def _ending(run: Run, directory: Path, results: dict[str, Any]) -> str:
    """The last lines of a run: its scores, where its report is, and what can be done with the model."""
    report = f'report and samples: {directory / "report.md"}'
    return '\n'.join([terminal.evaluation(results), report, next_steps.commands(run, directory)])


def _branch(run: Run, directory: Path) -> int | None:
    """The step before the decay of 'wsd', from which another budget continues: under hours, of an earlier start."""
    if run.decay_progress and not run.total_steps:
        return budget_change.before_decay(directory, run.resolved, run.resolved)
    return run.decay_start


def _is_over(run: Run, extra: dict[str, Any]) -> bool:
    """Whether the budget is spent or evaluate.patience exhausted, by the counters of a checkpoint."""
    clock = metrics.Clock(run.total_steps, run.config.budget.hours, extra['elapsed'])
    if not run.total_steps and run.config.budget.flops:
        clock.share = lambda step: run.spent(step, extra.get('sampled', {}))['flops'] / run.config.budget.flops
    patience = run.config.evaluate.patience
    return clock.spent(extra['step']) >= 1.0 or patience and evaluations.exhausted(extra.get('bests', []), patience)


def _finished(run: Run, directory: Path, changed, screen: progress.Screen) -> dict[str, Any] | None:
    """The results of a run that is finished, and that nothing has changed since; they are printed. Else None."""
    # Process 0 alone reads the file, and it alone knows what has changed.
    read = jax.process_index() == 0 and not changed and (directory / 'report.md').exists()
    results = multihost.all_gather_object(workdir.read(directory / 'results.json') if read else None)[0]
    inspected = checkpoint.inspect(directory / 'checkpoints') if results else None
    if not results or not inspected or results.get('cost', {}).get('steps') != inspected[0]:
        return None
    (step, _, extra), results = inspected, numbers(results)
    if not _is_over(run, extra | {'step': step}):
        return None
    screen.print(summary.finished(step, early=results.get('stopped_early', False)))
    screen.print(_ending(run, directory, results))
    return results


def _claim(stack: contextlib.ExitStack, run: Run, directory: Path, stored) -> list[workdir.ConfigDifference]:
    """Checks that all processes run the same and that the run fits on disk and in device memory; locks the folder.

    `stored`: the shapes of what a checkpoint has.

    Returns the fields of the config that differ from the saved ones and may. Raises InputError, OSError.
    """
    config = run.config
    several = jax.process_count() > 1
    if several:
        facts = {'config': run.resolved, 'code': multihost.source_hash()} | versions() | run.fingerprints
        multihost.assert_same(tree.flatten(facts))
    count = config.checkpoint.keep_last + config.checkpoint.keep_best + (config.schedule.name == 'wsd')
    workdir.check(directory, tree.size(stored), count)
    if several:
        workdir.check_shared(directory)
    preflight.check_memory(run.memory, run.mesh.local_devices[0])
    stack.enter_context(workdir.exit_on_disk_full(directory))
    if jax.process_index():
        return []
    stack.enter_context(workdir.lock(directory))
    return workdir.bind(directory, run.resolved, run.fingerprints)


def _announce(
    stack: contextlib.ExitStack, screen: progress.Screen, run: Run, resumed_from: int | None, elapsed: float, changed
) -> Live:
    """Prints the header of a start, on process 0."""
    live = stack.enter_context(contextlib.closing(Live(run.total_steps, screen)))
    live.print(summary.header(run))
    if run.initial.reference_mode:
        live.print(terminal.note('reference', reference.note(run)))
    if resumed_from is not None:
        live.print(f'  resumed    after step {resumed_from:,}, {terminal.duration(elapsed)} in')
    for difference in changed:
        live.print(terminal.note('changed', f'{difference}{workdir.CONSEQUENCES.get(difference.kind, "")}'))
    return live


def _record_start(
    stack: contextlib.ExitStack, run: Run, directory: Path, extra: dict[str, Any], changed, finished: bool, live: Live
) -> Writers:
    """Writes what the folder records of a start, removes metrics of steps that were not saved, opens the files.

    Only process 0 writes. Results of a smaller budget are kept as results.STEP.json.
    """
    log, resumed_from = run.config.log, extra['step'] or None
    if not finished and (directory / 'results.json').exists():
        steps = workdir.read(directory / 'results.json').get('cost', {}).get('steps', resumed_from)
        (directory / 'results.json').rename(directory / f'results.{steps}.json')
    lost = 0.0
    if (directory / 'lineage.jsonl').exists():  # of earlier starts
        lost = workdir.lost_seconds(directory, resumed_from or 0)
        for name in ('metrics.jsonl', 'timings.jsonl', 'completions.jsonl'):
            workdir.truncate_jsonl(directory / name, resumed_from or -1)
    workdir.record(directory, resumed_from, changed, lost_seconds=lost, **provenance(run.mesh.devices.ravel()))
    run.corpus.tokenizer.save(directory / 'tokenizer')
    generation.write(directory, run.generation)
    members = [trackers.label(**member._asdict()) for member in run.initial.members]
    others = trackers.start(log.trackers, directory, run.resolved, members) if log.trackers else {}
    writers = Writers(directory, log.tensorboard, extra['step'], live.print, others, members)
    stack.callback(writers.close)
    return writers


def _evaluate_before(loop: Loop, state, directory: Path) -> dict[str, Any]:
    """The evaluation of each of config.evaluate.sources before the first step, kept in before.json.

    Sources that a later start adds are measured on the parameters before the first step, which are drawn or read again.
    """
    path, run, first = directory / 'before.json', loop.run, jax.process_index() == 0
    # Process 0 alone reads the folder: what it finds decides for all what they evaluate.
    known = multihost.all_gather_object(workdir.read(path) if first and path.exists() else {})[0]
    if {run.config.data.source, *run.config.evaluate.sources} <= known.keys():
        return known
    if loop.step:
        state = state.replace(trainable=run.initial.on_mesh(lambda state: state.trainable))
    known |= loop.domains(state, known)
    loop.watchdog.expect('start')  # the step may still be compiling
    if first:
        files.write_json(path, known, indent=1)
    return known


def _write_results(run: Run, state, directory: Path, results: dict[str, Any], finished: bool) -> None:
    """Writes results.json, samples.txt and the report."""
    path = directory / 'results.json'
    if finished and path.exists():  # the cost of this start is not that of the training
        results['cost'] = workdir.read(path).get('cost', results['cost'])
    elif lost := sum(line.get('lost_seconds', 0.0) for line in files.read_json_lines(directory / 'lineage.jsonl')):
        device_seconds = results['cost']['device_seconds'] + run.mesh.size * lost
        results['cost'] |= {'lost_seconds': lost, 'device_seconds': device_seconds}
    results['remarks'] = evaluations.remarks(directory, results)
    files.write_json(path, plain(results) if run.initial.members else results, indent=1)  # members may have diverged
    text = samples.texts(run, state, directory)
    (directory / 'samples.txt').write_text(text, encoding='utf-8', errors='backslashreplace')
    page.write(directory, run.resolved)


def _details(run: Run, state) -> dict[str, Any]:
    """`Task.details` of the validation split; {} in several processes and in sweeps, which gather no predictions."""
    if jax.process_count() > 1 or run.initial.members:
        return {}
    stream, place = run.stream('validation'), sharding.place(run.mesh)
    settings = run.config.objective.to_dict() | {'head': run.output}
    predicted = predictions.predictions(run.model, run.task.predict, state.params, stream, place, **settings)
    return run.task.details(run.corpus, 'validation', predicted)
