"""Rollouts: the batches of a policy run, which the model itself samples.

    prompts of the rollout        a function of seed and step
         | sample                 completions, a function of seed, step and parameters
         | score                  rewards; log-probabilities of trainer and reference, by the forward pass of the step
         | estimate               advantages of all tokens
         v
    columns [N, T]  ->  policy.epochs x N / data.batch_size steps of the optimizer, each epoch in another order

A checkpoint never divides the steps of a rollout, so a resumed run samples the same completions again.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmtrain import rewards, tree
from lmtrain.data import hash_rng
from lmtrain.data.rows import Row
from lmtrain.errors import InputError
from lmtrain.inference.prompts import shown
from lmtrain.inference.rollout import padded, rollout
from lmtrain.models.virtual_tokens import num_virtual_tokens
from lmtrain.parallel import collectives
from lmtrain.runtime import faults
from lmtrain.tasks.advantages import Sampled, with_variance
from lmtrain.tasks.policy import prompt_of
from lmtrain.tasks.prepare import TaskData
from lmtrain.tasks.task import has_setting, with_settings
from lmtrain.training import rollout_batch, rollout_cost, samples
from lmtrain.training.run import Run

KL_STEP, KL_LIMIT = 0.1, 0.2  # of the controller of the KL weight, Ziegler et al. 2019, arXiv 1909.08593, section 2.2


class Prompts(NamedTuple):
    """The prompts of a split: their ids, their texts (`prompts.shown`), and the rows that they are from."""

    ids: list[list[int]]
    texts: list[str]
    rows: list[Row]

    def at(self, indices: Sequence[int]) -> 'Prompts':
        """The prompts with these indices."""
        return Prompts(*([column[index] for index in indices] for column in self))


class Completions(NamedTuple):
    """N completions with their rewards, those of a prompt together.

    Attributes:
      tokens: int32 [N, L], with the end token. lengths: int32 [N].
      ended: bool [N], whether the end token was drawn.
      logprob: float32 [N, L], of each token as the sampler computed it.
      texts: of the completions.
      rewards: float32 [N]. parts: {name of a part of the reward: float32 [N]}.
      failures: {reason: number of completions that could not be scored}.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray
    logprob: np.ndarray
    texts: list[str]
    rewards: np.ndarray
    parts: dict[str, np.ndarray]
    failures: dict[str, int]

    def figures(self) -> dict[str, float]:
        """Means for the log: reward and its parts, length, share ended, failures."""
        parts = {f'reward_{name}': float(np.mean(values)) for name, values in self.parts.items()}
        parts = parts if len(parts) > 1 else {}
        figures = {'reward': float(np.mean(self.rewards)), 'reward_std': float(np.std(self.rewards)), **parts}
        figures |= {'length': float(np.mean(self.lengths)), 'ended': float(np.mean(self.ended))}
        return figures | ({'reward_failures': sum(self.failures.values())} if self.failures else {})


def prompts_of(run: Run, split: str) -> Prompts:
    """The prompts of a split, in the order of its rows."""
    examples, fields = run.corpus.examples[split], tuple(run.config.task.text)
    bounds = zip(examples.begins[:-1].tolist(), examples.begins[1:].tolist(), strict=True)
    ids = [examples.tokens[begin : end - 1].tolist() for begin, end in bounds]  # without the end token
    rows = [run.corpus.rows[split][source] for source in examples.source.tolist()]
    return Prompts(ids, [shown(prompt_of(row, fields)) for row in rows], rows)


def longest_allowed(config) -> int:
    """Tokens of the longest prompt whose completion has room in a row of a batch; its last token is a target alone."""
    return config.data.seq_len - config.policy.max_tokens + 1


def longest_prompt(corpus: TaskData) -> int:
    """Tokens of the longest prompt that is trained or validated."""
    sizes = [np.diff(corpus.examples[split].begins) for split in ('train', 'validation')]
    return int(np.concatenate(sizes).max()) - 1  # without the end token


def has_room(config, corpus: TaskData) -> bool:
    """Whether every prompt leaves room for its completion in a row of a batch."""
    return longest_prompt(corpus) <= longest_allowed(config)


