"""Losses of TRL's GRPO and RLOO trainers on fixed log-probabilities, over six steps of gradient descent.

    python -m experiments.parity.policy_losses

Needs the extra `parity`. Writes tests/tasks/policy_goldens.json. The methods are those of TRL; only the forward pass is
replaced, by a table of log-probabilities, which is what the gradient descends on.
"""

import json
import pathlib
import types
import unittest.mock

import torch
import trl
from trl import GRPOTrainer, RLOOTrainer

GOLDENS = pathlib.Path(__file__).parents[2] / 'tests' / 'tasks' / 'policy_goldens.json'
LENGTHS = (7, 3, 5, 1, 6, 4, 2, 7)  # tokens of the completions: two prompts with four each
SAMPLES, STEPS, RATE, MAX_TOKENS = 4, 6, 0.5, 9
CASES = {}
for aggregation in ('grpo', 'dr_grpo', 'dapo'):
    for ratio, beta in (('token', 0.0), ('token', 0.3), ('sequence', 0.0)):
        settings = {'aggregation': aggregation, 'ratio': ratio, 'clip_low': 0.2, 'clip_high': 0.28, 'beta': beta}
        CASES[f'{aggregation} {ratio} {beta:g}'] = settings


def inputs() -> dict[str, torch.Tensor]:
    """Log-probabilities [N, L] of the policy, the sampling policy and the reference, the mask, and rewards [N]."""
    generator = torch.Generator().manual_seed(0)
    N, L = len(LENGTHS), max(LENGTHS)
    old = -2.0 * torch.rand(N, L, generator=generator)
    return {
        'logprob': old + 0.3 * torch.randn(N, L, generator=generator),
        'old_logprob': old,
        'ref_logprob': old + 0.2 * torch.randn(N, L, generator=generator),
        'mask': (torch.arange(L)[None] < torch.tensor(LENGTHS)[:, None]).float(),
        'rewards': torch.tensor([1.0, 0.0, 0.5, 1.0, 0.25, 0.0, 2.0, -1.0]),
    }


def stand_in(logprob: torch.Tensor, **settings) -> types.SimpleNamespace:
    """What `_compute_loss` reads of a trainer. Metrics go to a mock."""
    trainer = unittest.mock.MagicMock()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprob, torch.zeros_like(logprob), None)
    trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = trainer.use_vllm = False
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
    trainer.args.delta, trainer.args.use_bias_correction_kl, trainer.args.steps_per_generation = None, False, 1
    trainer.current_gradient_accumulation_steps, trainer.max_completion_length = 1, MAX_TOKENS
    trainer.accelerator.num_processes = 1
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def descend(loss_of) -> dict[str, list]:
    """{'loss': of each step, 'gradient': of the first one, [N, L]} of gradient descent on the log-probabilities."""
    logprob, losses, first = inputs()['logprob'].clone().requires_grad_(), [], None
    for _ in range(STEPS):
        loss = loss_of(logprob)
        (gradient,) = torch.autograd.grad(loss, logprob)
        first = gradient if first is None else first
        losses.append(loss.item())
        with torch.no_grad():
            logprob -= RATE * gradient
    return {'loss': losses, 'gradient': first.tolist()}


def columns() -> dict[str, torch.Tensor]:
    """The inputs of `_compute_loss` but for log-probabilities and advantages."""
    mask = inputs()['mask']
    ids = torch.zeros_like(mask).long()
    prompt = {'prompt_ids': ids[:, :1], 'prompt_mask': ids[:, :1] + 1}
    return prompt | {'completion_ids': ids, 'completion_mask': mask, 'num_items_in_batch': mask.sum()}


def grpo(aggregation: str, ratio: str, clip_low: float, clip_high: float, beta: float) -> dict[str, list]:
    """The trajectory of one case, with the advantages of TRL's formula."""
    given = inputs()
    groups = given['rewards'].view(-1, SAMPLES)
    centred = groups - groups.mean(dim=1, keepdim=True)
    advantages = (centred / (groups.std(dim=1, keepdim=True) + 1e-4)).view(-1)
    batch = columns() | {'advantages': advantages, 'old_per_token_logps': given['old_logprob']}
    batch |= {'ref_per_token_logps': given['ref_logprob']}
    settings = {'loss_type': aggregation, 'importance_sampling_level': ratio, 'beta': beta}
    settings |= {'epsilon_low': clip_low, 'epsilon_high': clip_high}

    def loss_of(logprob):
        trainer = stand_in(logprob, **settings)
        trainer.model.training = True
        return GRPOTrainer._compute_loss(trainer, None, batch)

    return descend(loss_of) | {'advantages': advantages.tolist()}


def rloo(beta: float) -> dict[str, list]:
    """The trajectory of RLOO, whose KL penalty is a part of the reward."""
    given = inputs()
    kl = ((given['old_logprob'] - given['ref_logprob']) * given['mask']).sum(-1)
    rewards = given['rewards'] - beta * kl
    groups = rewards.view(-1, SAMPLES)
    advantages = rewards - ((groups.sum(dim=1, keepdim=True) - groups) / (SAMPLES - 1)).view(-1)
    old = (given['old_logprob'] * given['mask']).sum(-1)
    batch = columns() | {'advantages': advantages, 'old_logps': old}

    def loss_of(logprob):
        return RLOOTrainer._compute_loss(stand_in(logprob, epsilon_low=0.2, epsilon_high=0.28), None, batch)

    return descend(loss_of) | {'advantages': advantages.tolist()}


def main():
    goldens = {
        'trl': trl.__version__,
        'rate': RATE,
        'max_tokens': MAX_TOKENS,
        'samples': SAMPLES,
        'inputs': {name: x.tolist() for name, x in inputs().items()},
        'cases': {name: {'settings': case, **grpo(**case)} for name, case in CASES.items()},
        'rloo': {f'{beta:g}': rloo(beta) for beta in (0.0, 0.2)},
    }
    GOLDENS.write_text(json.dumps(goldens) + '\n', encoding='utf-8')
    cases = len(goldens['cases']), len(goldens['rloo'])
    print(f'{GOLDENS.name}: {cases[0]} cases of GRPO and {cases[1]} of RLOO, TRL {trl.__version__}')


if __name__ == '__main__':
    main()
