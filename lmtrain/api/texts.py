"""Texts of a loaded model: continuations, conversations, and the log-probabilities of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.chat import conversation
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.evaluation.perplexity import check_language_model
from lmtrain.inference import likelihood, sample
from lmtrain.inference.chat import MAX_TOKENS, Chat
from lmtrain.inference.prompts import before_answer, encode
from lmtrain.models.virtual_tokens import num_virtual_tokens
from lmtrain.training import load as loading
from lmtrain.training.load import LoadedModel

Messages = Sequence[Mapping[str, Any]]  # [{'role': 'user', 'content': 'text'}, ...]


class Completion(NamedTuple):
    """The continuation of a prompt, or the next piece of it."""

    text: str
    ids: list[int]  # without the end token
    finish_reason: str  # 'stop' (an end token), 'length' (max_tokens), 'context' (model.max_len), '' (not finished)


def generate(model: LoadedModel, prompts: Sequence[str | Messages | Conversation], **settings) -> list[Completion]:
    """The continuation of each prompt, in order; one compiled prefill and decode loop for all.

    Args: those of `stream`.

    Raises:
      InputError: a setting out of range, a prompt longer than the context, or a model that is not causal. Nothing was
        compiled.
      lmtrain.errors.NonFiniteOutput: a logit is nan or infinite.

    >>> import lmtrain
    >>> model = lmtrain.load('runs/tiny')
    >>> first, second = lmtrain.generate(model, ['def ', 'class '], max_tokens=8, temperature=0)
    >>> len(first.ids), first.finish_reason
    (8, 'length')
    >>> lmtrain.generate(model, ['def '], max_tokens=0)
    Traceback (most recent call last):
    lmtrain.errors.InputError: max_tokens=0 must lie in [1, 2147483647]
    """
    pieces: list[list[Completion]] = [[] for _ in prompts]
    for row, piece in stream(model, prompts, **settings):
        pieces[row].append(piece)
    return [
        Completion(''.join(piece.text for piece in row), [token for piece in row for token in piece.ids], row[-1][2])
        for row in pieces
    ]


def stream(
    model: LoadedModel,
    prompts: Sequence[str | Messages | Conversation],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    system: str = '',
    chat_template: str | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Yields (row, its next piece) as texts are generated; the last piece of a row has a `finish_reason`.

    Args:
      prompts: texts, or conversations as lists of messages up to the answer. A chat template writes a text as one
        user's turn; without one, a text is continued as it is.
      max_tokens, temperature (0 is greedy), top_k (0 is all), top_p: None is the value in the run's config.sample.
      seed: the same seed gives the same text, whatever else is in `prompts`.
      system: a system message for prompts that have none.
      chat_template: None is the one that the model was trained with, 'none' is none, 'auto' the tokenizer's own; or
        a name or a Jinja file.
    """
    _reject_text(prompts, 'prompts')
    turns = [as_prompt(f'prompt {index}', prompt) for index, prompt in enumerate(prompts)]
    chats = bool(system) or not all(isinstance(turn, str) for turn in turns)
    model = loading.with_chat_template(model, chat_template, chats)
    tokenizer, ids = model.tokenizer, [encode(turn, model.tokenizer, model.template, system) for turn in turns]
    pieces = sample.stream(
        model.model,
        model.params,
        ids,
        seed=seed,
        end_ids=model.end_ids,
        vocab_size=tokenizer.vocab_size,
        absent=tokenizer.absent,
        **sampling(model, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p),
    )
    decoders = [tokenizer.streamer() for _ in ids]
    for decode, prompt in zip(decoders, ids):
        decode(prompt)  # the text of the first piece depends on what precedes it
    return ((row, Completion(decoders[row](new), new, reason)) for row, new, reason in pieces)


def _reject_text(texts: Sequence[Any], name: str) -> None:
    """Raises InputError for one text, whose characters would be texts."""
    if isinstance(texts, str):
        raise InputError(f'{name} is one text, and a list is expected: [{texts[:40]!r}]')


def as_prompt(place: str, prompt: str | Messages | Conversation, tools=None) -> str | Conversation:
    """A prompt in the form that templates take: messages end before the last answer.

    Raises InputError naming `place` if a message is malformed or none precedes the answer.
    """
    if isinstance(prompt, str | Conversation):
        return prompt
    _, dialogue = conversation.read(Row(place, {'messages': prompt, 'tools': tools}), (), '')
    before, _ = before_answer(dialogue, which=None)
    if not before.messages:
        raise InputError(f'{place}: no message before the answer of the assistant')
    return before


