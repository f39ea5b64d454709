"""Scores of texts by a trained reward model: the rewards of a policy, and of the rows of a file."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmtrain.data import preferences
from lmtrain.data.chat import conversation, encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.evaluation.heads import output_of
from lmtrain.inference import prompts as prompting
from lmtrain.models.virtual_tokens import room
from lmtrain.tasks import TASKS, policy
from lmtrain.tasks.task import with_settings
from lmtrain.training import rollout_cost
from lmtrain.training.load import LoadedModel, load_directory
from lmtrain.training.rollout_cost import SCORED

TASK = TASKS['reward']


class Scorer:
    """The function (prompts, completions, rows) -> [N] scores of a reward model, see `score_texts`.

    A completion that the chat template does not write has the reason in place of a score, as in `rewards.reward.Score`.
    It compiles one program for each length of a batch, once.

    Raises InputError if the model has no head with one output.

    Args:
      text: fields of the rows that the prompts are from, config.task.text of a policy. A prompt that is a conversation
        in its row is read as that conversation, if the model has a chat template.

    Attributes:
      flops: of the last call.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int = SCORED, text: tuple[str, ...] = ()):
        settings = {'head': output_of(loaded.model, loaded.params, TASK), 'pool': 'last'}
        if settings['head'] == 'logits' and loaded.model.num_labels != 1:
            raise InputError(f'a reward model has one output, this one {loaded.model.num_labels}')
        if loaded.config and loaded.config.objective.pool != 'auto':
            settings['pool'] = loaded.config.objective.pool
        predict = with_settings(TASK.predict, settings)
        self.loaded, self.batch_size, self.text, self.flops = loaded, batch_size, text, 0.0

        @jax.jit
        def run(params, batch):
            return predict(lambda columns: loaded.model.apply({'params': params}, columns), batch)[:, 0]

        self._run = run

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Mapping[str, Any]] = ()
    ) -> list[float | str]:
        read = [*prompts]
        if self.loaded.template and rows:
            whole = [policy.prompt_of(Row('a prompt', {**fields}), self.text) for fields in rows]
            read = [own if isinstance(own, Conversation) else text for own, text in zip(whole, prompts)]
        encoded = [_ids_or_reason(self.loaded, *pair) for pair in zip(read, completions, strict=True)]
        scores = iter(self.of_ids([ids for ids in encoded if not isinstance(ids, str)]).tolist())
        return [ids if isinstance(ids, str) else next(scores) for ids in encoded]

    def of_ids(self, ids: Sequence[list[int]]) -> np.ndarray:
        """The scores of texts as ids."""
        loaded, size = self.loaded, self.batch_size
        order = np.argsort([len(each) for each in ids], kind='stable')
        scores, self.flops, longest = np.zeros(len(ids), np.float32), 0.0, room(loaded.model, loaded.params)
        for begin in range(0, len(order), size):
            rows = order[begin : begin + size]
            batch = _batch([_cut(ids[row], longest) for row in rows], size, longest)
            scores[rows] = np.asarray(self._run(loaded.params, batch))[: len(rows)]
            self.flops += rollout_cost.reward_flops(loaded.model, loaded.params, *batch['tokens'].shape)
        return scores


def scorer(model: LoadedModel | str, text: tuple[str, ...] = ()) -> Scorer:
    """The scores of a loaded reward model, or of one in a folder; `text`: see `Scorer`."""
    return Scorer(load_directory(model) if isinstance(model, str) else model, text=text)


def predict_rows(
    model: LoadedModel, rows: Sequence[Row], text: Sequence[str] = (), batch_size: int = SCORED
) -> tuple[list[dict[str, Any]], int]:
    """({'prediction': the score of its last answer} of each row, the number of rows longer than the context).

    Args:
      text: fields of the prompt and, the last one, of the completion; one field is a conversation, () recognises the
        format (`conversation.read`). An empty completion has the prediction None.

    Raises InputError naming a row that is no prompt with its completion.
    """
    dialogues = [_dialogue(row, tuple(text), model) for row in rows]
    filled = [index for index, dialogue in enumerate(dialogues) if not preferences.is_empty(dialogue)]
    predictions: list[dict[str, Any]] = [{'prediction': None} for _ in rows]
    score = Scorer(model, batch_size).of_ids
    ids = [_ids(model, dialogues[index], rows[index].place) for index in filled]
    for index, value in zip(filled, score(ids).tolist(), strict=True):
        predictions[index]['prediction'] = value
    longest = room(model.model, model.params)
    return predictions, sum(len(each) > longest for each in ids)


