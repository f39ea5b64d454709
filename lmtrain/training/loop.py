"""Step after step: read what the step before measured, evaluate, save, and only then take the next batch."""

import math
from typing import Any

import jax
import numpy as np

from lmtrain import data, tree
from lmtrain.parallel import sharding
from lmtrain.report import metrics, terminal
from lmtrain.runtime import faults, lifecycle, multihost, sdc
from lmtrain.training import evaluate, sweep
from lmtrain.training.run import Run

SKIPPED_IN_A_ROW = 5  # updates dropped one after another before the run ends


class Loop:
    """The loop and what it carries from step to step; the state itself is handed on, since it is donated."""

    # `writers` is None in all processes but the first.
    def __init__(self, run: Run, checkpoints, signals, watchdog, writers, live, extra):
        self.run, self.checkpoints, self.signals, self.watchdog = run, checkpoints, signals, watchdog
        self.writers, self.live, self.done, self.saved_at = writers, live, extra['step'], extra['step']
        self.validation, self.evaluated_at = extra.get('validation'), extra.get('evaluated_at')  # the last one
        self.clock = metrics.Clock(run.total_steps, run.config.budget.hours, extra['elapsed'])
        self.meter = metrics.Meter(run.tokens_per_step, run.flops_per_step.total, run.peak)
        self.put, self.on_cpu = sharding.place(run.mesh), jax.default_backend() == 'cpu'
        self.eval_step = run.eval_step()
        self.eval_streams = run.passes('validation', run.config.evaluate.max_batches)
        self.baselines = run.baselines()
        self.means = metrics.Means(extra.get('means', {}))
        self.vote, self.stopping, self.spent_of_all = multihost.AsyncMax(), False, 0.0

    def agreed(self, now: bool = False) -> bool:
        """Whether some process was asked to stop, in all of them at the same call; and then for good."""
        asked, spent = self.vote(float(bool(self.signals.received)), self.clock.spent(self.done + 1), now=now)
        self.stopping, self.spent_of_all = self.stopping or bool(asked), spent
        return self.stopping

    def go(self, state, compiled):
        """Trains to the end of the budget; `compiled()` is the train step, which a finished run does not need."""
        config = self.run.config
        self.agreed(now=True)
        progress = self.clock.spent(self.done)
        if progress >= 1.0:
            self.live.print(f'  finished   the budget is spent after step {self.done:,}: nothing is left to train')
            if self.evaluated_at != self.done:
                self.evaluate(state)
            return state
        if self.done and self.done % config.evaluate.every_steps == 0 and self.evaluated_at != self.done:
            self.evaluate(state)  # what a signal had cut short
            if self.evaluated_at == self.done:
                self.checkpoints.set_metric(self.done, self.validation['loss'])
        train_step = compiled()
        if self.agreed(now=True):
            self.stop()

        def place(batch):
            return self.put(batch), data.batch_hash(batch)

        with data.prefetch(self.run.train_stream(), self.done, place) as batches:
            self.clock.start()
            self.meter.restart(self.done, progress, 0.0)
            # The step before is read while the device computes this one; not on a CPU, where many steps in flight can
            # deadlock simulated devices.
            pending = []
            while progress < 1.0:
                self.watchdog.expect('step')
                step, (batch, digest) = next(batches)
                faults.inject_before_step(step + 1)
                stopping = self.agreed()
                progress = self.clock.spent(step + 1) if self.run.total_steps else self.spent_of_all
                again = config.sdc_check_every and (step + 1) % config.sdc_check_every == 0
                take = sdc.run_twice(train_step, step + 1) if again else train_step
                state, measured = take(state, batch, np.float32(progress))
                self.done = step + 1
                pending.append((self.done, progress, measured, digest, batches.waited))
                evaluated = progress >= 1.0 or self.done % config.evaluate.every_steps == 0
                due = evaluated or stopping or self.checkpoints.due(self.done)
                while len(pending) > (not due and not self.on_cpu):
                    self.say(*pending.pop(0))
                if due:
                    if evaluated:
                        self.evaluate(state)
                    if progress >= 1.0 or self.stopping or self.checkpoints.due(self.done):
                        self.save(state)
                    self.meter.restart(self.done, progress, batches.waited)
                self.checkpoints.check_for_errors()
                if self.saved_at == self.done and self.stopping:
                    self.stop()
        return state

    def stop(self):
        """Ends a run that was asked to, with what is saved on the disk."""
        self.checkpoints.wait()
        standing = f'step {self.saved_at:,} is saved' if self.saved_at else 'no step had been taken'
        asked = self.signals.received or 'another process was asked to stop'
        raise lifecycle.RunEnded(lifecycle.REQUEUE, f'{asked}: {standing}; the same command goes on')

    def say(self, step, progress, measured, digest, waited):
        """Reads what a step measured, writes it where it is due, and ends a run that has gone wrong."""
        values = {name: value.tolist() for name, value in jax.device_get(measured).items()}
        if values['skipped_in_a_row'] >= SKIPPED_IN_A_ROW:
            self.give_up(f'no finite loss or gradient in {SKIPPED_IN_A_ROW} steps, to step {step:,} on batch {digest}')
        self.means.add(values)
        if step % self.run.config.log.every_steps and 1 < step and progress < 1.0:
            return
        values |= self.means.take()
        speed = self.meter.read(step, progress, waited)
        if self.writers:
            self.writers.metrics(step, values, digest)
            self.writers.timings(step, speed)
        self.live.update(step, progress, values | speed | self.run.in_bits(values))

    def give_up(self, why: str):
        """Ends a run that cannot recover."""
        standing = f'the last checkpoint is of step {self.saved_at:,}' if self.saved_at else 'nothing has been saved'
        way_out = 'Lower optimizer.learning_rate or lengthen schedule.warmup'
        raise lifecycle.RunEnded(lifecycle.NON_FINITE, f'{why}: none of it is kept, {standing}. {way_out}')

    def evaluate(self, state):
        """The validation loss of the state."""
        self.watchdog.expect('evaluate')
        validation = evaluate.evaluate(self.eval_step, state.params, self.eval_streams, self.put, self.agreed)
        if validation is None:
            return
        self.validation, self.evaluated_at = validation, self.done
        if self.writers:
            self.writers.validation(self.done, self.validation)
        self.live.print(terminal.note(f'{self.done:,}', terminal.evaluation_line(self.validation, self.baselines)))
        for name, own in self.validation.get('sources', {}).items():
            self.live.print(terminal.note('', f'{name}: {terminal.evaluation_line(own, {})}'))
        if not math.isfinite(self.validation['loss']):
            self.give_up(f'the validation loss after step {self.done:,} is {self.validation["loss"]}')

    def domains(self, state) -> dict[str, Any]:
        """The validation loss on this data and on each of config.evaluate.sources; {} where none is named."""
        self.watchdog.expect('evaluate')
        streams = self.run.domains()
        return {
            name: evaluate.evaluate(self.eval_step, state.params, {name: (1.0, stream)}, self.put)
            for name, stream in streams.items()
        }

    def save(self, state):
        """Begins to save the state with all that a resumed run must know."""
        self.watchdog.expect('save')
        extra = {'elapsed': self.clock.elapsed, 'validation': self.validation, 'evaluated_at': self.evaluated_at}
        extra |= {'means': self.means.state}  # of the steps since the last line
        extra |= self.spent() | {'cut': list(self.run.method.cut)}
        metric = self.validation['loss'] if self.evaluated_at == self.done else None  # never an older state's
        self.checkpoints.save(self.run.stored(state), self.done, extra, metric)
        self.saved_at = self.done

    def spent(self) -> dict[str, float]:
        """Tokens and FLOPs so far: functions of the step."""
        tokens, flops = self.run.tokens_per_step, self.run.flops_per_step.total
        return {'tokens': self.done * tokens, 'flops': self.done * flops}

    def results(self, state) -> dict[str, Any]:
        """What results.json holds."""
        cost = {'steps': self.done, 'seconds': self.clock.elapsed, 'peak_memory': metrics.peak_memory()} | self.spent()
        cost |= {'parameters': tree.count(state.params), 'trainable': tree.count(state.trainable)}
        found = {'validation': self.validation, 'baselines': self.baselines, 'cost': cost, 'plan': self.run.planned()}
        return found | sweep.results(self.run.members, self.validation)