def sampling(model: LoadedModel, **chosen) -> dict[str, Any]:
    """`chosen`, with the values of the run's config.sample for each that is None.

    A model without a config has the defaults of configs/base.py.
    """
    from configs import base  # late: only a Hugging Face directory needs the defaults

    section = (model.config or base.get_config()).sample
    return {name: section[name] if value is None else value for name, value in chosen.items()}


def chat(
    model: LoadedModel,
    *,
    system: str = '',
    chat_template: str | None = None,
    max_tokens: int = MAX_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Chat:
    """A conversation with a model in its own chat template; `ask` and `stream` of the result continue it.

    Args:
      system: a system text before the first message.
      chat_template: as in `stream`; None is the template of the training, else the tokenizer's.
      max_tokens: of an answer.
      temperature, top_k, top_p, seed: as in `stream`.

    Raises:
      InputError: there is no chat template, or the model is not causal.

    >>> import lmtrain
    >>> talk = lmtrain.load('runs/tiny').chat(chat_template='plain', max_tokens=4)
    >>> answer = talk.ask('Hello')
    >>> [message['role'] for message in talk.messages]
    ['user', 'assistant']
    """
    sample.check_model(model.model)
    model = loading.with_chat_template(model, chat_template, True)
    if model.template is None:
        raise InputError(f"chat_template={chat_template!r}: a conversation needs a template, such as 'plain'")
    chosen = sampling(model, temperature=temperature, top_k=top_k, top_p=top_p)
    return Chat(
        model.model,
        model.params,
        model.tokenizer,
        model.template,
        end_ids=model.end_ids,
        system=system,
        max_tokens=max_tokens,
        seed=seed,
        **chosen,
    )


class TokenLogprobs(NamedTuple):
    """A text as tokens with their log-probabilities; three sequences of one length."""

    ids: list[int]
    tokens: list[str]  # their texts; a part of a character is U+FFFD
    logprobs: np.ndarray  # float32 [L], log p in nats of each token after those before it

    @property
    def total(self) -> float:
        """log p of the whole text in nats."""
        return float(self.logprobs.sum(dtype=np.float64))


def logprobs(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    after: str | Messages | Conversation = '',
    chat_template: str | None = None,
    batch_size: int = 32,
) -> list[TokenLogprobs]:
    """The log-probability of each token of each text.

    Args:
      after: a prompt that precedes every text: a text, or messages up to an answer.
      chat_template: of the prompt, as in `stream`.

    Raises:
      InputError: a prompt and a text that are together longer than the context (`evaluate(source=...)` takes texts of
        any length), a text without a token, or a model that is not a causal language model.

    >>> import lmtrain
    >>> model = lmtrain.load('runs/tiny')
    >>> (scored,) = model.logprobs(['cats'], after='two ')
    >>> scored.tokens, scored.logprobs.shape
    (['c', 'a', 't', 's'], (4,))
    """
    check_language_model(model.model)
    _reject_text(texts, 'texts')
    before = as_prompt('after', after)
    model = loading.with_chat_template(model, chat_template, not isinstance(before, str))
    start, tokenizer = encode(before, model.tokenizer, model.template), model.tokenizer
    prompts = []
    for index, text in enumerate(texts):
        ids = tokenizer.encode_inside(text) if before else tokenizer.encode(text)
        room = sample.max_new_tokens(model.model, start) - num_virtual_tokens(model.params)
        if not 0 < len(ids) <= room:
            limit = f'and {room} fit into the context' if ids else 'so that nothing is scored'
            raise InputError(f'text {index} has {len(ids)} tokens, {limit}: {text[:40]!r}')
        prompts.append(likelihood.TokenPrompt(np.array(start, np.int32), (np.array(ids, np.int32),)))
    values = likelihood.token_log_likelihoods(model.model, model.params, prompts, batch_size)
    ids = [prompt.continuations[0].tolist() for prompt in prompts]
    spelled = [[tokenizer.pieces[token].decode(errors='replace') for token in each] for each in ids]
    return [TokenLogprobs(*each) for each in zip(ids, spelled, values, strict=True)]