def check(run: Run) -> None:
    """Raises InputError if prompts and completions do not fit the rows of a batch, or the model cannot sample here."""
    config = run.config
    # The scores of a reward model, which is not opened yet, need no field of the rows.
    with rewards.build(config.reward, root=config.data.root, open_model=lambda folder: None) as reward:
        for rows in run.corpus.rows.values():
            reward.check(rows)
    if jax.process_count() > 1:
        raise InputError('a policy is trained in one process: rewards are computed where all completions are')
    if config.policy.temperature != 1 and run.model.logit_softcap:
        raise InputError(
            f'policy.temperature = {config.policy.temperature} with model.logit_softcap = {run.model.logit_softcap}: '
            'such a model is sampled at temperature 1'
        )
    virtual = num_virtual_tokens(run.initial.member_shapes.params)
    if not has_room(config, run.corpus):
        longest = longest_prompt(run.corpus)
        raise InputError(
            f'data.seq_len = {config.data.seq_len}: the longest prompt has {longest} tokens and policy.max_tokens = '
            f'{config.policy.max_tokens}: set data.seq_len to {longest + config.policy.max_tokens - 1}, '
            "policy.max_tokens lower, or task.too_long to 'cut' or 'drop'"
        )
    if config.data.seq_len + virtual > run.model.max_len:
        raise InputError(f'data.seq_len = {config.data.seq_len}: the context of the base is {run.model.max_len}')


class Sampler:
    """Samples completions of prompts with the parameters of a run, and scores them.

    Attributes:
      held_out_flops: FLOPs of all completions that `held_out` has sampled, with their rewards.
    """

    def __init__(self, run: Run, open_model: Callable | None = None, strict: bool = True):
        """Builds the reward of config.reward, see `rewards.build`. Raises InputError naming the field.

        open_model: (folder, fields of the prompt) -> a reward model, `reward_scores.scorer`. strict: see there.
        """
        self.run = run
        opened = open_model and functools.partial(open_model, text=tuple(run.config.task.text))
        self.reward = rewards.build(run.config.reward, root=run.config.data.root, open_model=opened, strict=strict)
        self.held_out_flops = 0.0

    def close(self) -> None:
        """Ends the processes of the reward."""
        self.reward.close()

    def __call__(
        self, params, prompts: Prompts, count: int, temperature: float, seed: int, keep: int | None = None
    ) -> Completions:
        """`count` completions of each prompt, of which the first `keep` are scored and returned; None: all."""
        run, tokenizer = self.run, self.run.corpus.tokenizer
        sampled = rollout(
            run.model,
            params,
            prompts.ids,
            samples=count,
            max_tokens=run.config.policy.max_tokens,
            temperature=temperature,
            seed=seed,
            end_ids=run.generation['eos_token_id'],
            vocab_size=tokenizer.vocab_size,
            absent=tokenizer.absent,
            mesh=run.mesh if run.mesh.size > 1 else None,
        )
        tokens, lengths, ended, logprob = (column[:keep] for column in jax.device_get(sampled))
        every = prompts.at([index for index in range(len(prompts.ids)) for _ in range(count)][:keep])
        texts = [
            samples.continuation(tokenizer, ids, row[: length - end].tolist(), chats=True)
            for ids, row, length, end in zip(every.ids, tokens, lengths, ended.astype(int), strict=True)
        ]
        scored = self.reward(every.texts, texts, [row.fields for row in every.rows])
        return Completions(tokens, lengths, ended, logprob, texts, *scored)


