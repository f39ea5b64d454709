"""runs several stages on one task: fine-tuning, then preferences or a policy; prints a table of scores.

lmtrain pipeline --name=sft_grpo --workdir=runs/sft_grpo
lmtrain pipeline --name=sft_dpo --config.sft.budget.steps=200 --config.dpo.objective.beta=0.2

The names are sft_dpo, sft_grpo and sft_ppo (with a reward model). The stages
sft, reward_model, dpo, grpo and ppo are recipes; --config.STAGE.FIELD=VALUE
changes one. By default they train on rows that lmtrain generates. The same
command resumes a pipeline that was stopped.
"""

from absl import flags

from launch import process_setup, recipe
from lmtrain.errors import InputError, did_you_mean

FLAGS = flags.FlagValues()
flags.DEFINE_string('name', None, 'sft_dpo, sft_grpo or sft_ppo', flag_values=FLAGS)
flags.DEFINE_string('workdir', None, 'folder of the pipeline; runs/NAME by default', flag_values=FLAGS)
flags.DEFINE_multi_string('override', [], 'a value of a recipe, after the name of its stage', flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    process_setup.configure()
    from lmtrain.training import pipeline

    if values.name not in pipeline.PIPELINES:
        hint = did_you_mean(values.name or '', pipeline.PIPELINES)
        raise InputError(f'--name={values.name}: it is one of {", ".join(pipeline.PIPELINES)}{hint}')
    stages = [stage.name for stage in pipeline.PIPELINES[values.name]]
    overrides: dict[str, dict[str, str]] = {stage: {} for stage in stages}
    for text in values.override:
        field, value = text.split('=', 1)
        stage, _, field = field.partition('.')
        if stage not in overrides:
            raise InputError(f'--config.{stage}: the stages of {values.name} are {", ".join(stages)}')
        overrides[stage][field] = value
    configs = {stage: recipe.load(f'configs/{stage}.py', overrides[stage]) for stage in stages}
    pipeline.run(values.name, configs, values.workdir or f'runs/{values.name}')
