"""An adapter for lm-eval (extra `lm-eval`): its tasks on a model of lmtrain.

    model = LMTrain(lmtrain.load('runs/quickstart'))
    results = lm_eval.simple_evaluate(model, tasks=['arc_easy'], num_fewshot=5)

`python -m launch.lm_eval` is lm-eval's command line with this model. Tokens, windows and truncation are those of
lm-eval's own adapter for transformers, so both score the same tokens.
"""

import collections
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmtrain.errors import InputError, MissingPackage
from lmtrain.evaluation.perplexity import windows
from lmtrain.inference import sample
from lmtrain.inference.likelihood import TokenPrompt, log_likelihoods
from lmtrain.models.virtual_tokens import room

try:
    from lm_eval.api.model import LM
except ImportError:
    LM = object  # so that the module can be imported; LMTrain cannot be used

MAX_TOKENS = 256  # of a generation whose task sets none, as in lm-eval
LENGTH_NAMES = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')  # the first that is set counts


class LMTrain(LM):
    """A model of lmtrain as a model of lm-eval. It has no `apply_chat_template`: lm-eval scores it on plain texts."""

    def __init__(self, loaded, batch_size: int | str = 32, add_bos_token: bool | None = None, **others: Any):
        """
        Args:
          loaded: of `lmtrain.load`.
          batch_size: prompts computed together; 'auto', and 'auto:N' of lm-eval's command line, is the default.
          add_bos_token: whether texts begin with the begin token; None: if the tokenizer of the model adds it.
          others: `device` and `max_batch_size` of lm-eval's command line; the device is jax's first.

        MissingPackage: lm-eval is not installed. InputError: an unknown argument, or a batch_size below 1.
        """
        if LM is object:
            raise MissingPackage('LMTrain needs lm-eval: pip install -e ".[lm-eval]"')
        super().__init__()
        unknown = sorted(others.keys() - {'device', 'max_batch_size'})
        if unknown:
            raise InputError(
                f'{", ".join(unknown)}: unknown arguments of the model; batch_size and add_bos_token remain'
            )
        self.model, self.params, self.tokenizer = loaded.model, loaded.params, loaded.tokenizer
        self.end_ids = loaded.end_ids
        self.batch = _batch_size(batch_size)
        self.context = room(self.model, self.params)
        added = self.tokenizer.begin_id in self.tokenizer.layout.prefix
        self.prefix = [self.tokenizer.begin_id] if (added if add_bos_token is None else add_bos_token) else []
        self.computed_tokens = 0  # of all log-likelihoods so far

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation in nats, whether it is the greedy one) of each request (context, continuation)."""
        pairs = [request.args for request in requests]
        ends = collections.defaultdict(list)  # ids of a context -> (request, ids of its continuation)
        for number, (context, ids) in enumerate(self.encode_pairs(pairs)):
            ends[context.tobytes()].append((number, ids))
        prompts = [
            TokenPrompt(np.frombuffer(context, np.int32), tuple(ids for _, ids in members))
            for context, members in ends.items()
        ]
        values = log_likelihoods(self.model, self.params, prompts, self.batch, greedy=True)
        self.computed_tokens += values.computed_tokens
        numbers = [number for members in ends.values() for number, _ in members]
        answers: list[Any] = [None] * len(pairs)
        for number, nats, greedy in zip(
            numbers, np.concatenate(values.nats), np.concatenate(values.greedy), strict=True
        ):
            answers[number] = float(nats), bool(greedy)
            self.cache_hook.add_partial('loglikelihood', pairs[number], answers[number])
        return answers

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids of the context, ids of the continuation) of texts (context, continuation).

        White space at the end of a context belongs to the continuation. Both are encoded as one text, and the
        continuation begins behind as many tokens as the context alone has. A text that is too long loses its beginning.
        """
        moved = []
        for context, continuation in pairs:
            end = len(context.rstrip())
            moved.append((context[:end], context[end:] + continuation) if end else ('', context + continuation))
        alone = list(dict.fromkeys(context for context, _ in moved))
        encoded = dict(zip(alone, self.tokenizer.encode_batch(alone), strict=True))
        wholes = self.tokenizer.encode_batch([context + continuation for context, continuation in moved])
        result = []
        for (context, continuation), whole in zip(moved, wholes, strict=True):
            own = [*(self.prefix or ([] if context else [self.tokenizer.begin_id])), *encoded[context]]
            ids = np.asarray(whole[len(encoded[context]) :], np.int32)
            if not context and len(ids) > 1 and ids[0] == self.tokenizer.begin_id:
                ids = ids[1:]  # the text contains the begin token
            if not len(ids):
                raise InputError(f'{continuation!r} adds no token to the context {context[-40:]!r}')
            own = np.array(own, np.int32)[max(0, len(own) + len(ids) - 1 - self.context) :]
            if not len(own):
                raise InputError(f'{continuation[:40]!r}... has {len(ids)} tokens, and the context {self.context}')
            result.append((own, ids))
        return result

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each text in nats, in windows that cover each token once; each request is (text,)."""
        texts = [request.args[0] for request in requests]
        encoded = self.tokenizer.encode_batch(texts)
        each = [windows(ids, self.tokenizer.begin_id, self.context) for ids in encoded]
        values = log_likelihoods(self.model, self.params, [w for own in each for w in own], self.batch)
        self.computed_tokens += values.computed_tokens
        ends = np.cumsum([0, *map(len, each)])
        nats = np.append(0.0, np.cumsum([float(own[0]) for own in values.nats]))
        sums = np.diff(nats[ends]).tolist()
        for text, value in zip(texts, sums, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', (text,), value)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The generation of each request (context, settings), up to the first of its stop texts."""
        groups = collections.defaultdict(list)  # settings as JSON -> numbers of requests
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(number)
        answers = [''] * len(requests)
        for name, numbers in groups.items():
            until, settings = generation_settings(json.loads(name))
            room = self.context - settings['max_tokens']
            if room < 1:
                raise InputError(f'max_gen_toks={settings["max_tokens"]}, and the context has {self.context} tokens')
            texts = [requests[number].args[0] for number in numbers]
            encoded = ([*self.prefix, *ids] or [self.tokenizer.begin_id] for ids in self.tokenizer.encode_batch(texts))
            generated = sample.generate(
                self.model,
                self.params,
                [ids[-room:] for ids in encoded],
                **settings,
                seed=0,
                end_ids=list(dict.fromkeys([self.tokenizer.end_id, *self.end_ids])),
                vocab_size=self.tokenizer.vocab_size,
                absent=self.tokenizer.absent,
                batch_size=self.batch,
            )
            for number, (ids, _) in zip(numbers, generated, strict=True):
                text = self.tokenizer.decode_bytes(ids).decode('utf-8', 'replace')
                answers[number] = text[: min((at for at in map(text.find, until) if at >= 0), default=None)]
                self.cache_hook.add_partial('generate_until', requests[number].args, answers[number])
        return answers


