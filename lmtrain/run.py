"""From a config to the parts of a run; all that can be wrong with it is found here, before anything compiles."""

import functools
import importlib.metadata
import os
import platform
import shlex
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lmtrain import cost, data, display, optim, sample, sharding, state, step, sweep, tree
from lmtrain.models import Transformer
from lmtrain.objectives import tokens


class Run(NamedTuple):
    """The parts of a run. Shapes only: nothing is on a device yet."""

    config: Any
    corpus: Any
    mesh: Any
    model: Any
    objective: Any
    tx: Any
    schedule: Any
    shapes: state.TrainState  # of jax.ShapeDtypeStruct, with shardings
    flops_per_step: cost.Flops
    total_steps: int | None  # None where the budget is in hours

    @property
    def members(self) -> tuple[sweep.Member, ...]:
        """The members of a sweep; none where this is one run."""
        return sweep.of(self.config)

    @property
    def tokens_per_step(self) -> int:
        """Positions a step, padding included; in a sweep those of each member."""
        return self.config.data.batch_size * self.config.data.seq_len

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text behind a target of the training split."""
        split = self.corpus.splits['train']
        return split.num_bytes / split.num_tokens

    @property
    def peak(self) -> float | None:
        """FLOP/s of all devices together; None where a device is not known."""
        one = cost.peak_flops(self.mesh.devices.flat[0].device_kind, self.config.model.dtype)
        return one and one * self.mesh.size

    def fingerprints(self) -> dict[str, str]:
        """Hashes of what a resumed run must find unchanged beside its config."""
        return {'data': self.corpus.fingerprint, 'tokenizer': self.corpus.tokenizer.hash}

    def baselines(self) -> dict[str, float]:
        """Bits per byte of the validation text under simpler models; none where the objective is not the text's."""
        return {} if self.config.data.corrupt else self.corpus.baselines()

    def header(self) -> str:
        """What is about to be run, for a person."""
        config, shapes = self.config, self.shapes
        rows = (
            config.data.batch_size // config.optimizer.accumulate // self.mesh.shape['data'] // self.mesh.shape['fsdp']
        )
        return display.header(
            trainable=tree.count(shapes.trainable),
            total=tree.count(shapes.params),
            rows=config.data.batch_size,
            seq_len=config.data.seq_len,
            accumulate=config.optimizer.accumulate,
            devices=self.mesh.size,
            replicas=self.mesh.shape['data'] * self.mesh.shape['fsdp'],
            device_kind=self.mesh.devices.flat[0].device_kind,
            dtype=config.model.dtype,
            steps=self.total_steps,
            hours=config.budget.hours,
            epoch_tokens=self.corpus.splits['train'].num_tokens,
            flops_per_step=self.flops_per_step.total,
            memory=cost.memory(
                shapes.trainable,
                shapes.frozen,
                shapes.opt_state,
                self.model,
                rows * max(len(self.members), 1),
                config.data.seq_len,
            ),
        )

    def train_stream(self):
        """What the train step is fed: in a sweep of several orders, all of them side by side."""
        orders = sweep.orders(self.members) or [self.config.seed]
        streams = [self.stream('train', shuffle=True, seed=order) for order in orders]
        return sweep.Streams(streams) if len(streams) > 1 else streams[0]

    def stream(self, split: str, shuffle: bool = False, seed: int | None = None):
        """The stream of a split: shuffled by `seed` (config.seed) and endless for training, else one pass in order."""
        return data.Stream(
            self.corpus,
            split,
            batch_size=self.config.data.batch_size,
            seed=self.config.seed if seed is None else seed,
            shuffle=shuffle,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch, with its sharding."""
        local = self.train_stream().batch(0)
        rows = self.config.data.batch_size
        on = sharding.batch_sharding(self.mesh)
        return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=on) for name, x in local.items()}

    def one(self, state: state.TrainState) -> state.TrainState:
        """The state of one run: of a sweep its first member."""
        return sweep.member(state, 0) if self.members else state

    def create(self, key: jax.Array, batch) -> state.TrainState:
        """The state before the first step; traced, so that every leaf is born where it belongs."""

        def one(key):
            params = self.model.init(key, batch)['params']
            return state.create(jax.random.fold_in(key, 1), params, self.config.learns, self.tx)

        return sweep.create(one, key, self.members)

    def initial_state(self) -> state.TrainState:
        """The state before the first step, on the mesh."""
        on = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        create = jax.jit(lambda: self.create(jax.random.key(self.config.seed), _dummy(self.config)), out_shardings=on)
        return create()

    def train_step(self):
        """The compiled train step, its state donated."""
        optimizer = self.config.optimizer
        make = functools.partial(
            step.make_train_step,
            self.model,
            self.objective,
            self.tx,
            self.schedule,
            learning_rates=optimizer.learning_rates,
            clip=optimizer.clip,
            accumulate=optimizer.accumulate,
            trainable=self.shapes.trainable,
        )
        function = sweep.train_step(make, self.members, optimizer.learning_rate)
        on = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        jitted = jax.jit(function, donate_argnums=0, out_shardings=(on, None))
        return jitted.lower(self.shapes, self.batch_shapes(), jax.ShapeDtypeStruct((), jnp.float32)).compile()

    def eval_step(self):
        """The jitted (params, batch) -> sums."""
        function = step.make_eval_step(self.model, self.objective, jnp.asarray(self.corpus.tokenizer.token_bytes))
        return jax.jit(sweep.eval_step(function, self.members, self.shapes.trainable))


def _dummy(config) -> dict[str, np.ndarray]:
    """One row, for the shapes of the parameters."""
    return {'tokens': np.zeros((1, config.data.seq_len), np.int32)}


def assemble(config: ml_collections.ConfigDict, devices=None) -> Run:
    """Config -> the parts of a run, every check made that needs no compiler.

    Raises ValueError or OSError naming the field or file, what was expected and the way out.
    """
    _check_settings(config)
    mesh = sharding.mesh(**config.mesh, devices=devices)
    sharding.check_batch(config.data.batch_size, config.optimizer.accumulate, mesh)
    schedule = optim.schedule(**config.schedule)
    tx = optim.optimizer(**config.optimizer)
    model = Transformer(**config.model)
    run = Run(
        config=config,
        corpus=None,
        mesh=mesh,
        model=model,
        objective=functools.partial(tokens.loss, **config.objective),
        tx=tx,
        schedule=schedule,
        shapes=None,
        flops_per_step=None,
        total_steps=None,
    )
    shapes = jax.eval_shape(lambda: run.create(jax.random.key(0), _dummy(config)))
    shapes = jax.tree.map(
        lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on),
        shapes,
        sweep.shardings(shapes, mesh, run.members),
    )
    try:
        tree.match(config.optimizer.learning_rates, tree.flatten(shapes.trainable))
    except ValueError as error:
        raise ValueError(f'optimizer.learning_rates: {error}') from None
    predicted = max(1, round(config.data.corrupt * config.data.seq_len)) if config.data.corrupt else None
    flops = cost.flops_per_step(model, config.data.batch_size, config.data.seq_len, config.learns, predicted=predicted)
    flops = cost.Flops(*(max(len(run.members), 1) * part for part in flops))
    total_steps = cost.total_steps(config.budget, run.tokens_per_step, flops.total)
    # Last, since a large text takes long to cut into tokens.
    corpus = data.prepare(**config.data, vocab_limit=config.model.vocab_size)
    _check_samples(config, model, corpus.tokenizer)
    run = run._replace(shapes=shapes, flops_per_step=flops, total_steps=total_steps, corpus=corpus)
    for split in ('train', 'validation'):
        run.stream(split)  # raises where the split is empty
    return run


def resolved(run: Run) -> dict[str, Any]:
    """The config as a folder is bound to it: nested dict, the mesh as it is here."""
    return run.config.to_dict() | {'mesh': dict(run.mesh.shape)}


def sample_settings(config, tokenizer) -> dict[str, Any]:
    """What config.sample asks of `sample.generate`. Raises ValueError where a prompt cannot be encoded."""
    wanted = config.sample.to_dict() | {'seed': config.seed}
    wanted['prompts'] = [tokenizer.encode(prompt) for prompt in config.sample.prompts]
    return wanted | {'end_id': tokenizer.end_id, 'vocab_size': tokenizer.vocab_size}


def _check_samples(config, model: Transformer, tokenizer: data.Tokenizer) -> None:
    """Raises ValueError where the texts of the report could not be made."""
    for prompt in config.sample.prompts:
        if not isinstance(prompt, str):
            raise ValueError(f'sample.prompts has {prompt!r}: a prompt is text')
    try:
        wanted = sample_settings(config, tokenizer)
        if model.causal and wanted['prompts']:
            sample.check(model, **wanted)
    except ValueError as error:
        raise ValueError(f'config.sample: {error}') from None


def _check_settings(config) -> None:
    """Raises ValueError where a number that no room checks is out of range, or data and model are at odds."""
    cost.total_steps(config.budget, np.inf, np.inf)  # first: other numbers may follow from it
    least = {'log.every_steps': 1, 'evaluate.every_steps': 1, 'evaluate.max_batches': 0}
    least |= {'checkpoint.every_steps': 1, 'checkpoint.keep_last': 1, 'checkpoint.keep_best': 0}
    for field, low in (least | {'objective.z_loss': 0}).items():
        section, name = field.split('.')
        if not config[section][name] >= low:
            raise ValueError(f'{field} = {config[section][name]}: it must be at least {low}')
    if not 0 <= config.seed < 2**32:
        raise ValueError(f'seed = {config.seed}: it must lie in [0, 2^32)')
    if config.model.causal == bool(config.data.corrupt):
        raise ValueError(
            f'data.corrupt = {config.data.corrupt} with model.causal = {config.model.causal}: a causal model predicts '
            'the next token of whole text (data.corrupt=0), an encoder (model.causal=False) the tokens hidden from it '
            '(data.corrupt=0.15)'
        )


def circumstances(run: Run) -> dict[str, Any]:
    """What was typed, on what, and the versions that decide the numbers."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
    device = run.mesh.devices.flat[0].device_kind
    return {
        'command': shlex.join(['lmtrain', *sys.argv[1:]]),
        'machine': {
            'devices': f'{run.mesh.size} x {device}',
            'cores': os.cpu_count(),
            'processes': jax.process_count(),
        },
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }
