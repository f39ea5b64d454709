"""Losses of preference objectives and reward models in TRL: on fixed log-probabilities, and over six steps of training.

    VENV/bin/python -m experiments.parity.preferences

Needs the extra 'parity'. The loss functions are those of TRL's trainers, called on trainers without a data set; the
optimizer is torch's Adam. Writes tests/tasks/goldens_preferences.json.
"""

import copy
import json
import os
import types
from collections import defaultdict

os.environ['HF_HUB_OFFLINE'] = '1'

import torch
import transformers
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from experiments import record
from experiments.parity import cases
from experiments.parity.preference_cases import (
    B1,
    B2,
    BATCH,
    CONFIG,
    EPS,
    KTO,
    PREFERENCES,
    RATE,
    REFERENCE_FREE,
    REWARD_CONFIG,
    REWARDS,
    STEPS,
    labelled,
    log_probs,
    pairs,
)

PATH = record.ROOT / 'tests' / 'tasks' / 'goldens_preferences.json'
ACCELERATOR = types.SimpleNamespace(
    device='cpu', gather_for_metrics=lambda x: x, gather=lambda x: x, unwrap_model=lambda x: x
)


class Trained(torch.nn.Module):
    """What a trainer asks of its own model; the models of the losses are arguments."""

    is_gradient_checkpointing = False


def trainer(kind, **settings):
    """A trainer of TRL without a data set, for its loss function."""
    self = object.__new__(kind)
    self.__dict__ |= {
        'accelerator': ACCELERATOR,
        'model': Trained(),
        '_metrics': {'train': defaultdict(list)},
        '_total_train_tokens': 0,
        '_tp_size': 1,
        'aux_loss_enabled': False,
        'precompute_ref_logps': False,
        'ld_alpha': None,
        'f_divergence_type': 'reverse_kl',
        'use_weighting': False,
        'label_smoothing': 0.0,
        'loss_weights': [1.0],
    }
    self.__dict__ |= settings
    return self


class Fused(torch.nn.Module):
    """A causal model with the outputs of TRL's fused head: log-probabilities of labels, 0 where the label is -100."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, labels, use_cache=False, fused_lm_head=True):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        labels = labels[:, 1:]
        known = labels != -100
        each = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        values = torch.where(known, each, torch.zeros_like(each))
        zeros = torch.zeros_like(values).detach()
        return types.SimpleNamespace(
            log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=torch.zeros_like(known)
        )


class LogProbs(torch.nn.Module):
    """Outputs with given sums of log-probabilities, all at the first target."""

    def __init__(self, sums):
        super().__init__()
        self.sums = sums

    def forward(self, input_ids, **_):
        values = torch.zeros(input_ids.shape[0], input_ids.shape[1] - 1)
        values[:, 0] = self.sums
        zeros = torch.zeros_like(values)
        return types.SimpleNamespace(log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def filled(config):
    """A model with weights by name, see `cases.weights`."""
    config = dict(config)
    names = config.pop('architectures')
    settings = transformers.AutoConfig.for_model(config.pop('model_type'), **config)
    model = getattr(transformers, names[0])._from_config(settings, attn_implementation='eager').eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(cases.weights(key, tuple(parameter.shape))))
    return model


def padded(texts, prefix: str = '') -> dict[str, torch.Tensor]:
    """Columns of (prompt, completion) ids, padded on the right."""
    length = max(len(prompt) + len(completion) for prompt, completion in texts)
    columns = {name: torch.zeros(len(texts), length, dtype=torch.long) for name in ('input_ids', 'attention_mask')}
    columns['completion_mask'] = torch.zeros(len(texts), length, dtype=torch.long)
    for row, (prompt, completion) in enumerate(texts):
        size = len(prompt) + len(completion)
        columns['input_ids'][row, :size] = torch.tensor(prompt + completion)
        columns['attention_mask'][row, :size] = 1
        columns['completion_mask'][row, len(prompt) : size] = 1
    return {prefix + name: column for name, column in columns.items()}


def trajectory(model, loss_of) -> list[float]:
    """The losses of STEPS steps, the first before any update; batch n has the rows from BATCH n on."""
    optimizer = torch.optim.Adam(model.parameters(), RATE, (B1, B2), EPS)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(BATCH * step % len(pairs()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def pair_batch(begin: int) -> dict[str, torch.Tensor]:
    """The pairs from `begin` on, all chosen sides before the rejected ones."""
    rows = pairs()[begin : begin + BATCH]
    return padded([(prompt, chosen) for prompt, chosen, *_ in rows] + [(row[0], row[2]) for row in rows])


def of_preferences() -> dict:
    goldens = {}
    fixed = log_probs()
    own, reference = (
        LogProbs(torch.cat([torch.from_numpy(fixed[prefix + name]) for name in ('chosen', 'rejected')]))
        for prefix in ('', 'reference ')
    )
    sizes = [*fixed['chosen tokens'], *fixed['rejected tokens']]
    columns = padded([([1], [3] * int(size)) for size in sizes])
    for name, (_, settings, kind) in PREFERENCES.items():
        losses = []
        for index in range(8):
            rows = [index, index + 8]
            one = trainer(trl.DPOTrainer, loss_types=[kind], ref_model=LogProbs(reference.sums[rows]), args=ARGS)
            one.beta = settings['beta']
            batch = {key: column[rows] for key, column in columns.items()}
            losses.append(one._compute_loss(LogProbs(own.sums[rows]), batch, False).item())
        model = Fused(filled(CONFIG))
        whole = trainer(trl.DPOTrainer, loss_types=[kind], ref_model=copy.deepcopy(model), args=ARGS, **settings)
        steps = trajectory(model, lambda begin: whole._compute_loss(model, pair_batch(begin), False))  # noqa: B023
        goldens[name] = {'fixed': losses, 'steps': steps}
    smoothed = []
    for index in range(8):  # the AOT loss sorts a batch, here of one pair
        rows = [index, index + 8]
        one = trainer(trl.DPOTrainer, loss_types=['aot'], ref_model=LogProbs(reference.sums[rows]), args=ARGS, beta=0.1)
        one.label_smoothing = 0.2
        batch = {key: column[rows] for key, column in columns.items()}
        smoothed.append(one._compute_loss(LogProbs(own.sums[rows]), batch, False).item())
    return goldens | {'dpo, label smoothing 0.2': {'fixed': smoothed}}


ARGS = types.SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None)


def of_reference_free() -> dict:
    """The losses of fixed mean log-probabilities. ORPO: the odds-ratio term alone, without fine-tuning."""
    fixed = log_probs()
    means = [torch.from_numpy(fixed[name] / fixed[f'{name} tokens']).float() for name in ('chosen', 'rejected')]
    settings = REFERENCE_FREE['simpo']
    simpo = trainer(CPOTrainer, loss_type='simpo', alpha=0.0, beta=settings['beta'])
    simpo.simpo_gamma = settings['target_margin']
    orpo = trainer(ORPOTrainer, **REFERENCE_FREE['orpo'])
    return {
        'simpo': {'fixed': simpo.cpo_loss(*means)[0].tolist()},
        'orpo': {'fixed': (-orpo.odds_ratio_loss(*means)[0]).tolist()},
    }


def of_rewards() -> dict:
    goldens = {}
    for name, settings in REWARDS.items():
        model = filled(REWARD_CONFIG)
        args = types.SimpleNamespace(center_rewards_coefficient=settings['centring'] or None)
        whole = trainer(trl.RewardTrainer, args=args)

        def loss_of(begin):
            batch = pair_batch(begin)
            del batch['completion_mask']
            if settings['margin']:  # noqa: B023
                batch['margin'] = torch.tensor([row[3] for row in pairs()[begin : begin + BATCH]])
            return whole.compute_loss(model, batch)  # noqa: B023

        goldens[name] = {'steps': trajectory(model, loss_of)}
    return goldens


def of_kto() -> dict:
    goldens = {}
    for name, settings in KTO.items():
        model = Fused(filled(CONFIG))
        whole = trainer(trl.KTOTrainer, loss_type='kto', calculate_KL=True, ref_model=copy.deepcopy(model), args=ARGS)
        whole.beta = settings['beta']
        whole.desirable_weight, whole.undesirable_weight = settings['desirable'], settings['undesirable']

        def loss_of(begin):
            rows = labelled()[begin : begin + BATCH]
            shifted = [(rows[n][0], rows[n - 1][1]) for n in range(len(rows))]
            batch = padded([row[:2] for row in rows]) | padded(shifted, 'KL_')
            batch['label'] = torch.tensor([row[2] for row in rows])
            return whole._compute_loss(model, batch, False)  # noqa: B023

        goldens[name] = {'steps': trajectory(model, loss_of)}
    return goldens


def main():
    torch.manual_seed(0)
    shapes = {
        name: {key: list(parameter.shape) for key, parameter in filled(config).named_parameters()}
        for name, config in (('causal', CONFIG), ('reward', REWARD_CONFIG))
    }
    goldens = {
        'trl': trl.__version__,
        'shapes': shapes,
        'preference': of_preferences() | of_reference_free(),
        'reward': of_rewards(),
        'kto': of_kto(),
    }
    text = json.dumps(goldens, separators=(',', ':')).replace('},"', '},\n"') + '\n'
    PATH.write_text(text, encoding='utf-8')
    print(text)


if __name__ == '__main__':
    main()
