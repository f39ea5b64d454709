"""Scores of texts by a trained reward model: the rewards of a policy, and of the rows of a file."""

from collections.abc import Callable, Sequence
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
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import with_settings
from lmtrain.training.load import LoadedModel, load_directory

TASK = TASKS['reward']
ROUND = 32  # lengths of batches are multiples of this, so that a few programs serve all

ScoreTexts = Callable[[Sequence[str], Sequence[str]], np.ndarray]
ScoreIds = Callable[[Sequence[list[int]]], np.ndarray]


def scorer(model: LoadedModel | str, batch_size: int = 32) -> ScoreTexts:
    """The function (prompts, completions) -> float32 [N], the scores of a reward model; see `score_texts`.

    It compiles one program for each length of a batch, once.
    """
    loaded = load_directory(model) if isinstance(model, str) else model
    score = _scorer_of_ids(loaded, batch_size)

    def score_pairs(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        return score([_encode(loaded, *pair) for pair in zip(prompts, completions, strict=True)])

    return score_pairs


def predict_rows(
    model: LoadedModel, rows: Sequence[Row], text: Sequence[str] = (), batch_size: int = 32
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
    score = _scorer_of_ids(model, batch_size)
    ids = [_ids(model, dialogues[index], rows[index].place) for index in filled]
    for index, value in zip(filled, score(ids).tolist(), strict=True):
        predictions[index]['prediction'] = value
    return predictions, sum(len(each) > model.model.max_len for each in ids)


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


def _scorer_of_ids(loaded: LoadedModel, batch_size: int) -> ScoreIds:
    """The function: texts as ids -> float32 [N]. Raises InputError if the model has no head with one output."""
    settings = {'head': output_of(loaded.model, loaded.params, TASK), 'pool': 'last'}
    if settings['head'] == 'logits' and loaded.model.num_labels != 1:
        raise InputError(f'a reward model has one output, this one {loaded.model.num_labels}')
    if loaded.config and loaded.config.objective.pool != 'auto':
        settings['pool'] = loaded.config.objective.pool
    predict = with_settings(TASK.predict, settings)

    @jax.jit
    def run(params, batch):
        return predict(lambda columns: loaded.model.apply({'params': params}, columns), batch)[:, 0]

    def score(ids: Sequence[list[int]]) -> np.ndarray:
        order = np.argsort([len(each) for each in ids], kind='stable')
        scores = np.zeros(len(ids), np.float32)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = _batch([_cut(ids[row], loaded) for row in rows], batch_size, loaded.model.max_len)
            scores[rows] = np.asarray(run(loaded.params, batch))[: len(rows)]
        return scores

    return score


def score_texts(model: LoadedModel | str, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """float32 [N]: the score of each completion after its prompt, by a reward model.

    A model that was trained on rows written by a chat template reads each pair as a turn of the user and an answer;
    others read the two texts one after the other. The beginning of a text that is longer than the context is cut.

    Args:
      model: a loaded model (`lmtrain.load`), or the folder of a run or of a Hugging Face classifier with one label.

    Raises InputError if the model has no head with one output.
    """
    return scorer(model)(prompts, completions)


def _encode(loaded: LoadedModel, prompt: str, completion: str) -> list[int]:
    """The ids of a prompt and its completion, which are a turn and its answer if the model has a chat template."""
    if not completion.strip():  # a policy may end at once; rows of pairs have no empty side
        end = encoding.answer_end(loaded.tokenizer, loaded.template)
        ids = prompting.encode(prompt, loaded.tokenizer, loaded.template)
        return [*ids, loaded.tokenizer.end_id if end is None else end]
    turns = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': completion}]
    dialogue = Conversation(turns, (1,)) if loaded.template else Conversation([], (), (prompt, completion))
    return _ids(loaded, dialogue, 'a completion')


def _ids(loaded: LoadedModel, dialogue: Conversation, place: str) -> list[int]:
    """The ids of a prompt and its completion; a template writes texts as a turn and its answer."""
    if loaded.template and not dialogue.messages:
        return _encode(loaded, *dialogue.texts)
    text = preferences.encode(dialogue, loaded.tokenizer, loaded.template, place)
    return text.prompt + text.completion


def _cut(ids: list[int], loaded: LoadedModel) -> list[int]:
    """`ids` without what follows the first one, as far as the model does not read so many."""
    return [*ids[:1], *ids[1:][-(loaded.model.max_len - 1) :]]


def _batch(rows: Sequence[list[int]], size: int, longest: int) -> dict[str, np.ndarray]:
    """The columns of `size` rows, of which the last may be empty."""
    length = min(-(-max(map(len, rows)) // ROUND) * ROUND, longest)
    tokens, segments = np.zeros((2, size, length), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    return {'tokens': tokens, 'segment_ids': segments, 'scored': np.ones((size, 1), np.int32)}
