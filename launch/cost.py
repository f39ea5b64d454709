"""cost of each way to use a model, from one text to pretraining: FLOPs, bytes, time and money; runs nothing.

lmtrain cost --config=configs/pretrain_gpt2.py --target=h100:1 --config.plan.price=2.5
lmtrain cost --config=configs/tiny.py --config.init.base=runs/quickstart --shots=32
"""

import os

from absl import flags

from launch import process_setup, recipe

FLAGS = flags.FlagValues()
recipe.define(FLAGS)
flags.DEFINE_string('target', None, 'chips: h100:8, v5e:4x4; without it this machine', flag_values=FLAGS)
flags.DEFINE_integer('row_tokens', None, 'tokens of a row', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer('classes', 10, 'answers that a query compares', lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer('shots', 16, 'demonstrations of a prompt', lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer('train_rows', 1000, 'rows that a method is trained on', lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer('epochs', 3, 'epochs over these rows', lower_bound=1, flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    from lmtrain.cost import hardware

    target = hardware.parse(values.target) if values.target else None
    if target:
        os.environ['JAX_PLATFORMS'] = 'cpu'  # shapes only
    process_setup.configure()
    config = recipe.from_flags(values)
    from lmtrain.plan import costs, costs_page

    names = ('row_tokens', 'classes', 'shots', 'train_rows', 'epochs')
    print(costs_page.page(config, costs.Workload(**{name: values[name].value for name in names}), target))
