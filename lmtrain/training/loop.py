"""The training loop: read the metrics of the previous step, evaluate, save, and only then take the next batch."""

import contextlib
import math
import statistics
from typing import Any

import jax
import numpy as np

from lmtrain import data, tree
from lmtrain.cost import hlo
from lmtrain.parallel import sharding
from lmtrain.report import completions, evaluations, metrics, summary, terminal
from lmtrain.report.writers import numbers, plain
from lmtrain.runtime import faults, lifecycle, multihost, sdc
from lmtrain.runtime.progress import phase
from lmtrain.training import evaluate, monitor, reward_scores, rollouts, sweep
from lmtrain.training.run import Run
from lmtrain.training.step import by_length

MAX_SKIPPED_IN_A_ROW = 5  # consecutive updates that were not finite; then the run ends


class Loop:
    """The loop and its own state from step to step. The train state is an argument of its methods: it is donated.

    Args:
      writers: of metrics.jsonl and timings.jsonl; None in all processes but the first.
      extra: counters of the checkpoint that the run resumes from, see `save`; of a new run {'step': 0, 'elapsed': 0.0}.
    """

    def __init__(self, run: Run, checkpoints, signals, watchdog, writers, live, extra):
        self.run, self.checkpoints, self.signals, self.watchdog = run, checkpoints, signals, watchdog
        self.writers, self.live = writers, live
        self.earlier_cost = extra.get('measured', {})  # of earlier starts
        self.step_memory = self.earlier_cost.get('step_memory', 0)
        self.step = self.saved_at = extra['step']  # steps taken, and those that the last checkpoint has
        last = extra.get('validation')
        self.validation, self.evaluated_at = last and numbers(last), extra.get('evaluated_at')  # the last evaluation
        # What ranks a checkpoint: the loss, of a sweep the mean of the members that have one.
        self.metric: float | None = None
        self.sampled = extra.get('sampled', {})  # numbers of the rollouts that a resumed run needs
        self.clock = metrics.Clock(run.total_steps, run.config.budget.hours, extra['elapsed'])
        if not run.total_steps and run.config.budget.flops:
            self.clock.share = lambda step: run.spent(step, self.sampled)['flops'] / run.config.budget.flops
        self.progress = self.clock.spent(self.step)  # of the last step
        self.meter = metrics.Meter(run.tokens_per_step, run.flops_per_step.total, run.peak_flops)
        self.to_devices, self.on_cpu = sharding.place(run.mesh), jax.default_backend() == 'cpu'
        self.eval_step = run.eval_step()
        self.sampler = rollouts.Sampler(run, reward_scores.scorer, not self.step) if run.task.on_policy else None
        # The function (params, stopped) -> the held-out results, or None if it was stopped.
        if self.sampler:
            self.sampler.held_out_flops = self.sampled.get('evaluation_flops', 0.0)
            self.measure = rollouts.held_out(self.sampler, 'validation', run.config.evaluate.max_batches)
        else:
            streams, step = evaluate.passes(run, 'validation', run.config.evaluate.max_batches), self.eval_step
            self.measure = lambda params, stopped: evaluate.evaluate(step, params, streams, self.to_devices, stopped)
        self.baselines = {} if run.config.data.mask_rate else run.corpus.baselines()
        self.means = metrics.Means(extra.get('means', {}))
        self.monitor = monitor.Monitor(extra.get('monitor', {})) if self.sampler else None
        self.rollout_steps = run.steps_per_rollout
        self.sampling = 0.0  # seconds of rollouts in this start
        self.patience, self.bests = run.config.evaluate.patience, extra.get('bests', [])  # of early stopping
        self.memorised = ''  # the message on a memorised text, printed once in a start
        self.rises = 0  # evaluations in a row with a higher loss than the one before
        self.all_max = multihost.AsyncMax() if jax.process_count() > 1 else None
        self.stopping, self.spent_by_all = False, 0.0

    def close(self) -> None:
        """Ends the processes that score completions."""
        if self.sampler:
            self.sampler.close()

    def should_stop(self, now: bool = False) -> bool:
        """Whether a process received a signal to stop. All processes return True at the same call, and from then on.

        A collective, whose result is that of the previous call unless `now` (see AsyncMax).
        """
        signalled = float(bool(self.signals.received))
        spent = 0.0 if self.clock.total_steps else self.clock.spent(self.step + 1)  # of steps, all spend the same
        if self.all_max:
            signalled, spent = self.all_max(signalled, spent, now=now)
        self.stopping, self.spent_by_all = self.stopping or bool(signalled), spent
        return self.stopping

    def train(self, state, compiled):
        """Trains to the end of the budget and returns the state.

        Args:
          compiled: () -> `Run.train_steps()`. Not called if the budget is already spent.
        """
        self.should_stop(now=True)
        progress = self.clock.spent(self.step)
        ends = progress >= 1.0 or bool(self.patience) and evaluations.exhausted(self.bests, self.patience)
        if ends:
            self.live.print(summary.finished(self.step, early=progress < 1.0))
        first = self.sampler and not self.step  # what the policy can do before it learns
        if (ends or first or self.due(self.run.config.evaluate.every_steps)) and self.evaluated_at != self.step:
            self.evaluate(state)  # or a signal interrupted it in the previous start
            self.watchdog.expect('start')  # the step may still be compiling
            if self.step and self.evaluated_at == self.step:
                self.checkpoints.set_metric(self.step, self.metric)
            elif self.stopping:
                self.stop()  # and interrupted it again
            if not ends and self.patience and evaluations.exhausted(self.bests, self.patience):
                self.live.print(summary.stopped_early(self.bests, self.patience))
                ends = True
        if ends:
            return state
        with phase('compiling the train step'):
            programs = compiled()
        train_step = by_length(programs)
        self.step_memory = max(self.step_memory, *map(hlo.compiled_bytes, programs.values()))
        if self.should_stop(now=True):
            self.stop()
        if self.sampler:
            source = rollouts.Rollouts(self.sampler, self.step, self._place, self.sampled, self.show)
            self.sampled = source.state
        else:
            source = data.Prefetch(self.run.train_stream(), self.step, self._place)
        with contextlib.closing(source) as batches:
            self.clock.start()
            self.meter.restart(self.step, progress, 0.0)
            return self._steps(state, train_step, batches, progress)

    def _place(self, batch):
        return self.to_devices(batch), data.batch_hash(batch)

    def due(self, every: int) -> bool:
        """Whether something is due that is done every so many steps; a rollout's steps are not interrupted for it."""
        size = self.rollout_steps
        return self.step > 0 and self.step % size == 0 and self.step // every > (self.step - size) // every

    def _steps(self, state, train_step, batches, progress):
        """The steps until the budget is spent.

        Metrics of a step are read while the device computes the next one, so the host never waits for the device. On
        a CPU they are read at once: many steps in flight can deadlock simulated devices.
        """
        pending, every = [], self.run.config.sdc_check_every
        while progress < 1.0:
            self.watchdog.expect('step')
            step, (batch, digest) = batches.take(state)
            for point in (faults.STALL, faults.KILL, faults.RAISE):
                faults.inject(point, step + 1)
            stopping = self.should_stop()
            # Processes must agree on the progress: under a budget in hours it is the largest of their clocks.
            progress = self.clock.spent(step + 1) if self.run.total_steps else self.spent_by_all
            if not self.run.total_steps and self.progress < (self.run.decay_progress or 0.0) <= progress:
                self.keep_before_decay(state, pending, batches.waited)
            self.step, self.progress = step + 1, progress
            self.live.at(self.step, progress)
            check = every and self.step % every == 0
            step_function = sdc.run_twice(train_step, self.step) if check else train_step
            state, measured = step_function(state, batch, np.float32(progress))
            pending.append((self.step, progress, measured, digest, batches.waited, batches.figures))
            whole = progress >= 1.0 or self.step % self.rollout_steps == 0
            evaluate_now = progress >= 1.0 or self.due(self.run.config.evaluate.every_steps)
            save_now = progress >= 1.0 or self.due(self.checkpoints.every_steps)
            save_now = save_now or whole and self.step == self.checkpoints.branch
            due = evaluate_now or save_now or stopping and whole
            while len(pending) > (not due and not self.on_cpu):
                self.log(*pending.pop(0))
            if due:
                if evaluate_now:
                    self.evaluate(state)
                    if self.patience and progress < 1.0 and evaluations.exhausted(self.bests, self.patience):
                        self.live.print(summary.stopped_early(self.bests, self.patience))
                        progress, save_now = 1.0, True
                if save_now or self.stopping and whole:
                    self.save(state)
                self.meter.restart(self.step, progress, batches.waited)
            self.checkpoints.check_for_errors()
            if self.saved_at == self.step and self.stopping:
                self.stop()
        return state

    def keep_before_decay(self, state, pending, waited):
        """Saves the state before the decay of 'wsd', which no step announces under a budget in hours.

        A policy is saved between rollouts only: its last checkpoint is kept.
        """
        if self.step > self.saved_at and not self.sampler:
            while pending:
                self.log(*pending.pop(0))
            self.save(state)
            self.meter.restart(self.step, self.progress, waited)
            self.watchdog.expect('step')
        self.checkpoints.branch = self.saved_at

    def stop(self):
        """Ends a run that received a signal, after the last checkpoint is on the disk. Raises RunEnded."""
        self.checkpoints.wait()
        saved = f'step {self.saved_at:,} is saved' if self.saved_at else 'no step was taken'
        cause = self.signals.received or 'another process received a signal'
        raise lifecycle.RunEnded(lifecycle.REQUEUE, f'{cause}: {saved}, run the same command to resume')

    def log(self, step, progress, measured, digest, waited, figures):
        """Reads the metrics of a step, writes them if they are due, and ends a run that diverged."""
        values = {name: value.tolist() for name, value in jax.device_get(measured).items()}
        if values['skipped_in_a_row'] >= MAX_SKIPPED_IN_A_ROW:
            self.abort(
                f'no finite loss or gradient in {MAX_SKIPPED_IN_A_ROW} steps, to step {step:,} on batch {digest}'
            )
        self.means.add(values)
        if figures:
            self.monitor.add(values, figures, first=(step - 1) % self.rollout_steps == 0)
        if step % self.run.config.log.every_steps and 1 < step and progress < 1.0:
            if self.live.empty:  # a resumed run: the next line of metrics may be far
                self.live.update(step, progress, values)
            return
        means = self.means.take()
        if figures:  # steps in which no completion had a signal have no loss
            values = {name: value for name, value in values.items() if name not in means}
            means = {name: value for name, value in means.items() if not math.isnan(value)}
        values |= means
        if self.sampler:
            self.meter.flops_per_step = self.run.spent(self.step, self.sampled)['flops'] / self.step
        speed = self.meter.read(step, progress, waited)
        if self.sampler:
            values |= self.monitor.figures()
            self.sampling = waited
            speed |= {'rollout_seconds': waited, 'training_seconds': self.clock.elapsed - self.clock.before - waited}
        if self.clock.seconds_left is not None:
            speed['seconds_left'] = self.clock.seconds_left
        if self.writers:
            self.writers.metrics(step, values, digest)
            self.writers.timings(step, speed)
        self.live.update(step, progress, values | speed | self.run.in_bits(values))

    def show(self, step: int, prompts, rollout):
        """Prints and records a few completions of a rollout that follows `step` steps, if they are due."""
        every = self.run.config.policy.show_every
        if every and step // self.rollout_steps % every == 0:
            rows = completions.rows(prompts.texts, rollout)
            self.live.print(completions.table(rows))
            if self.writers:
                self.writers.completions(step + 1, rows)

    def abort(self, reason: str):
        """Ends a run that cannot recover. Raises RunEnded."""
        saved = f'the last checkpoint is of step {self.saved_at:,}' if self.saved_at else 'nothing has been saved'
        way_out = 'Lower optimizer.learning_rate or lengthen schedule.warmup'
        message = f'{reason}: these steps are discarded, {saved}. {way_out}'
        raise lifecycle.RunEnded(lifecycle.NON_FINITE, message, self.cost())

    def evaluate(self, state):
        """Measures the validation loss of the state, unless a signal interrupts it."""
        self.watchdog.expect('evaluate')
        validation = self.measure(state.params, self.should_stop)
        if validation is None:
            return
        if self.sampler:
            self.sampled['evaluation_flops'] = self.sampler.held_out_flops
        if self.run.initial.members:
            skipped = np.asarray(state.counters['skipped_in_a_row']).tolist()
            validation = sweep.without_diverged(validation, skipped, MAX_SKIPPED_IN_A_ROW)
            validation = sweep.of_best_rate(self.run.initial.members, validation)
        rises = self.validation is not None and validation['loss'] > self.validation['loss']
        self.rises = self.rises + 1 if rises else 0
        self.validation, self.evaluated_at = validation, self.step
        if self.patience:
            self.bests = evaluations.follow(self.bests, self.step, validation)
        if self.writers:
            self.writers.validation(self.step, self.validation)
        self.live.print(terminal.note(f'{self.step:,}', terminal.evaluation_line(self.validation, self.baselines)))
        if self.run.initial.members:
            self.live.print(terminal.note('', sweep.line(self.run.initial.members, self.validation)))
        if self.rises == evaluations.RISING and self.writers and not self.run.initial.members:
            if sign := evaluations.overfitting(self.writers.lines()):
                self.live.print(terminal.note('overfits', evaluations.text(sign, self.run.steps_per_epoch)))
        epochs = self.step / self.run.steps_per_epoch
        if self.writers and self.progress < 1.0 and epochs > evaluations.MANY_EPOCHS and not self.memorised:
            self.memorised = evaluations.memorised(self.writers.lines(), epochs)
            if self.memorised:
                self.live.print(terminal.note('memorised', self.memorised))
        for name, own in self.validation.get('sources', {}).items():
            self.live.print(terminal.note('', f'{name}: {terminal.evaluation_line(own, {})}'))
        if self.sampler and (warning := self.monitor.compare(self.validation)):
            self.live.print(terminal.note('warning', warning))
        losses = list(filter(math.isfinite, self.validation.get('loss' + sweep.SUFFIX, [self.validation['loss']])))
        if not losses:  # of a sweep: of no member
            self.abort(f'the validation loss after step {self.step:,} is {self.validation["loss"]}')
        self.metric = statistics.fmean(losses)

    def domains(self, state, known=()) -> dict[str, Any]:
        """The validation loss on this data and on each of config.evaluate.sources, but for the names in `known`."""
        self.watchdog.expect('evaluate')
        streams = evaluate.domains(self.run)
        return {
            name: evaluate.evaluate(self.eval_step, state.params, {name: (1.0, stream)}, self.to_devices)
            for name, stream in streams.items()
            if name not in known
        }

    def save(self, state):
        """Starts to save the state and all counters that a resumed run needs."""
        self.watchdog.expect('save')
        extra = {'elapsed': self.clock.elapsed, 'evaluated_at': self.evaluated_at}
        extra |= {'validation': plain(self.validation) if self.run.initial.members else self.validation}
        extra |= {'means': self.means.state}  # of the steps since the last line
        extra |= {'monitor': self.monitor.state, 'sampled': self.sampled} if self.sampler else {}
        extra |= {'bests': self.bests} if self.patience else {}
        if hours := self.run.config.budget.hours:
            extra['hours'] = self.progress * hours  # by which the schedule set the last step; `elapsed` is later
        extra |= self.run.spent(self.step, self.sampled)
        extra |= {'measured': self.measured(), 'cut': list(self.run.initial.method.cut)}
        metric = self.metric if self.evaluated_at == self.step else None  # never that of an older state
        self.checkpoints.save(self.run.initial.stored(state), self.step, extra, metric)
        self.saved_at = self.step

    def measured(self) -> dict[str, float]:
        """Device-seconds and bytes of memory so far, over all starts.

        'peak_memory' is that of `metrics.peak_memory`, 'step_memory' that of the compiled train step. Seconds of a
        start that was killed after its last checkpoint are not among them (`workdir.lost_seconds`).
        """
        before, devices, peak = self.earlier_cost, self.run.mesh.size, metrics.peak_memory()
        now = self.clock.elapsed - self.clock.before
        return {
            'device_seconds': before.get('device_seconds', devices * self.clock.before) + devices * now,
            'peak_memory': max(before.get('peak_memory', 0), peak),
            'step_memory': self.step_memory,
        } | ({'rollout_seconds': before.get('rollout_seconds', 0.0) + self.sampling} if self.sampling else {})

    def cost(self) -> dict[str, float]:
        """Seconds, FLOPs, tokens and memory until now."""
        cost = {'seconds': self.clock.elapsed} | self.run.spent(self.step, self.sampled) | self.measured()
        return cost | ({'evaluation_flops': self.sampler.held_out_flops} if self.sampler else {})

    def results(self, state) -> dict[str, Any]:
        """The content of results.json."""
        cost = {'steps': self.step} | self.cost() | {'epochs': self.step / self.run.steps_per_epoch}
        cost |= {'parameters': tree.count(state.params), 'trainable': tree.count(state.trainable)}
        skipped = int(np.sum(np.asarray(state.counters['skipped'])))  # of all members of a sweep
        cost |= {'skipped': skipped} if skipped else {}
        results = {
            'validation': self.validation,
            'unit': self.run.task.unit,
            'baselines': self.baselines,
            'cost': cost,
            'plan': summary.planned(self.run),
        }
        results |= {} if self.run.task.reads_rows else {'data': self.run.corpus.facts()}
        if self.patience and evaluations.exhausted(self.bests, self.patience):
            results['stopped_early'] = True
        return results | (sweep.results(self.run.initial.members, self.validation) if self.run.initial.members else {})
