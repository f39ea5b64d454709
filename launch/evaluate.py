"""the loss of a trained run on a split of its data: nats, perplexity, bits per token and bits per byte.

lmtrain evaluate --workdir=runs/quickstart
lmtrain evaluate --workdir=runs/quickstart --split=test
"""

from absl import flags

from launch import folder, machine

FLAGS = flags.FlagValues()
folder.define(FLAGS)
flags.DEFINE_enum('split', 'validation', ['train', 'validation', 'test'], 'validation by default', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    workdir, step = folder.from_flags(values)
    machine.prepare()
    from lmtrain import display, trained

    sums = trained.evaluate_split(workdir, values.split, step)
    spelled = f', {sums["bytes"]:,.0f} bytes' if 'bytes' in sums else ''
    text = f'{sums["targets"]:,.0f} targets{spelled}'
    print(f'{values.split}: {display.evaluation_line(sums, {})}  ({text})')