def _dialogue(row: Row, text: tuple[str, ...], model: LoadedModel) -> Conversation:
    """The prompt and the completion of a row; the completion of a conversation is its last message."""
    if not text and {'chosen', 'rejected'} <= row.fields.keys():
        raise InputError(
            f'{row.place}: a pair: one completion is scored. --text=prompt,chosen scores the chosen ones, and '
            'lmtrain evaluate the pairs of a split'
        )
    if not text:
        try:
            conversation.recognise_format(row)
        except InputError as error:
            raise InputError(
                f'{row.place}: no format of conversations in the fields {", ".join(map(repr, row.fields))}: name those '
                'of prompt and completion, as in --text=question,reply'
            ) from error
    *prompts, last = text or ('',)
    _, dialogue = conversation.read(row, tuple(prompts) or text, last if prompts else '')
    if not dialogue.messages:
        return dialogue
    if dialogue.messages[-1]['role'] != 'assistant':
        raise InputError(f'{row.place}: the last message must be of the assistant: it is scored')
    if model.template:
        return dialogue._replace(trained=(len(dialogue.messages) - 1,))
    if [message['role'] for message in dialogue.messages] != ['user', 'assistant']:
        raise InputError(f'{row.place}: a conversation, and the reward model was trained on texts without a template')
    prompt, completion = (message['content'] for message in dialogue.messages)
    return Conversation([], (), (prompt, completion))


def score_texts(model: LoadedModel | str, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """float32 [N]: the score of each completion after its prompt, by a reward model.

    A model that was trained on rows written by a chat template reads each pair as a turn of the user and an answer;
    others read the two texts one after the other. The beginning of a text that is longer than the context is cut.

    Args:
      model: a loaded model (`lmtrain.load`), or the folder of a run or of a Hugging Face classifier with one label.

    Raises InputError if the model has no head with one output, or its template does not write a completion.
    """
    scores = scorer(model)(prompts, completions)
    if reasons := [score for score in scores if isinstance(score, str)]:
        raise InputError(reasons[0])
    return np.array(scores, np.float32)


def _ids_or_reason(loaded: LoadedModel, prompt: prompting.Prompt, completion: str) -> list[int] | str:
    """`_encode`, or why the template does not write the completion. Raises InputError if the prompt is the cause."""
    try:
        return _encode(loaded, prompt, completion)
    except InputError as error:
        prompting.encode(prompt, loaded.tokenizer, loaded.template)
        return str(error)


def _encode(loaded: LoadedModel, prompt: prompting.Prompt, completion: str) -> list[int]:
    """The ids of a prompt and its completion; with a chat template, a text is a turn and the completion its answer."""
    if not completion.strip():  # a policy may end at once; rows of pairs have no empty side
        end = encoding.answer_end(loaded.tokenizer, loaded.template)
        ids = prompting.encode(prompt, loaded.tokenizer, loaded.template)
        return [*ids, loaded.tokenizer.end_id if end is None else end]
    if not loaded.template:
        return _ids(loaded, Conversation([], (), (prompt, completion)), 'a completion')
    own = Conversation([{'role': 'user', 'content': prompt}]) if isinstance(prompt, str) else prompt
    turns = [*own.messages, {'role': 'assistant', 'content': completion}]
    return _ids(loaded, own._replace(messages=turns, trained=(len(own.messages),)), 'a completion')


def _ids(loaded: LoadedModel, dialogue: Conversation, place: str) -> list[int]:
    """The ids of a prompt and its completion; a template writes texts as a turn and its answer."""
    if loaded.template and not dialogue.messages:
        return _encode(loaded, *prompting.before_answer(dialogue))
    text = preferences.encode(dialogue, loaded.tokenizer, loaded.template, place)
    return text.prompt + text.completion


def _cut(ids: list[int], longest: int) -> list[int]:
    """The first id and the last ones, at most `longest` together."""
    return [*ids[:1], *ids[max(1, len(ids) - longest + 1) :]]


def _batch(rows: Sequence[list[int]], size: int, longest: int) -> dict[str, np.ndarray]:
    """The columns of `size` rows, of which the last may be empty."""
    length = rollout_cost.padded(max(map(len, rows)), longest)
    tokens, segments = np.zeros((2, size, length), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    return {'tokens': tokens, 'segment_ids': segments, 'scored': np.ones((size, 1), np.int32)}
