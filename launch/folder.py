"""The flags of verbs that read the folder of a run: --workdir and --checkpoint."""

import pathlib

from absl import flags


def define(flag_values: flags.FlagValues) -> None:
    """--workdir and --checkpoint."""
    flags.DEFINE_string('workdir', None, 'the folder of a run', flag_values=flag_values)
    text = "'last', 'best' (by validation loss) or a step"
    flags.DEFINE_string('checkpoint', 'last', text, flag_values=flag_values)


def from_flags(flag_values: flags.FlagValues) -> tuple[pathlib.Path, int | str]:
    """(folder, 'last' or 'best' or a step). Raises ValueError where one is missing or neither of these."""
    if not flag_values.workdir:
        raise ValueError('--workdir is missing: the folder of a run, such as --workdir=runs/quickstart')
    step = int(flag_values.checkpoint) if flag_values.checkpoint.isdecimal() else flag_values.checkpoint
    if step not in ('last', 'best') and not isinstance(step, int):
        raise ValueError(f"--checkpoint={step} is neither 'last' nor 'best' nor the number of a step")
    return pathlib.Path(flag_values.workdir), step
