"""A conversation with a model: history, streamed answers, and what happens when the context is full."""

from collections.abc import Iterator, Sequence
from typing import Any

from lmtrain.data import Tokenizer
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template
from lmtrain.errors import InputError
from lmtrain.inference import sample
from lmtrain.inference.prompts import encode, special_names
from lmtrain.models import Transformer
from lmtrain.models.virtual_tokens import room
from lmtrain.tree import Params

MAX_TOKENS = 512  # of an answer, unless another number is chosen


class Chat:
    """A conversation that grows by a question and its answer with each call of `ask` or `stream`.

    Attributes:
      messages: what was said, [{'role': 'user' or 'assistant', 'content': text}], without the system text.
      system: the system text before the first message; '' is none. It may be changed at any time.
      dropped: how many turns (a question and its answer) the last answer did not read, the oldest ones, since the
        context of the model was full. They are no longer in `messages`.
      finish_reason: of the last answer: 'stop' (an end token), 'length' (max_tokens), 'context' (the context is full),
        or '' if it was not read to its end.
    """

    def __init__(
        self,
        model: Transformer,
        params: Params,
        tokenizer: Tokenizer,
        template: Template,
        *,
        end_ids: Sequence[int],
        system: str = '',
        **sampling: Any,
    ):
        """`sampling`: max_tokens, temperature, top_k, top_p and seed of `sample.check_settings`."""
        self._model, self._params, self._tokenizer, self._template = model, params, tokenizer, template
        self._settings = sampling | {'end_ids': end_ids}
        self._settings |= {'vocab_size': tokenizer.vocab_size, 'absent': tokenizer.absent}
        sample.check_settings(**self._settings)
        self.context = room(model, params)
        self.system, self.dropped, self.finish_reason = system, 0, ''
        self.messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forgets all messages, but not the system text."""
        self.messages, self.dropped, self.finish_reason = [], 0, ''

    def special_names(self, text: str) -> list[str]:
        """The names of special tokens that a message contains; they are read as characters."""
        return special_names([text], self._tokenizer)

    def ask(self, text: str) -> str:
        """The answer to a message of the user. Arguments and errors are those of `stream`."""
        return ''.join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The pieces of the answer to a message of the user, as they are generated.

        Question and answer are then in `messages`; if the iterator is closed early, the answer is what it has yielded,
        and the question is forgotten if that is nothing. Whatever `text` contains, no part of it is encoded as a
        special token.

        Raises InputError, with the conversation as it was, if the template rejects the messages, or if this message
        alone is longer than the context. Nothing is generated before the first piece is read.
        """
        messages, ids, dropped = self._fitting([*self.messages, {'role': 'user', 'content': text}])
        sample.check_prompts(self._model, [ids], self._tokenizer.vocab_size, self._model.max_len - self.context)
        *self.messages, question = messages
        self.dropped, self.finish_reason = dropped, ''
        return self._answer(question, ids)

    def _answer(self, question: dict[str, Any], ids: list[int]) -> Iterator[str]:
        decode, answer = self._tokenizer.streamer(), ''
        decode(ids)  # the text of the first piece depends on what precedes it
        try:
            for _, new, reason in sample.stream(self._model, self._params, [ids], **self._settings):
                piece, self.finish_reason = decode(new), reason
                answer += piece
                yield piece
        finally:
            if answer or self.finish_reason:
                self.messages += [question, {'role': 'assistant', 'content': answer}]

    def _fitting(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int], int]:
        """(the newest messages that leave room for an answer, their ids, the number of turns dropped before them).

        The room is max_tokens, but at most a quarter of the context; the last message has what it needs of it.
        """
        room, dropped = min(self._settings['max_tokens'], self.context // 4), 0
        while True:
            ids = encode(Conversation(messages), self._tokenizer, self._template, self.system)
            later = [i for i, message in enumerate(messages) if i and message['role'] == 'user']
            if len(ids) + room <= self.context + 1 or not later:
                break
            messages, dropped = messages[later[0] :], dropped + 1
        if len(ids) > self.context:
            system = ' with the system text' if self.system else ''
            raise InputError(
                f'the message{system} has {len(ids):,} tokens, and the context of the model holds {self.context:,}: '
                'shorten it'
            )
        return messages, ids, dropped
