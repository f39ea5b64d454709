"""A run: its parts, and the functions and figures that follow from them."""

import dataclasses
import functools
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lmtrain import data, optimizer, tree
from lmtrain.cost import budget, flops, hardware, memory
from lmtrain.data.chat import encoding
from lmtrain.data.chat.template import Template
from lmtrain.files import flatten_fields
from lmtrain.models import Transformer, attention_kernels, generation
from lmtrain.parallel import collectives, redistribute, sharding
from lmtrain.tasks import Task
from lmtrain.tasks.prepare import TaskData
from lmtrain.training import budget_change, rollout_batch, rollout_cost, step, sweep
from lmtrain.training.initial import InitialState
from lmtrain.training.state import TrainState

# Fields of a config that no program depends on: its batches and its key are arguments.
OF_DATA = ('seed', 'data.source', 'data.root', 'data.cache', 'task.train', 'task.validation', 'task.test')


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run. It holds shapes only: nothing is on a device yet.

    Attributes:
      config: resolved, see `resolve`.
      task: the record of the task that it names.
      schedule: progress -> factor of the learning rate.
      initial: creates the first state, and knows which part of a state a checkpoint stores.
      objective: the loss, a functools.partial with its settings.
      corpus: the data.
      device_memory: bytes of the smallest device; 0 if unknown.
      output: name of the output that the objective reads: 'logits', or the name of the task for an added head.
      notes: lines about the head of the task.
      reference_flops: FLOPs of the pass whose results are the column of a cached reference model.
      rollout_flops: upper bound of the FLOPs of one rollout.
      rollout_bytes: see `rollout_cost.bytes_per_device`.
      reward_hash: identifies the file and the model that reward completions; '' if there is neither.
      programs: compiled functions, which runs share that differ in their rows and their seed alone; None: not shared.
    """

    config: ml_collections.ConfigDict
    task: Task
    mesh: jax.sharding.Mesh
    model: Transformer
    schedule: Any
    initial: InitialState
    objective: functools.partial
    corpus: data.Corpus | TaskData
    device_memory: int = 0
    output: str = 'logits'
    notes: tuple[str, ...] = ()
    reference_flops: float = 0.0
    rollout_flops: float = 0.0
    rollout_bytes: tuple[int, int] = (0, 0)
    reward_hash: str = ''
    programs: dict[Any, Any] | None = None

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The state as jax.ShapeDtypeStruct, with shardings."""
        return self.initial.shapes

    @functools.cached_property
    def specs(self) -> dict[str, jax.sharding.PartitionSpec]:
        """{path: PartitionSpec} of the parameters of one run."""
        shardings = sharding.shardings(self.initial.member_shapes.params, self.mesh)
        return {path: on.spec for path, on in tree.flatten(shardings).items()}

    # What is recorded in the folder of the run.

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """The content of config.json: nested dict of `config` with the sizes of the mesh and what the data decided.

        That is the classes and the head of the task, whether a chat template wrote the rows, and its date. So a
        resumed run, and a prompt after the training, are written in the same way on another day.
        """
        config = self.config.to_dict() | {'mesh': dict(self.mesh.shape)}
        if not self.task.predicts_tokens:
            model = dataclasses.asdict(self.model)
            config['model'] = {name: model[name] for name in config['model']}
            config['task']['labels'] = self.corpus.labels
        if self.task.conversations:
            config['task']['template'] = config['task']['template'] if self.template else 'none'
            config['task']['date'] = self.template.date if self.template else ''
        return config

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Hashes that a resumed run must find unchanged, beside its config."""
        fingerprints = {'data': self.corpus.fingerprint, 'tokenizer': self.corpus.tokenizer.hash}
        own = {'base': self.initial.base.hash if self.initial.base else '', 'reward': self.reward_hash}
        return fingerprints | {name: value for name, value in own.items() if value}

    @functools.cached_property
    def generation(self) -> dict[str, Any]:
        """The fields of generation_config.json; `eos_token_id` lists the tokens that end a text."""
        base, tokenizer = self.initial.base, self.corpus.tokenizer
        ends = []
        if self.template:
            end = encoding.answer_end(tokenizer, self.template)
            ends = [encoding.common_answer_end(self.corpus.examples['train'], tokenizer) if end is None else end]
        return generation.fields_of(base.generation if base else {}, tokenizer, self.model.vocab_size, ends)

    @property
    def template(self) -> Template | None:
        """The chat template that wrote rows of the task; None if there is none."""
        return self.corpus.template if self.task.conversations else None

    # Figures known before the first step.

    @property
    def is_padded(self) -> bool:
        """Whether the rows of a batch are padded to the longest of them, and not to data.seq_len."""
        return self.task.reads_rows and not self.task.on_policy

    @functools.cached_property
    def tokens_per_step(self) -> int:
        """Positions of a step, padding included, on average over an epoch; in a sweep those of each member."""
        length = self.stream('train', shuffle=True).mean_length if self.is_padded else self.config.data.seq_len
        return round(self.config.data.batch_size * length)

    @property
    def longest(self) -> int:
        """T of the longest batches."""
        return max(self.corpus.lengths) if self.is_padded else self.config.data.seq_len

    @property
    def steps_per_rollout(self) -> int:
        """Steps from one rollout to the next; 1 for tasks whose batches come from the data."""
        policy = self.config.policy
        completions = policy.prompts * policy.samples
        return policy.epochs * completions // self.config.data.batch_size if self.task.on_policy else 1

    @functools.cached_property
    def total_steps(self) -> int | None:
        """Steps of the budget; None for a budget in hours, and for one in FLOPs of a policy: completions decide it."""
        flops = self.flops_per_step.total if self.config.budget.flops else math.inf
        steps = budget.total_steps(self.config.budget, self.tokens_per_step, flops, self.reference_flops)
        return None if self.rollout_flops and self.config.budget.flops else steps

    def spent(self, steps: int, sampled: Mapping[str, float] | None = None) -> dict[str, float]:
        """Tokens and FLOPs of `steps` steps, and the FLOPs of what is computed outside of them.

        Args:
          sampled: {'rollout_flops': FLOPs of all rollouts so far}. None: unknown; the upper bound `rollout_flops` of
            the run is used.

        Returns:
          {'tokens', 'flops' (of the model), 'executed_flops', and 'reference_flops' or 'rollout_flops': their part
          outside of the steps}.
        """
        parts = {'reference_flops': self.reference_flops, 'rollout_flops': 0.0}
        if self.rollout_flops:
            most = self.rollout_flops * steps / self.steps_per_rollout
            parts['rollout_flops'] = most if sampled is None else sampled.get('rollout_flops', 0.0)
        outside = sum(parts.values())
        spent = {
            name: steps * each + (0.0 if name == 'tokens' else outside) for name, each in self.cost_per_step.items()
        }
        return spent | {name: part for name, part in parts.items() if part}

    @property
    def decay_start(self) -> int | None:
        """The last step before the decay of 'wsd', from which another budget continues; None for a budget in hours.

        Not the step at which the decay starts: rounding of its progress to float32 may give it a part of the decay.
        """
        share = self.decay_progress
        return math.ceil(share * self.total_steps) - 1 if share and self.total_steps else None

    @functools.cached_property
    def decay_progress(self) -> float | None:
        """The progress below which a step is before the decay of 'wsd'; None for other schedules."""
        if self.config.schedule.name != 'wsd':
            return None
        start, budget = budget_change.decay_start(self.config), budget_change.amount(self.config)
        return start / budget.value * (1 - budget_change.MARGIN)

    @functools.cached_property
    def flops_per_step(self) -> flops.Flops:
        """FLOPs of a step of all members, over all devices, with all keys of a row: of budgets and MFU."""
        return self._flops(block=None)

    def _flops(self, block: int | None) -> flops.Flops:
        config, params = self.config, self.initial.member_shapes.params
        count = functools.partial(
            flops.flops_per_step,
            self.model,
            config.data.batch_size,
            self.tokens_per_step // config.data.batch_size,
            self.initial.method.trainable,
            classes=None if self.output == 'logits' else self.task.output_size(self.corpus.labels),
            predicted=self.num_predicted,
            block=block,
            shares=self.mesh.size * config.optimizer.accumulate,
            keep_logits=self.keep_logits,
        )
        counted = count(params=params)
        if self.initial.reference:  # its forward pass in every step
            counted = counted._replace(forward=counted.forward + count(params=self.initial.reference(params)).forward)
        matrices = optimizer.matrices(config.optimizer.name, tree.flatten(self.shapes.trainable))
        if matrices:
            update = sum(
                group.per_device * optimizer.newton_schulz_flops(group.rows, group.columns)
                for group in redistribute.matrix_groups(matrices, self.specs, self.mesh)
            )
            # Devices that differ only in rows, or hold replicas of a matrix, repeat the same products.
            counted = counted._replace(update=self.mesh.size * update)
        return flops.Flops(*(max(len(self.initial.members), 1) * part for part in counted))

    @functools.cached_property
    def cost_per_step(self) -> dict[str, float]:
        """{'tokens', 'flops', 'executed_flops'} of a step.

        The devices execute recomputed products and the optimizer too, and no blocks of masked keys.
        """
        executed = self._flops(block=None if self.mesh.shape['sequence'] > 1 else attention_kernels.BLOCK).executed
        return {'tokens': self.tokens_per_step, 'flops': self.flops_per_step.total, 'executed_flops': executed}

    @functools.cached_property
    def peak_flops(self) -> float | None:
        """Peak FLOP/s of all devices together; None if the device is unknown."""
        one = hardware.peak_flops(self.mesh.devices.flat[0].device_kind, self.config.model.dtype)
        return one and one * self.mesh.size

    @functools.cached_property
    def attention(self) -> str:
        """The implementation of attention in a step: 'xla' or a fused kernel of the devices."""
        kernel, choice = sharding.kernel(self.mesh), self.model.attention
        return kernel if kernel and choice in ('auto', kernel) and not self.unsupported_reason else 'xla'

    @functools.cached_property
    def unsupported_reason(self) -> str:
        """Why the fused attention kernel of the devices cannot be used in a step; '' if it can or there is none."""
        kernel, params = sharding.kernel(self.mesh), self.initial.member_shapes.params
        length, members = self.config.data.seq_len, len(self.initial.members)
        return kernel and collectives.unsupported_reason(kernel, length, self.model, params, self.mesh, members=members)

    @functools.cached_property
    def step_model(self) -> Transformer:
        """The model of a step: without the kernel of the devices if a step cannot use it."""
        return dataclasses.replace(self.model, attention='xla') if self.attention == 'xla' else self.model

    @functools.cached_property
    def num_predicted(self) -> int | None:
        """Positions of a row that the head reads in masked language modelling; None for other objectives: all."""
        rate = self.config.data.mask_rate
        return max(1, round(rate * self.config.data.seq_len)) if rate else None

    @functools.cached_property
    def keep_logits(self) -> bool:
        """Whether a step keeps all logits in bfloat16 for its backward pass (`ShardingHooks.keep_logits`): faster.

        Only if the arithmetic then fills at most half of a device's memory: it does not know all buffers of a compiler.
        """
        possible = self.task.predicts_tokens and self.config.model.dtype == 'bfloat16'
        return possible and self._memory(keep_logits=True)['total'] <= self.device_memory / 2

    @functools.cached_property
    def memory(self) -> dict[str, int]:
        """Bytes on one device, by part: `cost.bytes_per_device` and, of a policy, `rollout_cost.in_memory`."""
        return self._memory(self.keep_logits)

    def _memory(self, keep_logits: bool) -> dict[str, int]:
        config, replicas = self.config, self.mesh.shape['data'] * self.mesh.shape['fsdp']
        rows = config.data.batch_size // config.optimizer.accumulate // replicas * max(len(self.initial.members), 1)
        options = {axis: self.mesh.shape[axis] for axis in ('tensor', 'sequence')}
        options |= {'predicted': self.num_predicted, 'keep_logits': keep_logits, 'fused': self.attention != 'xla'}
        step_bytes = memory.bytes_per_device(self.shapes, self.model, rows, self.longest, **options)
        return rollout_cost.in_memory(self, step_bytes)

    def in_bits(self, values) -> dict[str, float]:
        """{'bits_per_byte'} of the metrics of a step, for the average bytes of a training token; {} for other tasks."""
        split = self.corpus.splits['train']
        if not (self.task.measures_text and split.num_bytes):
            return {}
        return {'bits_per_byte': values['nats'] / math.log(2) * split.num_tokens / split.num_bytes}

    # Batches.

    def stream(self, split: str, shuffle: bool = False, seed: int | None = None, limit: int = 0):
        """The batches of a split.

        Args:
          shuffle: endless batches for training in the order of `seed` (config.seed). Else one pass in order.
          limit: at most so many batches of a pass, a fixed random sample; 0 is all.
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

    @functools.cached_property
    def steps_per_epoch(self) -> float:
        """Steps of a pass over the training rows; of a mixture, over those of its first source."""
        if self.task.on_policy:  # each rollout takes the next prompts
            return len(self.corpus.examples['train'].source) * self.steps_per_rollout / self.config.policy.prompts
        return self.stream('train', shuffle=True).steps_per_epoch

    def train_stream(self):
        """The batches of the train step; in a sweep of several orders those of all members side by side."""
        if not self.initial.members:
            return self.stream('train', shuffle=True)
        streams = [self.stream('train', shuffle=True, seed=order) for order in sweep.orders(self.initial.members)]
        return sweep.Streams(streams) if len(streams) > 1 else streams[0]

    def batch_shapes(self) -> dict[int, dict[str, jax.ShapeDtypeStruct]]:
        """{T: shapes of a global batch, with shardings} for every length T of batches."""
        rows = self.config.data.batch_size
        if self.task.on_policy:
            batches = {self.config.data.seq_len: rollout_batch.empty(self)}
        else:
            stream = self.train_stream()
            batches = {length: stream.batch(first) for length, first in stream.steps_of_lengths().items()}

        def shape(x, on):
            return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=on)

        return {
            length: jax.tree.map(shape, batch, sharding.columns(self.mesh, batch)) for length, batch in batches.items()
        }

    # Compiled functions.

    def lowered(self, lengths: Collection[int] | None = None) -> dict[int, Any]:
        """{T: the lowered train step for batches of length T}, of `lengths` or all; it donates the state."""
        config, optimizer_config = self.config, self.config.optimizer
        gradient = step.make_gradient(
            self.step_model,
            self.objective,
            accumulate=optimizer_config.accumulate,
            adapter_dropout=config.adapt.dropout,
            keep_logits=self.keep_logits,
            mesh=self.mesh,
            specs=self.specs,
            reference=self.initial.reference,
            whole_rows=self.task.reads_whole_rows,
        )
        make = functools.partial(
            step.make_train_step,
            gradient,
            self.initial.tx,
            self.schedule,
            trainable=self.shapes.trainable,
            learning_rates=optimizer_config.learning_rates,
            clip=optimizer_config.clip,
        )
        function = sweep.train_step(make, self.initial.members, optimizer_config.learning_rate)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        jitted = jax.jit(function, donate_argnums=0, out_shardings=(shardings, None))
        progress = jax.ShapeDtypeStruct((), jnp.float32)
        batches = {T: batch for T, batch in self.batch_shapes().items() if lengths is None or T in lengths}
        return {length: jitted.lower(self.shapes, batch, progress) for length, batch in batches.items()}

    def train_steps(self) -> dict[int, Any]:
        """{T: the compiled train step for batches of length T}."""
        keys = {length: self._key('train', batch) for length, batch in self.batch_shapes().items()}
        shared = {} if self.programs is None else self.programs
        if missing := [length for length, key in keys.items() if key not in shared]:
            shared |= {keys[length]: lowered.compile() for length, lowered in self.lowered(missing).items()}
        return {length: shared[key] for length, key in keys.items()}

    def train_step(self):
        """The compiled function (state, batch, progress) -> (state, metrics), for batches of every length."""
        return step.by_length(self.train_steps())

    def eval_step(self):
        """The jitted function (params, batch) -> sums."""
        shared = {} if self.programs is None else self.programs
        if (key := self._key('evaluate')) not in shared:
            options = {'reference': self.initial.reference, 'whole_rows': self.task.reads_whole_rows}
            function = step.make_eval_step(self.step_model, self.objective, self.mesh, self.specs, **options)
            members = self.initial.members
            shared[key] = jax.jit(sweep.eval_step(function, self.shapes.trainable) if members else function)
        return shared[key]

    def _key(self, name: str, batch: Mapping[str, Any] | None = None) -> tuple:
        """Equal for functions that compile to the same program: of runs that differ in `OF_DATA` alone."""
        config = {field: value for field, value in flatten_fields(self.resolved).items() if field not in OF_DATA}
        text = json.dumps(config, sort_keys=True, default=str)
        leaves, structure = jax.tree.flatten((self.shapes, batch))
        return name, text, self.step_model, self.mesh, structure, *leaves