def _batch_size(value: int | str) -> int:
    if str(value).startswith('auto'):
        return 32
    try:
        size = int(value)
    except ValueError:
        size = 0
    if size < 1:
        raise InputError(f"batch_size={value!r}: a whole number of at least 1, or 'auto'")
    return size


def generation_settings(settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(stop texts, settings of `sample.generate`) of lm-eval's generation_kwargs. InputError: one is not supported."""
    settings = dict(settings)
    until = settings.pop('until', None) or []
    lengths = [settings.pop(name, None) for name in LENGTH_NAMES]
    max_tokens = next((length for length in lengths if length is not None), MAX_TOKENS)
    temperature = float(settings.pop('temperature', 0.0 if not settings.get('do_sample') else 1.0))
    sampled = settings.pop('do_sample', temperature > 0)
    top_k, top_p = int(settings.pop('top_k', 0) or 0), float(settings.pop('top_p', 1.0) or 1.0)
    if settings:
        raise InputError(f'generation_kwargs {sorted(settings)} are not supported')
    chosen = {'max_tokens': int(max_tokens), 'temperature': temperature if sampled else 0.0}
    until = [until] if isinstance(until, str) else until
    # '' is found at the beginning of every text; lm-eval's own adapter leaves it out too.
    return [stop for stop in until if stop], chosen | {'top_k': top_k, 'top_p': top_p}