class Rollouts:
    """The batches of a policy run. Like `data.Prefetch`, except that a rollout needs the state.

    Attributes:
      waited: seconds spent on rollouts so far.
      figures: of the last rollout, for the log.
      state: numbers that a resumed run needs, for the checkpoint. 'rollout_flops' are those of all rollouts so far.
    """

    def __init__(self, sampler: Sampler, start: int, place: Callable, state: dict, show: Callable[..., None]):
        """show: called with (step, Prompts, Completions) after each rollout. The others are those of Prefetch."""
        self.run = run = sampler.run
        self.sample, self.step, self.place, self.show = sampler, start, place, show
        self.state = {'kl_weight': run.config.objective.kl_weight, 'rollout_flops': 0.0} | state
        self.prompts, self.score = prompts_of(run, 'train'), scorer(run)
        self.reference = reference(run) if rollout_batch.has_reference(run) else None
        self.waited, self.figures, self._columns = 0.0, {}, None

    def take(self, state) -> tuple[int, Any]:
        """(step, place(batch)) of the next step; begins with a rollout if the last one is used up."""
        config, step = self.run.config, self.step
        number, index = divmod(step, self.run.steps_per_rollout)
        sampled = self._columns is None or index == 0
        if sampled:
            begun = time.monotonic()
            self._columns = self._rollout(state, number)
            self.waited += time.monotonic() - begun
        size, batch_size = len(self._columns['tokens']), config.data.batch_size
        epoch, first = divmod(index * batch_size, size)
        order = hash_rng.permutation(size, config.seed, hash_rng.MINIBATCH, number, epoch)
        rows = order[first : first + batch_size]
        batch = {name: column[rows] for name, column in self._columns.items()}
        batch |= {'row': np.arange(batch_size, dtype=np.int32), 'first': np.full(batch_size, sampled, np.float32)}
        self.step += 1
        return step, self.place(batch)

    def close(self) -> None:
        """Nothing runs in the background."""

    def _rollout(self, state, number: int) -> dict[str, np.ndarray]:
        """The columns of the completions of rollout `number`; sets the figures."""
        config, policy = self.run.config, self.run.config.policy
        prompts = self.prompts.at(chosen(len(self.prompts.ids), policy.prompts, config.seed, number))
        seed = int(hash_rng.random_bits(config.seed, hash_rng.ROLLOUT, number) >> np.uint64(32))
        completions = self.sample(state.params, prompts, policy.samples, policy.temperature, seed)
        self.state['rollout_flops'] += self._flops(prompts, completions) + self.sample.reward.flops
        faults.inject(faults.ROLLOUT, self.step + 1)
        columns = rollout_batch.columns(prompts.ids, completions.tokens, completions.lengths, config.data.seq_len)
        if policy.temperature != 1:
            columns['temperature'] = np.full(len(columns['tokens']), policy.temperature, np.float32)
        figures = completions.figures()
        columns |= self._scores(state, columns)
        figures['sampler_gap'] = gap(columns, completions)
        self._credit(columns, completions, figures)
        self.figures = figures
        self.show(self.step, prompts, completions)
        return columns

    def _flops(self, prompts: Prompts, completions: Completions) -> float:
        """FLOPs of a rollout without its reward."""
        run, longest = self.run, max(map(len, prompts.ids))
        count, drawn = padded(len(prompts.ids), run.mesh), int(completions.lengths.max())
        return rollout_cost.of(run.config, run.model, rollout_cost.scored_params(run), count, longest, drawn)

    def _scores(self, state, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{'old_logprob', 'old_values' with a value head, 'ref_logprob' with a reference}, [N, T], 0 in the rest."""
        names = {'logprob': 'old_logprob', self.run.task.added_head: 'old_values'}
        scores = {names[output]: x for output, x in self._each(state.params, columns).items()}
        if self.reference:
            scores['ref_logprob'] = self._each(self.reference(state), columns)['logprob']
        return {name: np.where(columns['loss_mask'] > 0, x, np.float32(0)) for name, x in scores.items()}

    def _each(self, params, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{output of `scorer`: [N, T]} for all rows, in batches."""
        size = self.run.config.data.batch_size
        parts = []
        for first in range(0, len(columns['tokens']), size):
            batch = {name: column[first : first + size] for name, column in columns.items()}
            batch['row'] = np.arange(size, dtype=np.int32)
            parts.append(jax.device_get(self.score(params, self.place(batch)[0])))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _credit(self, columns: dict[str, np.ndarray], completions: Completions, figures: dict[str, float]) -> None:
        """Adds advantages (and returns) to the columns, and removes what is not learned from their loss_mask."""
        config, policy = self.run.config, self.run.config.policy
        settings = config.objective.to_dict() | policy.to_dict() | {'kl_weight': self.state['kl_weight']}
        reward = completions.rewards - (policy.penalty * ~completions.ended if policy.truncated == 'penalty' else 0.0)
        sampled = Sampled(
            reward.astype(np.float64),
            columns['loss_mask'],
            policy.samples,
            columns['old_logprob'],
            columns.get('ref_logprob'),
            columns.get('old_values'),
        )
        credit = with_settings(self.run.task.estimator(config.objective.name), settings)(sampled)
        columns |= {name: x.astype(np.float32) for name, x in credit.columns.items()}
        # A KL term of the loss has a gradient without a signal, too; the advantages are then 0.
        penalised = has_setting(self.run.task.loss(config.objective.name), 'kl_weight') and config.objective.kl_weight
        used = np.ones_like(credit.used) if penalised else credit.used
        used = used & (completions.ended if policy.truncated == 'mask' else True)
        if policy.samples > 1:  # of the rewards alone: advantages also differ by a KL term or by values
            figures['no_signal'] = float(1.0 - np.mean(with_variance(sampled.rewards.reshape(-1, policy.samples))))
        figures['rollout_entropy'] = float(-np.sum(columns['old_logprob'], dtype=np.float64) / sampled.mask.sum())
        if self.reference:
            kl = np.sum(columns['old_logprob'] - columns['ref_logprob'], dtype=np.float64) / len(used)
            figures |= {'rollout_kl': float(kl), 'kl_weight': self.state['kl_weight']}
            self.state['kl_weight'] = adapted(self.state['kl_weight'], kl, policy.kl_target)
        columns['loss_mask'] = columns['loss_mask'] * used[:, None].astype(np.float32)


def gap(columns: dict[str, np.ndarray], completions: Completions) -> float:
    """The largest difference, in nats, of a token's log-probability between the sampler and the trainer."""
    inside = np.arange(completions.tokens.shape[1])[None] < completions.lengths[:, None]
    trained = columns['old_logprob'][columns['loss_mask'] > 0]  # row by row, as the mask of the sampler's
    return float(np.max(np.abs(trained - completions.logprob[inside])))


def chosen(count: int, size: int, seed: int, number: int) -> list[int]:
    """The indices of the prompts of rollout `number`: all `count` once in each pass, every pass in another order."""
    turn, place = np.divmod(np.arange(number * size, (number + 1) * size), count)
    orders = {each: hash_rng.permutation(count, seed, hash_rng.SHUFFLE, each) for each in np.unique(turn).tolist()}
    return [int(orders[each][at]) for each, at in zip(turn.tolist(), place.tolist(), strict=True)]


def adapted(weight: float, kl: float, target: float) -> float:
    """The KL weight for the next rollout: weight (1 + 0.1 clip(kl / target - 1, -0.2, 0.2)); target 0 is fixed.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2.

    >>> adapted(1.0, kl=12.0, target=10.0), adapted(1.0, kl=11.0, target=10.0), adapted(1.0, kl=11.0, target=0.0)
    (1.02, 1.01, 1.0)
    """
    return weight * (1.0 + KL_STEP * min(max(kl / target - 1.0, -KL_LIMIT), KL_LIMIT)) if target else weight


def scorer(run: Run) -> Callable:
    """The jitted function (params, batch) -> {'logprob', and 'value' if there is such a head}, float32 [B, T]."""

    def forward(params, batch, hooks):
        outputs = run.model.apply({'params': params}, batch, hooks=hooks)
        head = run.task.added_head
        values = {head: outputs[head][..., 0]} if head in outputs else {}
        return {'logprob': outputs['logprob']} | values

    return jax.jit(collectives.shard_forward(run.mesh, run.specs, run.model.dtype, forward))


def reference(run: Run) -> Callable:
    """The function state -> parameters of the base: the frozen leaves, and a copy of those that are trained.

    No copy exists if only added leaves are trained: the reference is the base with the adapter off.
    """
    initial = run.initial
    copy = {} if initial.only_added else initial.reference_params(initial.on_mesh(lambda state: state.trainable))
    return lambda state: tree.join(initial.reference_params(state.frozen), copy)


def held_out(sampler: Sampler, split: str, max_batches: int = 0) -> Callable:
    """The function (params, stopped) -> results: the mean reward on the prompts of a split; None if it was stopped.

    Args:
      max_batches: at most so many times data.batch_size prompts, a fixed random sample; 0 is all.

    Returns:
      {'loss': minus the mean reward, 'reward', its parts, 'length', 'ended', 'reward_error': standard error of the
      mean, also of each part of weight 0, 'targets': number of prompts, 'reward_failures': number of completions that
      could not be scored, if there are any}.

    Raises InputError if the split is empty.
    """
    run, policy = sampler.run, sampler.run.config.policy
    run.stream(split)  # raises if the split is empty
    prompts = prompts_of(run, split)
    limit = max_batches * run.config.data.batch_size
    if 0 < limit < len(prompts.ids):
        prompts = prompts.at(hash_rng.permutation(len(prompts.ids), hash_rng.SAMPLE)[:limit].tolist())
    count = len(prompts.ids)
    size = min(count, rollout_cost.held_out_prompts(run, max(map(len, prompts.ids))))

    def measure(params, stopped=lambda: False) -> dict[str, float] | None:
        parts, flops = [], 0.0
        for first in range(0, count, size):
            if stopped():
                return None
            some = prompts.at(np.arange(first, first + size) % count)  # all calls have one shape
            part = sampler(params, some, 1, policy.evaluate_temperature, run.config.seed, keep=count - first)
            longest, drawn = max(map(len, some.ids)), int(part.lengths.max())
            shapes, rows = run.initial.shapes.params, padded(size, run.mesh)
            flops += rollout_cost.of_held_out(run.config, run.model, shapes, rows, longest, drawn)
            flops += sampler.reward.flops
            parts.append(part)
        sampler.held_out_flops += flops
        weights = [len(part.rewards) / count for part in parts]
        each = [part.figures() for part in parts]
        failures = sum(own.pop('reward_failures', 0) for own in each)
        means = {name: float(sum(w * own[name] for w, own in zip(weights, each, strict=True))) for name in each[0]}
        del means['reward_std']  # of all prompts it is in the error
        columns = {'reward': [part.rewards for part in parts]}
        columns |= {f'reward_{name}': [part.parts[name] for part in parts] for name in sampler.reward.measures}
        errors = {f'{name}_error': float(np.std(np.concatenate(each))) / count**0.5 for name, each in columns.items()}
        results = {'loss': -means['reward'], **means, **errors, 'targets': count}
        return results | ({'reward_failures': failures} if failures else {})

    return measure
