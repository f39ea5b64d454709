"""The flags of verbs that read a model: a run's --workdir and --checkpoint, or a pretrained --base."""

import pathlib

from absl import flags


def define(flag_values: flags.FlagValues, base: bool = False) -> None:
    """--workdir and --checkpoint; with `base` also --base and --adapter."""
    flags.DEFINE_string('workdir', None, 'the folder of a run', flag_values=flag_values)
    text = "'last', 'best' (by validation loss) or a step"
    flags.DEFINE_string('checkpoint', 'last', text, flag_values=flag_values)
    if base:
        text = 'in place of a run, a pretrained model: a Hugging Face directory'
        flags.DEFINE_string('base', None, text, flag_values=flag_values)
        flags.DEFINE_string('adapter', '', 'with --base: a PEFT adapter for it', flag_values=flag_values)


def from_flags(flag_values: flags.FlagValues) -> tuple[pathlib.Path, int | str]:
    """(folder, 'last' or 'best' or a step). Raises ValueError where one is missing or neither of these."""
    if not flag_values.workdir:
        raise ValueError('--workdir is missing: the folder of a run, such as --workdir=runs/quickstart')
    step = int(flag_values.checkpoint) if flag_values.checkpoint.isdecimal() else flag_values.checkpoint
    if step not in ('last', 'best') and not isinstance(step, int):
        raise ValueError(f"--checkpoint={step} is neither 'last' nor 'best' nor the number of a step")
    return pathlib.Path(flag_values.workdir), step


def model(flag_values: flags.FlagValues):
    """The trained.Trained that --workdir or --base names; imports jax. Raises ValueError where both or none does."""
    if not flag_values.base:
        if flag_values.adapter:
            raise ValueError('--adapter without --base: the adapter of a run is in its folder')
        workdir, step = from_flags(flag_values)
    elif flag_values.workdir:
        raise ValueError('--workdir and --base at once: name the run or the pretrained model')
    from lmtrain import trained

    if flag_values.base:
        return trained.pretrained(flag_values.base, flag_values.adapter)
    return trained.restore(workdir, step)
