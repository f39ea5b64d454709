"""FLOPs of completions: of a rollout as drawn and, before it begins, at most; of held-out ones. Bytes of a rollout."""

from collections.abc import Sequence

from lmtrain import tree
from lmtrain.cost import memory, passes
from lmtrain.cost.query import cache_bytes
from lmtrain.errors import InputError
from lmtrain.evaluation.heads import output_of
from lmtrain.files import local_path
from lmtrain.inference import decode, rollout, sample
from lmtrain.models.virtual_tokens import room
from lmtrain.tasks import TASKS
from lmtrain.training import init_from, rollout_batch

SCORED = 32  # texts that a reward model reads at once
ROUND = 32  # the lengths of its batches are multiples of this, so that a few programs serve all


def scored_params(run) -> list[tree.Params]:
    """Shapes of the parameters that score completions: those of the policy and, if it has one, of its reference."""
    params = run.initial.shapes.params
    return [params, *([run.initial.reference_params(params)] if rollout_batch.has_reference(run) else [])]


def of(config, model, params: Sequence[tree.Params], prompts: int, longest: int, drawn: int) -> float:
    """FLOPs of sampling completions and of scoring them by the policy and its reference, without the reward.

    Args:
      params: see `scored_params`.
      prompts: number of prompts, see `passes.SamplingShape`. longest: tokens of the longest of them.
      drawn: tokens of the longest completion.
    """
    sampled = _sampled(config, model, params[0], prompts, config.policy.samples, longest, drawn)
    rows = config.policy.prompts * config.policy.samples
    return passes.rollout_flops(model, params[0], sampled, rows, config.data.seq_len, params)


def of_held_out(config, model, params: tree.Params, prompts: int, longest: int, drawn: int) -> float:
    """FLOPs of sampling one completion of each held-out prompt, without the reward. Arguments: see `of`."""
    return passes.sampling_flops(model, params, _sampled(config, model, params, prompts, 1, longest, drawn))


def _sampled(
    config, model, params: tree.Params, prompts: int, samples: int, longest: int, drawn: int
) -> passes.SamplingShape:
    T, M = sample.lengths(model, params, longest, config.policy.max_tokens)
    return passes.SamplingShape(prompts, samples, T, M, drawn)


def open_reward_model(config) -> init_from.Base | None:
    """The shapes of config.reward.model; None if there is none.

    Raises what `init_from.open_base` raises, and InputError if the model has no head with a score.
    """
    if not config.reward.model:
        return None
    base = init_from.open_base(str(local_path(config.reward.model, 'config.reward.model', config.data.root)))
    try:
        output_of(base.model, base.shapes, TASKS['reward'])
    except InputError as error:
        raise InputError(f'config.reward.model = {config.reward.model}: {error}') from None
    return base


def at_most(config, model, params: Sequence[tree.Params], prompts: int, reward_model: init_from.Base | None) -> float:
    """FLOPs of a rollout with its reward if all prompts and completions are as long as the config permits."""
    policy, seq_len = config.policy, config.data.seq_len
    flops = of(config, model, params, prompts, seq_len + 1 - policy.max_tokens, policy.max_tokens)
    if reward_model is None:
        return flops
    batches, scored = -(-policy.prompts * policy.samples // SCORED), (reward_model.model, reward_model.shapes)
    return flops + reward_flops(*scored, batches * SCORED, padded(seq_len + 1, room(*scored)))


def bytes_per_device(run) -> tuple[int, int]:
    """Bytes on one device while completions are sampled, at most: (of the copy of the layers, of keys and values).

    Without activations and logits of the sampler, which are those of one token of each row.
    """
    policy, params = run.config.policy, run.initial.shapes.params
    widened = run.mesh.devices.flat[0].platform == 'cpu' and run.model.dtype != 'float32'
    longest = run.config.data.seq_len + 1 - policy.max_tokens
    T, M = sample.lengths(run.model, params, longest, policy.max_tokens)
    prompts, _ = _prompts_per_device(run)
    layers = memory.shard_bytes(decode.copied(run.model, params, widened))
    return layers, cache_bytes(run.model, prompts * (T + policy.samples * M))


def held_out_prompts(run, longest: int) -> int:
    """How many held-out prompts are read at once, one completion each; the devices of the rows divide it.

    Every prompt has a cache of its own, while the samples of a rollout share that of their prompt: so many that their
    keys and values fill at most what a rollout with prompts of `longest` tokens fills.
    """
    policy = run.config.policy
    T, M = sample.lengths(run.model, run.initial.shapes.params, longest, policy.max_tokens)
    prompts, devices = _prompts_per_device(run)
    return devices * (prompts * (T + policy.samples * M) // (T + M))


def _prompts_per_device(run) -> tuple[int, int]:
    """(prompts of a rollout on one device, number of devices that the prompts are divided over)."""
    devices = run.mesh.shape['data'] * run.mesh.shape['fsdp']
    return rollout.padded(run.config.policy.prompts, run.mesh) // devices, devices


def in_memory(run, sizes: dict[str, int]) -> dict[str, int]:
    """`sizes`, those of `cost.bytes_per_device` for a step; of a policy, with two more parts, which 'total' includes.

    Returns:
      'reference': the copy of the trained parameters that the reference of full fine-tuning is; 0 with an adapter.
      'rollout': what a rollout needs beyond the gradients and activations of a step, which do not exist meanwhile.
    """
    if not run.task.on_policy:
        return sizes
    copied = rollout_batch.has_reference(run) and not run.initial.only_added
    reference = run.initial.reference_params(run.shapes.trainable) if copied else {}
    beyond = sum(run.rollout_bytes) - sizes['gradients'] - sizes['activations']
    more = {'reference': memory.shard_bytes(reference), 'rollout': max(0, beyond)}
    return sizes | more | {'total': sizes['total'] + sum(more.values())}


def padded(length: int, context: int) -> int:
    """T of a batch of a reward model whose longest text has `length` tokens."""
    return min(-(-length // ROUND) * ROUND, context)


def reward_flops(model, params: tree.Params, rows: int, length: int) -> float:
    """FLOPs of scoring `rows` texts by a reward model, padded to `length` tokens."""
    added = output_of(model, params, TASKS['reward']) != 'logits'
    return passes.pass_flops(model, params, rows, length, classes=1 if added else None)
