"""What each way of using a model costs, from one generated text to pretraining, by arithmetic: nothing is run."""

import functools
import math
import pathlib
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from lmtrain import adapt, cost, optimizer, tree
from lmtrain.cost import hardware, ledger, memory, passes
from lmtrain.cost.query import Query, cache_bytes, query_flops
from lmtrain.errors import InputError
from lmtrain.models import Transformer, attention_kernels
from lmtrain.plan import scaling_laws
from lmtrain.report import terminal
from lmtrain.tasks import TASKS
from lmtrain.training import reference, rollout_cost, workdir
from lmtrain.training.checks import check_settings
from lmtrain.training.initial import initial_params
from lmtrain.training.resolve import resolve

TEXT = 256  # tokens of a generated text
ANSWER = 2  # tokens of an answer
BATCH = 8  # rows of a step, if the recipe has no rows of its own
CONTINUAL = 0.01  # tokens of continual pretraining, of those of the base, if the recipe has no text of its own
BYTES = 4  # of a token of English text
HEAD = 'label'  # name of an added head


class Workload(NamedTuple):
    """The task whose cost is compared.

    Attributes:
      row_tokens: of a row without its answer; None is 64, or a quarter of a shorter context.
      classes: answers that are compared.
      shots: demonstrations of a prompt; fewer if the context is too short.
      train_rows, epochs: of the training.
      candidates, selection: prompts that a search compares, on so many rows.
    """

    row_tokens: int | None = None
    classes: int = 10
    shots: int = 16
    train_rows: int = 1000
    epochs: int = 3
    candidates: int = 64
    selection: int = 100


class Machine(NamedTuple):
    """Devices, and the speed of each.

    Attributes:
      peak: FLOP/s. bandwidth: bytes/s of its memory, inf if unknown. memory: bytes, inf if unknown.
      measured: whether `peak` was measured here.
    """

    name: str
    chips: int
    peak: float
    bandwidth: float = math.inf
    memory: float = math.inf
    measured: bool = False


class Way(NamedTuple):
    """One row of the table."""

    name: str
    trained: int  # parameters
    create: float  # FLOPs
    query: float  # FLOPs
    stored: float  # bytes
    memory: float  # bytes of one device
    seconds: float  # to create it; of a prompt, of one query
    devices: int = 1  # that are paid for these seconds


class MethodSettings(NamedTuple):
    """A method of `adapt`, its settings, and whether it adds a head to any model."""

    title: str
    name: str
    settings: dict[str, Any]
    adds_head: bool = False


class Training(NamedTuple):
    """Tokens, rows and length of a micro-batch on a device, and why it is so many tokens."""

    tokens: float
    rows: int
    length: int
    source: str


def machine(target: hardware.Target | None, dtype: str) -> Machine:
    """The target, or the devices of this process. A device of unknown peak is measured by one product.

    Raises InputError for simulated devices.
    """
    if target and not target.chip:
        raise InputError(f'--target={target.name}: simulated devices have no speed; omit it to measure this machine')
    if target:
        chip = target.chip
        return Machine(target.name, target.chips, cost.peak_flops(chip.kind, dtype), chip.bandwidth, chip.memory)
    device = jax.devices()[0]
    known = cost.peak_flops(device.device_kind, dtype)
    peak = known or hardware.measured_peak(dtype)
    return Machine(device.device_kind, jax.device_count(), peak, measured=not known)


