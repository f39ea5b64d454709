"""writes a trained model as a Hugging Face directory or a PEFT adapter.

lmtrain export --workdir=runs/a --format=hf --to=exported
lmtrain export --workdir=runs/lora --format=peft --to=adapter
lmtrain export --workdir=runs/lora --format=hf --merge --to=merged
"""

from absl import flags

from launch import model_flags, process_setup
from lmtrain.errors import InputError

FLAGS = flags.FlagValues()
model_flags.define(FLAGS)
flags.DEFINE_enum('format', 'hf', ['hf', 'peft'], "'hf' or 'peft'", flag_values=FLAGS)
flags.DEFINE_bool(
    'merge', False, 'merges an adapter into the weights and reports the largest change of an output', flag_values=FLAGS
)
text = "the licence that the model card names, such as 'apache-2.0'; unknown by default"
flags.DEFINE_string('license', '', text, flag_values=FLAGS)
flags.DEFINE_string('to', None, 'the directory to write; new or empty', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    if values.workdir and not values.to:
        raise InputError('--to is missing: the directory to write, such as --to=exported')
    process_setup.configure()
    workdir, step, member = model_flags.from_flags(values)
    from lmtrain import api

    how = {'licence': values.license}
    lines = api.export(workdir, values.to, values.format, merge=values.merge, step=step, member=member, **how)
    print('\n'.join(lines))
