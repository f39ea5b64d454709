"""memory, time and cost of a run on machines that are not present, or the best use of a compute budget.

lmtrain plan --config=configs/pretrain_llama_8b.py --target=v5e:16x16
lmtrain plan --config=configs/tiny.py --target=cpu:8 --config.mesh.fsdp=8 --config.mesh.data=1
lmtrain plan --target=h100:8 --hours=24
lmtrain plan --flops=1e21
"""

import os
import shlex

from absl import flags

from launch import process_setup, recipe
from lmtrain.errors import InputError

FLAGS = flags.FlagValues()
recipe.define(FLAGS)
flags.DEFINE_string('target', None, 'chips: v5e:16x16, v5p:8x8x16, v6e:16x16, h100:8, cpu:8', flag_values=FLAGS)
flags.DEFINE_bool(
    'search', False, 'the fastest micro-batches, remat policies and meshes for the same batch', flag_values=FLAGS
)
flags.DEFINE_float('flops', None, 'the best model for a number of FLOPs', flag_values=FLAGS)
flags.DEFINE_float('hours', None, 'the same for hours on the target', flag_values=FLAGS)
flags.DEFINE_float('money', None, 'the same for money, at config.plan.price', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    from lmtrain.cost import hardware as machines

    budgets = [name for name in ('flops', 'hours', 'money') if values[name].value is not None]
    if len(budgets) > 1:
        raise InputError(f'--{" and --".join(budgets)}: a budget is one of --flops, --hours, --money')
    if not values.target and budgets != ['flops']:
        raise InputError('--target is missing, such as --target=v5e:16x16')
    target = machines.parse(values.target) if values.target else None
    if budgets:
        values.config = values.config or 'pretrain_llama'
    if target:
        os.environ.update(target.environment())
    os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # a cached program has no text, which is read here
    process_setup.configure()
    config = recipe.from_flags(values)
    if budgets:
        from lmtrain.plan import scaling_laws

        print(scaling_laws.page(flops(values, config, target), config.model.vocab_size))
        return
    from lmtrain.plan import compiled, search

    words = (f'--config.{shlex.quote(text)}' for text in values.override)
    command = [f'lmtrain train --config={values.config}', *words]
    print((search if values.search else compiled).page(config, target, command))


def flops(values: flags.FlagValues, config, target) -> float:
    """The budget in FLOPs. Raises InputError if the price or the peak is unknown."""
    if values.flops is not None:
        return values.flops
    from lmtrain import cost

    if not target.chip:
        raise InputError(f'--target={target.name}: the peak of a CPU is unknown; name chips, such as --target=h100:8')
    hours = values.hours
    if hours is None:
        if not config.plan.price > 0:
            raise InputError('--money without a price: set --config.plan.price=... for one chip and hour')
        hours = values.money / config.plan.price / target.chips
    return hours * 3600 * config.plan.mfu * target.chips * cost.peak_flops(target.chip.kind, config.model.dtype)
