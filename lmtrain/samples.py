"""The texts of a run's report: what is prompted, with which settings, and how many of the texts came to an end."""

from collections.abc import Sequence
from typing import Any

from lmtrain import sample, tree
from lmtrain.run import LANGUAGE, Run


def makes_text(run: Run) -> bool:
    """Whether the run's model continues a text."""
    return run.model.causal and run.config.task.name in LANGUAGE


def settings(run: Run) -> dict[str, Any]:
    """The arguments of `sample.generate` by config.sample. Raises ValueError if a prompt cannot be encoded."""
    tokenizer = run.corpus.tokenizer
    prompts = [tokenizer.encode_prompt(prompt) for prompt in run.config.sample.prompts]
    ends = {'end_ids': run.generation['eos_token_id'], 'vocab_size': tokenizer.vocab_size}
    return run.config.sample.to_dict() | {'seed': run.config.seed, 'prompts': prompts} | ends


def check(run: Run) -> None:
    """Raises ValueError if the texts of the report could not be made."""
    for prompt in run.config.sample.prompts:
        if not isinstance(prompt, str):
            raise ValueError(f'sample.prompts has {prompt!r}: a prompt is text')
    try:
        wanted = settings(run)
        if run.model.causal and wanted['prompts']:
            sample.check(run.model, **wanted)
    except ValueError as error:
        raise ValueError(f'config.sample: {error}') from None


def texts(run: Run, params: tree.Params) -> str:
    """The texts that config.sample asks for and how many ended, or the word that there are none."""
    if not makes_text(run):
        return 'This model makes no text.\n'
    if not run.config.sample.prompts:
        return 'No prompt was given: config.sample.prompts.\n'
    wanted = settings(run)
    generated = sample.generate(run.model, params, **wanted)
    decode = run.corpus.tokenizer.decode
    parts = [
        f'--- {name!r}\n{decode(prompt[1:] + text.ids)}'
        for name, prompt, text in zip(run.config.sample.prompts, wanted['prompts'], generated, strict=True)
    ]
    return '\n\n'.join([*parts, ended([text.finish_reason for text in generated], wanted['max_tokens'])]) + '\n'


def ended(reasons: Sequence[str], max_tokens: int) -> str:
    """How many texts came to an end, for a person; `reasons`: their `sample.Generated.finish_reason`."""
    stopped = f'{reasons.count("stop")} of {len(reasons)} texts ended with an end token'
    cut = [f'{count} after max_tokens={max_tokens}' for count in [reasons.count('length')] if count]
    cut += [f"{count} at the end of the model's context" for count in [reasons.count('context')] if count]
    return f'{stopped}; cut: {", ".join(cut)}' if cut else stopped
