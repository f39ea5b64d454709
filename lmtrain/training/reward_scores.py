"""Scores of texts by a trained reward model: the rewards of a policy."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from lmtrain.data import preferences
from lmtrain.data.chat import encoding
from lmtrain.data.chat.conversation import Conversation
from lmtrain.errors import InputError
from lmtrain.evaluation.heads import output_of
from lmtrain.inference import prompts as prompting
from lmtrain.tasks import TASKS
from lmtrain.tasks.task import with_settings
from lmtrain.training.load import LoadedModel, load_directory

TASK = TASKS['reward']
ROUND = 32  # lengths of batches are multiples of this, so that a few programs serve all

ScoreTexts = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def scorer(model: LoadedModel | str, batch_size: int = 32) -> ScoreTexts:
    """The function (prompts, completions) -> float32 [N], the scores of a reward model; see `score_texts`.

    It compiles one program for each length of a batch, once.
    """
    loaded = load_directory(model) if isinstance(model, str) else model
    settings = {'head': output_of(loaded.model, loaded.params, TASK), 'pool': 'last'}
    if settings['head'] == 'logits' and loaded.model.num_labels != 1:
        raise InputError(f'a reward model has one output, this one {loaded.model.num_labels}')
    if loaded.config and loaded.config.objective.pool != 'auto':
        settings['pool'] = loaded.config.objective.pool
    predict = with_settings(TASK.predict, settings)

    @jax.jit
    def run(params, batch):
        return predict(lambda columns: loaded.model.apply({'params': params}, columns), batch)[:, 0]

    def score(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        ids = [_encode(loaded, *pair) for pair in zip(prompts, completions, strict=True)]
        order = np.argsort([len(each) for each in ids], kind='stable')
        scores = np.zeros(len(ids), np.float32)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = _batch([ids[row] for row in rows], batch_size, loaded.model.max_len)
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
    """The ids of a text, in at most as many tokens as the model reads."""
    if not completion.strip():  # a policy may end at once; rows of pairs have no empty side
        end = encoding.answer_end(loaded.tokenizer, loaded.template)
        ids = prompting.encode(prompt, loaded.tokenizer, loaded.template)
        return _cut([*ids, loaded.tokenizer.end_id if end is None else end], loaded)
    turns = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': completion}]
    dialogue = Conversation(turns, (1,)) if loaded.template else Conversation([], (), (prompt, completion))
    text = preferences.encode(dialogue, loaded.tokenizer, loaded.template, 'a completion')
    return _cut(text.prompt + text.completion, loaded)


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
