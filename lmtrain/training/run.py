"""The parts of a run, and the functions that they make together."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain import adapt, cost, data, tree
from lmtrain.data.chat import encoding
from lmtrain.data.chat.template import Template
from lmtrain.errors import InputError
from lmtrain.models import Transformer, generation
from lmtrain.parallel import collectives, sharding, vocab_padding
from lmtrain.report import terminal
from lmtrain.tasks import TASKS, Task
from lmtrain.tasks.prepare import TaskData
from lmtrain.training import state, step, sweep
from lmtrain.training.init_from import Base


class Run(NamedTuple):
    """The parts of a run. Shapes only: nothing is on a device yet."""

    config: Any
    mesh: Any
    model: Transformer
    tx: Any
    schedule: Any
    base: Base | None  # whose parameters it starts from; None draws them
    corpus: data.Corpus | TaskData | None = None
    method: adapt.Method | None = None
    objective: Any = None
    shapes: state.TrainState | None = None  # of jax.ShapeDtypeStruct, with shardings
    plain: state.TrainState | None = None  # those without the rows that fill the vocabulary up; None if there are none
    flops_per_step: cost.Flops | None = None
    total_steps: int | None = None  # None where the budget is in hours
    device_memory: int = 0  # bytes of the smallest device; 0 if unknown
    output: str = 'logits'  # that the objective reads: of the model's own head, or by the task's name of an added one
    notes: tuple[str, ...] = ()  # about the head of the task

    @property
    def task(self) -> Task:
        """The record of its task."""
        return TASKS[self.config.task.name]

    @property
    def members(self) -> tuple[sweep.Member, ...]:
        """The members of a sweep; none where this is one run."""
        return sweep.of(self.config)

    @property
    def tokens_per_step(self) -> int:
        """Positions a step, padding included, on average over an epoch; in a sweep those of each member."""
        if not self.task.reads_rows:
            return self.config.data.batch_size * self.config.data.seq_len
        return round(self.config.data.batch_size * self.stream('train', shuffle=True).mean_length)

    def in_bits(self, values) -> dict[str, float]:
        """Bits per byte of a step's measures, by the bytes behind a target of the training split; {} of other tasks."""
        split = self.corpus.splits['train']
        text = self.task.predicts_tokens and split.num_bytes
        return {'bits_per_byte': values['nats'] / math.log(2) * split.num_tokens / split.num_bytes} if text else {}

    @property
    def attention(self) -> str:
        """What attends in a step, 'xla' or a kernel of the devices."""
        kernel, wanted = sharding.kernel(self.mesh), self.model.attention
        return kernel if kernel and wanted in ('auto', kernel) and not self.obstacle else 'xla'

    @property
    def obstacle(self) -> str:
        """The reason that the devices' kernel of attention cannot attend in a step, or ''."""
        kernel = sharding.kernel(self.mesh)
        params = sweep.alone(self.shapes, self.members).params
        return kernel and collectives.unsupported_reason(
            kernel, self.config.data.seq_len, self.model, params, self.mesh
        )

    @property
    def peak(self) -> float | None:
        """FLOP/s of all devices together; None where a device is not known."""
        one = cost.peak_flops(self.mesh.devices.flat[0].device_kind, self.config.model.dtype)
        return one and one * self.mesh.size

    def fingerprints(self) -> dict[str, str]:
        """Hashes of what a resumed run must find unchanged beside its config."""
        found = {'data': self.corpus.fingerprint, 'tokenizer': self.corpus.tokenizer.hash}
        return found | ({'base': self.base.hash} if self.base else {})

    @property
    def generation(self) -> dict[str, Any]:
        """The fields of its generation_config.json; `eos_token_id` lists the tokens at which its texts end."""
        below, tokenizer = self.base.generation if self.base else {}, self.corpus.tokenizer
        ends = []
        if self.template:
            end = encoding.answer_end(tokenizer, self.template)
            ends = [encoding.common_answer_end(self.corpus.examples['train'], tokenizer) if end is None else end]
        return generation.fields_of(below, tokenizer, self.model.vocab_size, ends)

    @property
    def template(self) -> Template | None:
        """The chat template that has written rows of the task; None if they stand as they are."""
        return self.corpus.template if self.task.conversations else None

    def baselines(self) -> dict[str, float]:
        """Bits per byte of the validation text under simpler models; none where the objective is not the text's."""
        return {} if self.config.data.mask_rate else self.corpus.baselines()

    @property
    def predicted(self) -> int | None:
        """Positions of a row that the head reads in masked language modelling; None of other objectives: all."""
        return (
            max(1, round(self.config.data.mask_rate * self.config.data.seq_len)) if self.config.data.mask_rate else None
        )

    @property
    def keep_logits(self) -> bool:
        """Whether a step saves all logits in bfloat16 for the backward pass (ShardingHooks.keep_logits): it is faster.

        It does if what a device then holds by theory is at most half of its memory: theory does not know all that a
        compiler keeps.
        """
        language = self.task.predicts_tokens and self.config.model.dtype == 'bfloat16'
        return language and self._memory(keep_logits=True)['total'] <= self.device_memory / 2

    def memory(self) -> dict[str, int]:
        """Bytes on one device, by parts, as `cost.bytes_per_device` gives them."""
        return self._memory(self.keep_logits)

    def _memory(self, keep_logits: bool) -> dict[str, int]:
        config, shapes, replicas = self.config, self.shapes, self.mesh.shape['data'] * self.mesh.shape['fsdp']
        rows = config.data.batch_size // config.optimizer.accumulate // replicas * max(len(self.members), 1)
        more = {axis: self.mesh.shape[axis] for axis in ('tensor', 'sequence')}
        more |= {'predicted': self.predicted, 'keep_logits': keep_logits}
        fused = self.attention != 'xla'
        return cost.bytes_per_device(shapes, self.model, rows, config.data.seq_len, fused=fused, **more)

    def planned(self) -> dict[str, float]:
        """What was known before: 'peak_memory' of a device in bytes, and where they are, 'steps', 'tokens', 'seconds'.

        Seconds are those at config.plan.mfu of the devices' peak.
        """
        found = {'peak_memory': self.memory()['total']}
        if self.total_steps:
            found |= {'steps': self.total_steps, 'tokens': self.total_steps * self.tokens_per_step}
        if self.total_steps and self.peak:
            flops = self.total_steps * self.flops_per_step.total
            found |= {'seconds': flops / self.peak / self.config.plan.mfu}
        return found

    def header(self, stand_in: bool = False) -> str:
        """The header of a run. `stand_in`: its text is `build.stand_in`, whose sizes and epochs have no meaning."""
        config, shapes, stream = self.config, self.shapes, self.stream('train', shuffle=True)
        epoch = stream.steps_per_epoch * config.data.batch_size * config.data.seq_len
        about = terminal.header(
            config,
            self.mesh,
            trainable=tree.count(shapes.trainable),
            total=tree.count(shapes.params),
            total_steps=self.total_steps,
            epoch_tokens=None if stand_in else epoch,
            flops_per_step=self.flops_per_step.total,
            memory=self.memory(),
        )
        notes = [terminal.note('rows', text) for text in getattr(self.corpus, 'notes', ())]  # of a task
        if not self.task.reads_rows and not stand_in:
            notes.append(terminal.text(self.corpus.facts()))
        notes += [terminal.note('head', text) for text in self.notes]
        if repeated := getattr(stream, 'repeated', 0):
            notes.append(terminal.note('rows', f'{repeated} come twice in an epoch, to fill up its last batch'))
        if fill := self.model.vocab_fill:
            text = f'{config.model.vocab_size:,} ids, and {fill} rows that mesh.tensor needs'
            notes.append(terminal.note('vocabulary', text))
        if self.model.attention == 'auto' and self.obstacle:
            notes.append(terminal.note('attention', f'by XLA: {sharding.kernel(self.mesh)} {self.obstacle}'))
        if lost := sharding.replicated(sweep.alone(shapes, self.members).params, self.mesh):
            notes.append(terminal.note('replicated', lost))
        evaluated, saved = config.evaluate.every_steps, config.checkpoint.every_steps
        if config.checkpoint.keep_best and saved < (self.total_steps or 0) <= math.lcm(evaluated, saved):
            text = (
                'is the last one: no checkpoint before it has a validation loss, since '
                f'checkpoint.every_steps = {saved} and evaluate.every_steps = {evaluated} never meet'
            )
            notes.append(terminal.note('best', text))
        return '\n'.join([about, *notes])

    def train_stream(self):
        """What the train step is fed: in a sweep of several orders, all of them side by side."""
        orders = sweep.orders(self.members) or [self.config.seed]
        streams = [self.stream('train', shuffle=True, seed=order) for order in orders]
        return sweep.Streams(streams) if len(streams) > 1 else streams[0]

    def stream(self, split: str, shuffle: bool = False, seed: int | None = None, limit: int = 0):
        """The stream of a split: shuffled by `seed` (config.seed) and endless for training, else one pass in order.

        limit: batches of a pass at most, a random sample; 0 is all.
        """
        make = data.PaddedStream if self.task.reads_rows else data.Stream
        return make(
            self.corpus,
            split,
            batch_size=self.config.data.batch_size,
            seed=self.config.seed if seed is None else seed,
            shuffle=shuffle,
            rows=sharding.rows(self.mesh, self.config.data.batch_size),
            limit=limit,
        )

    def passes(self, split: str, max_batches: int = 0) -> dict[str, tuple[float, Any]]:
        """{source: (its share of the rows of a batch of training, one pass over its rows of `split`)}.

        max_batches: of all sources together, about, divided by their shares, at least one of each; 0 is all.
        """
        names = getattr(self.corpus, 'names', ('',))  # the rows of a task are of one source
        if len(names) == 1:
            return {names[0]: (1.0, self.stream(split, limit=max_batches))}
        parts = {}
        for index, (name, share) in enumerate(zip(names, self.corpus.shares(split), strict=True)):
            if share:
                limit = max(1, round(max_batches * share)) if max_batches else 0
                alone = self._replace(corpus=self.corpus.alone(index))
                parts[name] = share, alone.stream(split, limit=limit)
        return parts

    def domains(self) -> dict[str, data.Stream]:
        """{name: its validation stream}, without any mixture, of data.source and each of config.evaluate.sources.

        {} where none is named there. Raises ValueError where a text would have a tokenizer of its own.
        """
        wanted, found = self.config.data.to_dict() | {'mix': ()}, {}
        if self.base and wanted['tokenizer'] == 'base':
            wanted['tokenizer'] = str(self.base.tokenizer.absolute())
        sources = self.config.evaluate.sources
        for source in (self.config.data.source, *sources) if sources else ():
            corpus = data.prepare(**wanted | {'source': source}, vocab_limit=self.config.model.vocab_size)
            if corpus.tokenizer.hash != self.corpus.tokenizer.hash:
                raise InputError(
                    f'evaluate.sources has {source!r}, for which data.tokenizer = {wanted["tokenizer"]!r} is learnt '
                    "anew: take the base's ('base') or a file"
                )
            found[source] = self._replace(corpus=corpus).stream('validation')
        return found

    def batch_shapes(self) -> dict[int, dict[str, jax.ShapeDtypeStruct]]:
        """{T: shapes of a global batch, with its sharding}, of every length that batches come in."""
        stream = self.train_stream()
        rows = self.config.data.batch_size
        return {
            length: {
                name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding.column(self.mesh, x.ndim))
                for name, x in stream.batch(first).items()
            }
            for length, first in stream.steps_of_lengths().items()
        }

    def one(self, state: state.TrainState) -> state.TrainState:
        """The state of one run: of a sweep its first member."""
        return sweep.member(state, 0) if self.members else state

    @property
    def trainable(self) -> str:
        """Regex of the paths that learn."""
        return self.config.trainable or self.method.trainable

    def create(self, key: jax.Array, below: tree.Params | None = None) -> state.TrainState:
        """The state before the first step; traced, so that every leaf is born where it belongs.

        `below`: the base's parameters; drawn where there are none.
        """

        def one(key):
            params = self.whole(key, below)
            params = self.method.start(jax.random.fold_in(key, 2), params)
            params = vocab_padding.fill(params, self.model.vocab_fill)
            made = state.create(jax.random.fold_in(key, 1), params, self.trainable, self.tx)
            return made if below is None else self._typed(made)

        return sweep.create(one, key, self.members)

    def whole(self, key: jax.Array, below: tree.Params | None) -> tree.Params:
        """The parameters of the model: the base's, and those drawn that it lacks, which are of the task's head."""
        if below is not None and self.model.head == 'lm':
            return below
        model = dataclasses.replace(self.model, vocab_fill=0)  # the same draws on every mesh
        new = drawn(model, key, self.config.data.seq_len)
        if below is None:
            return new
        held = tree.flatten(below)
        head = {p: leaf for p, leaf in tree.flatten(new).items() if p.startswith('task_head/') and p not in held}
        return tree.join(below, tree.unflatten(head))

    def _typed(self, made: state.TrainState) -> state.TrainState:
        """What learns in float32, what the base gave and does not in config.init.frozen_dtype."""
        trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), made.trainable)
        given, dtype = self.given(made.frozen), self.config.init.frozen_dtype
        frozen = {path: x.astype(dtype) if path in given else x for path, x in tree.flatten(made.frozen).items()}
        return made.replace(trainable=trainable, frozen=tree.unflatten(frozen), opt_state=self.tx.init(trainable))

    def given(self, params: tree.Params) -> set[str]:
        """The paths of `params` that are the base's."""
        if not self.base:
            return set()
        shapes = jax.eval_shape(lambda x: tree.cut(x, self.method.cut) if self.method.cut else x, self.base.shapes)
        return tree.flatten(params).keys() & tree.flatten(shapes).keys()

    def initial_state(self) -> state.TrainState:
        """The state before the first step, on the mesh."""
        return self._begun(lambda state: state)

    def _begun(self, part):
        """`part` of the state before the first step; the rest is never there."""
        on, key = jax.tree.map(lambda leaf: leaf.sharding, part(self.shapes)), jax.random.key(self.config.seed)
        if not self.base:
            return jax.jit(lambda: part(self.create(key)), out_shardings=on)()
        filled = jax.eval_shape(lambda x: vocab_padding.fill(x, self.model.vocab_fill), self.base.shapes)
        laid = vocab_padding.laid(self.base.shapes, sharding.shardings(filled, self.mesh))
        where = {path: leaf.sharding for path, leaf in tree.flatten(laid).items()}
        # From the host: what lies on one device of this process cannot be put on those of others.
        below = self.base.load(lambda path, array: jax.device_put(np.asarray(array), where[path]))
        return jax.jit(lambda below: part(self.create(key, below)), out_shardings=on)(below)

    def stored(self, whole: state.TrainState) -> state.TrainState:
        """What a checkpoint holds of a state (or of its shapes): all but what the base has and does not learn."""
        whole = vocab_padding.resized(whole, self.plain) if self.plain else whole
        given = self.given(whole.frozen)
        own = {path: leaf for path, leaf in tree.flatten(whole.frozen).items() if path not in given}
        return whole.replace(frozen=tree.unflatten(own))

    def complete(self, stored: state.TrainState) -> state.TrainState:
        """The whole state from what a checkpoint held; undoes `stored`."""
        stored = vocab_padding.resized(stored, self.shapes) if self.plain else stored
        if not self.given(self.shapes.frozen):
            return stored
        whole = tree.flatten(self._begun(lambda state: state.frozen))
        return stored.replace(frozen=tree.unflatten(whole | tree.flatten(stored.frozen)))

    def specs(self) -> dict[str, jax.sharding.PartitionSpec]:
        """{path: how it lies on the mesh} of the parameters of one run."""
        params = sweep.alone(self.shapes, self.members).params
        return {path: on.spec for path, on in tree.flatten(sharding.shardings(params, self.mesh)).items()}

    def lowered(self) -> dict[int, Any]:
        """{T: the train step for batches of that length, ready to be compiled}, its state donated."""
        optimizer = self.config.optimizer
        gradient = step.make_gradient(
            self.model,
            self.objective,
            accumulate=optimizer.accumulate,
            adapter_dropout=self.config.adapt.dropout,
            keep_logits=self.keep_logits,
            mesh=self.mesh,
            specs=self.specs(),
        )
        make = functools.partial(
            step.make_train_step,
            gradient,
            self.tx,
            self.schedule,
            trainable=self.shapes.trainable,
            learning_rates=optimizer.learning_rates,
            clip=optimizer.clip,
        )
        function = sweep.train_step(make, self.members, optimizer.learning_rate)
        on = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        jitted = jax.jit(function, donate_argnums=0, out_shardings=(on, None))
        progress = jax.ShapeDtypeStruct((), jnp.float32)
        shapes = self.batch_shapes().items()
        return {length: jitted.lower(self.shapes, batch, progress) for length, batch in shapes}

    def train_steps(self) -> dict[int, Any]:
        """{T: the compiled train step for batches of that length}."""
        return {length: lowered.compile() for length, lowered in self.lowered().items()}

    def train_step(self):
        """The function (state, batch, progress) -> (state, metrics), compiled."""
        compiled = self.train_steps()
        if len(compiled) == 1:
            return next(iter(compiled.values()))
        return lambda state, batch, progress: compiled[batch['tokens'].shape[-1]](state, batch, progress)

    def eval_step(self):
        """The jitted (params, batch) -> sums."""
        function = step.make_eval_step(self.model, self.objective, self.mesh, self.specs())
        return jax.jit(sweep.eval_step(function, self.members, self.shapes.trainable))


@functools.partial(jax.jit, static_argnums=(0, 2))
def drawn(model, key: jax.Array, seq_len: int) -> tree.Params:
    """The parameters of a model before it has learned; jitted, so that a start traces the model for them once."""
    return model.init(key, {'tokens': np.zeros((1, seq_len), np.int32)})['params']
