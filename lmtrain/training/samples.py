"""Sampled texts in the report of a run: the prompts, the settings, and how many texts ended."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmtrain.data import Tokenizer
from lmtrain.errors import InputError
from lmtrain.inference import prompts, sample
from lmtrain.models.virtual_tokens import num_virtual_tokens, room
from lmtrain.training import sweep
from lmtrain.training.run import Run
from lmtrain.training.state import TrainState

ROWS = 3  # validation rows or documents that are prompts if config.sample.prompts has none
WORDS = 8  # of a document
SEARCHED = 1 << 16  # tokens in which beginnings of documents are searched
TRIED = 100  # rows that are tried, until ROWS of them leave room for an answer


class SamplePrompt(NamedTuple):
    """A prompt of the report, its ids, and the answer in the row that it is from; '' without a row."""

    prompt: prompts.Prompt
    ids: list[int]
    answer: str = ''


def prompts_of(run: Run) -> list[SamplePrompt]:
    """The prompts of the report: config.sample.prompts, each a user's turn if a template writes the rows.

    The default (one empty text) stands for the first turns of validation rows of conversations, and for the first words
    of validation documents.
    Raises ValueError if a prompt cannot be encoded.
    """
    tokenizer, texts = run.corpus.tokenizer, run.config.sample.prompts
    if run.task.conversations and tuple(texts) == ('',):
        return _of_rows(run)
    if not run.task.reads_rows and tuple(texts) == ('',):
        texts = _of_documents(run) or texts
    return [SamplePrompt(prompt, prompts.encode(prompt, tokenizer, run.template)) for prompt in texts]


def _of_rows(run: Run) -> list[SamplePrompt]:
    """The first validation rows up to their first answer, of those that leave room for it."""
    task, chosen = run.config.task, list[SamplePrompt]()
    context = min(run.config.data.seq_len, room(run.model, run.initial.member_shapes.params))
    for row in run.corpus.rows['validation'][:TRIED]:
        dialogue = run.task.dialogue(row, tuple(task.text), task.label, run.template)
        if dialogue.messages and not dialogue.trained:
            continue
        prompt, answer = prompts.before_answer(dialogue, 0)
        ids = prompts.encode(prompt, run.corpus.tokenizer, run.template if dialogue.messages else None)
        if len(ids) < context:
            chosen.append(SamplePrompt(prompt, ids, answer))
        if len(chosen) == ROWS:
            break
    return chosen


def _of_documents(run: Run) -> list[str]:
    """The first words of up to ROWS validation documents, of each source of a mixture in turn."""
    tokenizer = run.corpus.tokenizer
    virtual = num_virtual_tokens(run.initial.member_shapes.params)
    most = (min(run.config.data.seq_len, run.model.max_len) - virtual) // 2  # tokens of a prompt
    parts = run.corpus.splits['validation'].parts
    begins = [np.flatnonzero(part.tokens[:SEARCHED] == tokenizer.begin_id)[:ROWS] + 1 for part in parts]
    places = sorted((number, part) for part, own in enumerate(begins) for number in range(len(own)))
    chosen = []
    for number, part in places[:ROWS]:
        begin = begins[part][number]
        ids = parts[part].tokens[begin : begin + most].tolist()
        ends = [index for index, token in enumerate(ids) if token == tokenizer.end_id]
        text = tokenizer.decode(ids[: ends[0]] if ends else ids)
        words = re.findall(r'\s*\S+', text)
        if not ends and len(words) > 1:
            del words[-1]  # it may be cut
        if words:
            chosen.append(''.join(words[:WORDS]))
    return chosen


def settings(run: Run, ids: Sequence[list[int]]) -> dict[str, Any]:
    """The arguments of `sample.generate` from config.sample, for prompts of these ids."""
    ends = {'end_ids': run.generation['eos_token_id'], 'vocab_size': run.corpus.tokenizer.vocab_size}
    ends |= {'absent': run.corpus.tokenizer.absent}
    return run.config.sample.to_dict() | {'seed': run.config.seed, 'prompts': ids} | ends


def check(run: Run) -> None:
    """Raises InputError if the texts of the report cannot be sampled."""
    for prompt in run.config.sample.prompts:
        if not isinstance(prompt, str):
            raise InputError(f'sample.prompts has {prompt!r}: a prompt is text')
    try:
        ids = [each.ids for each in prompts_of(run)]
        if run.model.causal and ids:
            options = settings(run, ids)
            prompts_ids = options.pop('prompts')
            sample.check_settings(**options)
            sample.check_prompts(
                run.model, prompts_ids, options['vocab_size'], num_virtual_tokens(run.initial.member_shapes.params)
            )
    except ValueError as error:
        raise InputError(f'config.sample: {error}') from None


def texts(run: Run, state: TrainState, directory: Path) -> str:
    """The content of samples.txt: the texts of config.sample and how many ended, or why there are none.

    In a sweep they are those of its first member. Parameters that are sharded over several processes make no texts.
    """
    if not (run.model.causal and run.task.predicts_tokens):
        return 'This model makes no text.\n'
    if not run.config.sample.prompts:
        return 'No prompt was given: config.sample.prompts.\n'
    if jax.process_count() > 1:
        if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)):
            reason = 'The parameters of this run are divided over several processes'
            return f'{reason}: lmtrain generate --workdir={directory} makes texts of them in one.\n'
        state = jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
    chosen = prompts_of(run)
    if not chosen:
        return 'No validation row leaves room for an answer, and config.sample.prompts names no prompt.\n'
    options = settings(run, [each.ids for each in chosen])
    params = (sweep.member(state, 0) if run.initial.members else state).params
    generated = sample.generate(run.model, params, **options)
    parts = [
        f'--- {prompts.shown(prompt)!r}\n{continuation(run.corpus.tokenizer, ids, text.ids, run.task.conversations)}'
        + (f'\n(the row: {answer!r})' if answer else '')
        for (prompt, ids, answer), text in zip(chosen, generated, strict=True)
    ]
    return '\n\n'.join([*parts, ended([text.finish_reason for text in generated], options['max_tokens'])]) + '\n'


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], chats: bool) -> str:
    """A prompt without its begin token and what was generated; of a chat the answer alone."""
    whole = tokenizer.decode([*prompt[1:], *ids])
    return whole[len(tokenizer.decode(prompt[1:])) :] if chats else whole


def ended(reasons: Sequence[str], max_tokens: int) -> str:
    """How many texts came to an end, for a person; `reasons`: their `sample.Generated.finish_reason`."""
    stopped = f'{reasons.count("stop")} of {len(reasons)} texts ended with an end token'
    cut = [f'{count} after max_tokens={max_tokens}' for count in [reasons.count('length')] if count]
    cut += [f"{count} at the end of the model's context" for count in [reasons.count('context')] if count]
    return f'{stopped}; cut: {", ".join(cut)}' if cut else stopped
