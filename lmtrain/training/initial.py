"""The state before the first step, and the part of a state that a checkpoint stores."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from lmtrain import adapt, tree
from lmtrain.models import Transformer
from lmtrain.parallel import sharding, vocab_padding
from lmtrain.training import state, sweep
from lmtrain.training.init_from import Base
from lmtrain.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class InitialState:
    """Creates the state before the first step: the base or drawn parameters, extended, split, sharded.

    Attributes:
      base: whose parameters the run starts from; None draws them.
      tx: optax transformation, see `optimizer.optimizer`.
      members: of a sweep; () for one run.
      reference_mode: where the log-probabilities of the reference model are from, see `reference.mode`.
    """

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    model: Transformer
    base: Base | None
    method: adapt.Method
    tx: Any
    members: tuple[sweep.Member, ...]
    reference_mode: str

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The state as jax.ShapeDtypeStruct, with shardings."""
        shapes = self._abstract()
        if self.members:
            shardings = sweep.shardings(shapes, self.mesh)
        else:
            shardings = sharding.shardings(shapes, self.mesh)
        add = lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on)  # noqa: E731
        return jax.tree.map(add, shapes, shardings)

    @functools.cached_property
    def member_shapes(self) -> TrainState:
        """The shapes of one run; in a sweep those of one member."""
        return sweep.alone(self.shapes) if self.members else self.shapes

    @functools.cached_property
    def unpadded(self) -> TrainState:
        """The shapes without the rows that pad the vocabulary for the mesh."""
        model = dataclasses.replace(self.model, vocab_fill=0)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        return vocab_padding.with_shardings(dataclasses.replace(self, model=model)._abstract(), shardings)

    def _abstract(self) -> TrainState:
        seeds = jax.ShapeDtypeStruct((1 + len(self.members),), jnp.uint32)
        return jax.eval_shape(self.create, seeds, *([self.base.shapes] if self.base else []))

    def create(self, seeds: jax.Array, base_params: tree.Params | None = None) -> TrainState:
        """The state before the first step, from the parameters of the base if there are any. To be traced.

        Args:
          seeds: uint32 [1 + W], of the run and of the members of its sweep.
        """

        def one(key):
            params = initial_params(self.model, key, base_params, self.config.data.seq_len)
            params = self.method.start(jax.random.fold_in(key, 2), params)
            if self.model.vocab_fill:
                params = vocab_padding.pad(params, self.model.vocab_fill)
            params = params if base_params is None else self.cast(params)
            return state.create(jax.random.fold_in(key, 1), params, self.method.trainable, self.tx)

        keys = jax.vmap(jax.random.key)(seeds)
        return sweep.create(one, keys[0], keys[1:]) if self.members else one(keys[0])

    @functools.cached_property
    def reference(self) -> Callable[[tree.Params], tree.Params] | None:
        """`reference_params` if the objective computes the reference model in the step (objective.reference)."""
        return self.reference_params if self.reference_mode == 'live' else None

    def reference_params(self, params: tree.Params) -> tree.Params:
        """The leaves of `params` that the reference model has: those of the base, without what the method adds."""
        leaves = tree.flatten(params)
        own = self.of_base(params) if self.base else tree.flatten(adapt.split_adapter(params)[0]).keys()
        return tree.unflatten({path: leaf for path, leaf in leaves.items() if path in own})

    def cast(self, params: tree.Params) -> tree.Params:
        """Trainable leaves in float32; frozen leaves of the base in config.init.frozen_dtype."""
        trainable, frozen = tree.split(params, self.method.trainable)
        trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable)
        of_base, dtype = self.of_base(frozen), self.config.init.frozen_dtype
        frozen = {path: x.astype(dtype) if path in of_base else x for path, x in tree.flatten(frozen).items()}
        return tree.join(tree.unflatten(frozen), trainable)

    def of_base(self, params: tree.Params) -> set[str]:
        """The paths of `params` that the base, which there is, has."""
        shapes = jax.eval_shape(lambda x: tree.cut(x, self.method.cut) if self.method.cut else x, self.base.shapes)
        return tree.flatten(params).keys() & tree.flatten(shapes).keys()

    @functools.cached_property
    def only_added(self) -> bool:
        """Whether all trainable leaves are added ones: without them, the model is the base."""
        return bool(self.base) and not self.of_base(self.shapes.trainable)

    def on_mesh(self, part: Callable[[TrainState], Any] = lambda state: state) -> Any:
        """The state before the first step, or `part` of it, on the devices; the rest is never allocated."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, part(self.shapes))
        # The seeds are arguments: runs that differ in their seed alone share a compiled program.
        seeds = np.array([self.config.seed, *(member.seed for member in self.members)], np.uint32)
        if not self.base:
            return jax.jit(lambda seeds: part(self.create(seeds)), out_shardings=shardings)(seeds)
        padded = jax.eval_shape(lambda x: vocab_padding.pad(x, self.model.vocab_fill), self.base.shapes)
        shapes = vocab_padding.with_shardings(self.base.shapes, sharding.shardings(padded, self.mesh))
        places = {path: leaf.sharding for path, leaf in tree.flatten(shapes).items()}
        # Through the host: an array on one device of this process cannot be put on devices of other processes.
        params = self.base.load(lambda path, array: jax.device_put(np.asarray(array), places[path]))
        return jax.jit(lambda seeds, params: part(self.create(seeds, params)), out_shardings=shardings)(seeds, params)

    def stored(self, whole: TrainState) -> TrainState:
        """The part of a state (or of its shapes) that a checkpoint stores: all but frozen leaves of the base."""
        whole = vocab_padding.resize(whole, self.unpadded) if self.model.vocab_fill else whole
        if not self.base:
            return whole
        of_base = self.of_base(whole.frozen)
        own = {path: leaf for path, leaf in tree.flatten(whole.frozen).items() if path not in of_base}
        return whole.replace(frozen=tree.unflatten(own))

    def complete(self, stored: TrainState) -> TrainState:
        """The whole state from the stored part; the inverse of `stored`."""
        stored = vocab_padding.resize(stored, self.shapes) if self.model.vocab_fill else stored
        if not self.base or not self.of_base(self.shapes.frozen):
            return stored
        frozen = tree.flatten(self.on_mesh(lambda state: state.frozen))
        return stored.replace(frozen=tree.unflatten(frozen | tree.flatten(stored.frozen)))


def initial_params(model: Transformer, key: jax.Array, base_params: tree.Params | None, seq_len: int) -> tree.Params:
    """The parameters of the model: those of the base, and drawn ones that it lacks, which are of the task's head."""
    if base_params is not None and model.head == 'lm':
        return base_params
    model = dataclasses.replace(model, vocab_fill=0) if model.vocab_fill else model
    if base_params is None:
        return draw(model, key, seq_len)  # unpadded: the same draws on every mesh
    drawn = draw(model, key, min(seq_len, model.max_len - model.position_offset))  # rows may be shorter than seq_len
    present = tree.flatten(base_params)
    head = {p: x for p, x in tree.flatten(drawn).items() if p.startswith('task_head/') and p not in present}
    return tree.join(base_params, tree.unflatten(head))


@functools.partial(jax.jit, static_argnums=(0, 2))
def draw(model, key: jax.Array, seq_len: int) -> tree.Params:
    """Random parameters of a model. Jitted, so that a start traces the model once for them."""
    return model.init(key, {'tokens': np.zeros((1, seq_len), np.int32)})['params']
