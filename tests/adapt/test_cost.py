"""What freezing saves, from compiled steps: FLOPs, temporary memory and bytes of the state."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import base
from lmtrain import adapt, optimizer, tree
from lmtrain.cost import hlo
from lmtrain.models import Transformer
from lmtrain.tasks import token_loss
from lmtrain.training import state, step

pytestmark = pytest.mark.usefixtures('no_compilation_cache')

ROWS, LENGTH, N = 8, 128, 8


def build(**settings) -> Transformer:
    config = base.get_config()
    shape = {'vocab_size': 1024, 'max_len': LENGTH, 'num_layers': N, 'width': 256, 'num_heads': 4, 'unroll': 1}
    config.model.update(shape | settings)
    return Transformer(**config.model)


def abstract(shapes, dtype=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), shapes)


def lowered(model, name, accumulate=1, dtype=None, **settings):
    """The lowered train step of a method, clipped and with the gradient's norm logged, and the shapes of its state."""
    columns = {'tokens': jnp.int32, 'targets': jnp.int32, 'loss_mask': jnp.float32}
    batch = {column: jax.ShapeDtypeStruct((ROWS, LENGTH), kind) for column, kind in columns.items()}
    params = abstract(jax.eval_shape(model.init, jax.random.key(0), batch)['params'], dtype)
    method = adapt.method(name, model, params, **settings)
    tx = optimizer.optimizer('adamw', weight_decay=0.1, decayed='.*', b1=0.9, b2=0.95, eps=1e-8)

    def create(params):
        return state.create(jax.random.key(1), method.start(jax.random.key(0), params), method.trainable, tx)

    first = jax.eval_shape(create, params)
    options = {'learning_rate': 1e-3, 'clip': 1.0, 'trainable': first.trainable}
    gradient = step.make_gradient(model, token_loss.loss, accumulate=accumulate)
    function = step.make_train_step(gradient, tx, lambda progress: progress, **options)
    progress = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(function, donate_argnums=0).lower(first, batch, progress), first


LORA = {'rank': [('.*/(query|value)/kernel', 8)], 'alpha': [('.*', 16.0)]}


@functools.cache
def compiled(name, remat, accumulate):
    model = build(remat=remat)
    return lowered(model, name, accumulate, **(LORA if name == 'lora' else {}))[0].compile()


# Eight layers at their real proportions, since it is these that decide the ratio: seconds of compiling.
@pytest.mark.parametrize(
    ('remat', 'limit', 'accumulate'),
    [
        pytest.param('none', 0.72, 1, marks=pytest.mark.slow),
        ('none', 0.72, 2),
        ('full', 0.78, 1),
        pytest.param('full', 0.78, 2, marks=pytest.mark.slow),
    ],
)
def test_lora_step_costs_two_thirds_of_a_full_step(remat, limit, accumulate):
    lora, full = (compiled(name, remat, accumulate) for name in ('lora', 'full'))
    assert hlo.compiled_flops(lora) / hlo.compiled_flops(full) <= limit
    temporary = [program.memory_analysis().temp_size_in_bytes for program in (lora, full)]
    assert temporary[0] < temporary[1]


def test_frozen_parameter_takes_two_bytes():
    program, first = lowered(build(dtype='bfloat16'), 'lora', dtype=jnp.bfloat16, **LORA)
    scales = [path for path in tree.flatten(first.frozen) if path.endswith('lora_scale')]
    frozen = tree.size(first.frozen) - 4 * N * len(scales)
    assert frozen == 2 * (tree.count(first.frozen) - N * len(scales))
    assert {leaf.dtype for leaf in tree.flatten(first.trainable).values()} == {jnp.dtype('float32')}
    # Two moments of the trainable leaves and a counter.
    assert tree.size(first.opt_state) == 2 * tree.size(first.trainable) + 4
    largest = tree.flatten(first.frozen)['layers/mlp/up/kernel'].shape
    assert f'tensor<{"x".join(map(str, largest))}xbf16>' in program.as_text()
    assert f'tensor<{"x".join(map(str, largest))}xf32>' not in program.as_text()