class Costs:
    """The ways of a config, on a machine.

    Raises what `resolve` raises, and InputError if a row does not fit in the context.
    """

    def __init__(self, config, workload: Workload, on: Machine):
        check_settings(config)
        self.config, base = resolve(config) if config.init.base else (config.copy_and_resolve_references(), None)
        self.model = Transformer(**self.config.model)
        self.machine, self.base = on, base
        shapes = base.shapes if base else None
        draw = functools.partial(initial_params, self.model, seq_len=self.config.data.seq_len)
        self.params = jax.eval_shape(lambda key, shapes: draw(key, shapes), jax.random.key(0), shapes)
        self.row = workload.row_tokens or min(64, self.model.max_len // 4)
        whole = self.row + ANSWER
        if whole > self.model.max_len:
            raise InputError(f'--row_tokens={self.row}: with an answer it exceeds model.max_len={self.model.max_len}')
        shots = min(workload.shots, (self.model.max_len - whole) // whole)
        self.workload = workload._replace(shots=shots)
        self.notes = [] if self.model.causal else ['prompts: an encoder has no text to continue; a head answers']
        if self.model.causal and shots < workload.shots:
            self.notes.append(f'more than {shots} shots, which do not fit in the context')

    # How much is read

    @functools.cached_property
    def question(self) -> Query:
        """A query without demonstrations: its choices are compared, by an encoder with a head."""
        if not self.model.causal:
            return Query(self.row, classes=self.workload.classes)
        return Query(self.row, choices=(ANSWER,) * self.workload.classes)

    @property
    def demonstrated(self) -> Query:
        """The same after the same demonstrations in every query."""
        return self.question._replace(shared=self.workload.shots * (self.row + ANSWER))

    def budget(self) -> Training:
        """That of the config."""
        rows, length = self.config.data.batch_size, self.config.data.seq_len
        before, per_token = self._outside(self.params, added=False)
        flops = cost.flops_per_step(self.model, rows, length).total + rows * length * per_token
        steps = cost.total_steps(self.config.budget, rows * length, flops, before)
        if steps is None:  # hours
            speed = self.machine.peak * self.machine.chips * self.config.plan.mfu
            steps = 3600 * self.config.budget.hours * speed / flops
        source = 'the budget of the recipe'
        if before or per_token:
            on_policy = TASKS[self.config.task.name].on_policy
            source += ', with rollouts at most' if on_policy else ', with the reference model'
        return Training(steps * rows * length, self._micro, length, source)

    def adaptation(self) -> Training:
        """The budget of a recipe that reads rows, else that of the workload."""
        if TASKS[self.config.task.name].reads_rows:
            return self.budget()
        length = self.row + ANSWER
        epochs, rows = self.workload.epochs, self.workload.train_rows
        return Training(epochs * rows * length, BATCH, length, f'{epochs} epochs of {rows:,} rows')

    def pretraining(self) -> Training:
        """What the base has read; if that is unknown, `scaling_laws.RATIO` tokens for each parameter."""
        results = pathlib.Path(self.config.init.base) / 'results.json'
        if not self.base and not TASKS[self.config.task.name].reads_rows:
            return self.budget()
        tokens, source = scaling_laws.RATIO * tree.count(self.params), f'{scaling_laws.RATIO:g} for each parameter'
        if self.base and self.base.config and not self.base.base and results.exists():
            tokens, source = workdir.read(results)['cost']['tokens'], 'those of the base'
        return Training(tokens, self._micro, self.config.data.seq_len, source)

    def continual(self) -> Training:
        """The budget of a recipe that reads a text from a base on, else a share of that of the base."""
        if self.base and not TASKS[self.config.task.name].reads_rows:
            return self.budget()
        training = self.pretraining()
        return training._replace(tokens=CONTINUAL * training.tokens, source=f'{CONTINUAL:.0%} of pretraining')

    # Rows of the table

    def queries(self) -> Iterator[Way]:
        """Without any change of the model, the most frequent use first."""
        if not self.model.causal:
            return
        text = min(TEXT, self.model.max_len - 1)
        yield self._query(f'generate {text} tokens', Query(1, generated=text))
        yield self._query('zero-shot query', self.question)
        if not self.workload.shots:
            return
        shots = terminal.counted(self.workload.shots, 'shot')
        yield self._query(shots, self.demonstrated)
        flops = query_flops(self.model, self.params, self.demonstrated)
        cached = cache_bytes(self.model, self.demonstrated.shared)
        way = self._query(f'{shots}, cached', self.demonstrated, cached=True)
        yield way._replace(create=flops.shared, stored=cached)

    def created(self) -> Iterator[Way]:
        """What is made for a task, then the base itself."""
        w = self.workload
        if self.model.causal and w.shots:
            search = ledger.scoring(self.model, self.params, self.demonstrated, w.selection)
            way = self._query('prompt search', self.demonstrated)
            create = w.candidates * search.flops
            yield way._replace(create=create, seconds=create / self._speed, devices=self.machine.chips)
        for method in self._methods():
            try:
                yield self._trained(method.title, self.adaptation(), method)
            except InputError as error:
                self.notes.append(f'{method.title}: {str(error).partition(". ")[0]}')
        yield self._trained('continual pretraining', self.continual())
        yield self._trained('pretraining', self.pretraining())

    def _methods(self) -> list[MethodSettings]:
        """Those of adapt.METHODS with the settings of the config, by number of trainable parameters."""
        own, last = self.config.adapt, self.config.adapt.layers.last or max(1, self.model.num_layers // 4)
        prompt = {name: value for name, value in own.prompt.items() if name != 'text'}  # a text needs its tokenizer
        return [
            MethodSettings(f'soft prompt of {own.prompt.length}', 'prompt', prompt | {'init': 'vocab'}),
            MethodSettings(f'prefix of {own.prefix.length}', 'prefix', dict(own.prefix)),
            MethodSettings('LoRA', 'lora', dict(own.lora)),
            MethodSettings('head', 'head', {}, adds_head=True),
            MethodSettings('last layer' if last == 1 else f'last {last} layers', 'layers', {'last': last}),
            MethodSettings('BitFit', 'bitfit', {}),
            MethodSettings('full fine-tuning', 'full', {}),
        ]

    @property
    def _speed(self) -> float:
        """FLOP/s of all devices at the assumed utilisation."""
        return self.machine.peak * self.machine.chips * self.config.plan.mfu

    @property
    def _micro(self) -> int:
        """Rows of a micro-batch on a device."""
        return max(1, self.config.data.batch_size // self.config.optimizer.accumulate // self.machine.chips)

    def _query(self, name: str, query: Query, cached: bool = False) -> Way:
        """A way that trains nothing. Its time is that of one query on one device.

        A query is at best limited by its products or by reading all parameters, once for each generated token.
        """
        flops = query_flops(self.model, self.params, query)
        weights, steps = tree.size(self.params), max(query.generated - 1, 0)
        speed, bandwidth = self.machine.peak * self.config.plan.mfu, self.machine.bandwidth
        read = flops.row if cached else flops.whole - flops.decode
        seconds = max(read / speed, (1 + bool(query.choices)) * weights / bandwidth)
        seconds += max(flops.decode / speed, steps * weights / bandwidth)
        size = memory.bytes_of_query(self.params, self.model, query)
        return Way(name, 0, 0.0, flops.cached if cached else flops.whole, BYTES * query.shared, size, seconds)

    def _outside(self, params: tree.Params, added: bool) -> tuple[float, float]:
        """FLOPs that the recipe computes outside of its train steps: (before the first, for each token of the others).

        Rollouts of a policy, at most; the reference model in every step, or once for all rows of the workload.

        Args:
          added: whether all trained leaves are added ones.
        """
        config, length = self.config, self.config.data.seq_len
        if TASKS[config.task.name].on_policy:
            policy, scored = config.policy, [params, *([self.params] if added or config.objective.kl_weight else [])]
            tokens = policy.epochs * policy.prompts * policy.samples * length
            reward_model = rollout_cost.open_reward_model(config)
            return 0.0, rollout_cost.at_most(config, self.model, scored, policy.prompts, reward_model) / tokens
        mode = reference.mode(config)
        rows = self.workload.train_rows if mode == 'cached' else 1
        flops = passes.pass_flops(self.model, self.params, rows, length) if mode else 0.0
        return (0.0, flops / length) if mode == 'live' else (flops, 0.0)

    def _trained(self, title: str, training: Training, method: MethodSettings | None = None) -> Way:
        """A method, or without one all parameters on text. Raises InputError if the method is impossible."""
        model, params, trainable, classes = self.model, self.params, '.*', None
        if method:
            lacks_head = model.head in ('lm', 'none') and (method.adds_head or not model.causal)
            classes = self.workload.classes if lacks_head else None
            head = {'name': HEAD, 'classes': classes} if classes else None
            chosen = adapt.method(method.name, model, params, head=head, **method.settings)
            params, trainable = jax.eval_shape(chosen.start, jax.random.key(0), params), chosen.trainable
        rate = self.config.data.mask_rate
        predicted = max(1, round(rate * training.length)) if rate and not method else None
        step = cost.flops_per_step(
            model,
            training.rows,
            training.length,
            trainable,
            params=params,
            classes=classes,
            predicted=predicted,
            block=attention_kernels.BLOCK,
        )
        create = training.tokens / (training.rows * training.length) * step.executed
        own, frozen = tree.split(params, trainable)
        if method and TASKS[self.config.task.name].reads_rows:
            once, per_token = self._outside(params, tree.flatten(own).keys().isdisjoint(tree.flatten(self.params)))
            create += once + training.tokens * per_token
        if set(own) == {'heads'} and not method.adds_head:
            raise InputError('it trains no parameter of the model')
        moments = jax.eval_shape(optimizer.optimizer(**self.config.optimizer).init, own)
        state = types.SimpleNamespace(trainable=own, frozen=frozen, opt_state=moments)
        size = cost.bytes_per_device(state, model, training.rows, training.length, predicted=predicted)
        query = self.question
        if classes:
            query = Query(self.row, classes=classes)
        return Way(
            title,
            tree.count(own),
            create,
            query_flops(model, params, query).whole,
            tree.size(ledger.stored_leaves(params, trainable)),
            size['total'],
            create / self._speed,
            self.machine.chips,
        )
