"""The commands that use the model of a finished run; they are the end of its output."""

from pathlib import Path

from lmtrain.report import terminal
from lmtrain.training.run import Run

LONGEST = 30  # characters of a prompt that a command repeats


def commands(run: Run, directory: Path) -> str:
    """One command that uses the model, and one that measures it on the test split if there is one; ready to copy."""
    listed = [_use(run)] if run.model.causal or not run.task.predicts_tokens else []
    if run.corpus.splits['test'].num_rows:
        listed.append(('evaluate', '--split=test'))
    listed = listed or [('export', f'--to={directory}-exported')]
    begins = ('next: ', *[' ' * 6] * len(listed))
    workdir = f'--workdir={directory}'
    lines = [
        terminal.command(['lmtrain', verb, workdir, *flags], begin) for (verb, *flags), begin in zip(listed, begins)
    ]
    return '\n'.join(lines)


def _use(run: Run) -> tuple[str, ...]:
    """The verb and the flags of the command that uses the model."""
    if not run.task.predicts_tokens:
        ending = '.jsonl' if '.jsonl' in str(run.config.task.train) or run.task.labels_words else '.csv'
        return 'predict', f'--rows=new{ending}', f'--to=predicted{ending}'
    if run.template:
        return ('chat',)
    own = [text for text in run.config.sample.prompts if text.strip() and text.isprintable() and len(text) <= LONGEST]
    return 'generate', f'--prompt={(own or ["..."])[0]}'
