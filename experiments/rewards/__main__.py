"""What do supervised fine-tuning, DPO, REINFORCE, GRPO and PPO reach on a task whose answers a program verifies?

python -m experiments.rewards                  # 3 seeds
python -m experiments.rewards --quick          # one seed, a few steps: whether it runs
python -m experiments.rewards --workdir=DIR    # the folder of the runs; the same command continues there
"""

import argparse
import importlib
import pathlib
import statistics

import numpy as np

from configs import sft
from experiments import cli, record
from lmtrain import files, rewards
from lmtrain.data.rows import Row
from lmtrain.inference import likelihood, prompts, sample
from lmtrain.report import terminal
from lmtrain.training import load as loading
from lmtrain.training import pipeline
from lmtrain.training.build import build
from lmtrain.training.resolve import resolve

SEEDS = (0, 1, 2)
BEFORE, AFTER, MINUTES, MEMORY = 0.3, 0.9, 20.0, 1.05  # targets
# {name: (recipe, what differs from it)}; each starts from the supervised base of its seed.
OBJECTIVES = {
    'supervised, right answers': ('sft', {'data.tokenizer': 'base', 'task.train': (sft.ROWS,), 'budget.steps': 60}),
    'DPO': ('dpo', {'objective.label_smoothing': 0.1}),
    'GRPO': ('grpo', {}),
    'REINFORCE leave-one-out': ('grpo', {'objective.name': 'rloo', 'objective.kl_estimator': 'k1'}),
    'PPO': ('ppo', {}),
}
WITH_TARGET = ('GRPO', 'PPO')
LORA = {'adapt.method': 'lora', 'adapt.lora.rank': (('.*/kernel', 8),)}
QUICK = {'budget.steps': 4, 'evaluate.every_steps': 4, 'evaluate.max_batches': 1}
SAMPLED = 128  # held-out prompts, from which the divergence is estimated
MAX_TOKENS = 12


def recipe(name: str, changes: dict):
    """The config of a recipe with changes."""
    config = importlib.import_module(f'configs.{name}').get_config()
    config.update_from_flattened_dict(changes)
    return config


def score(model: loading.LoadedModel, rows: list[Row]) -> dict:
    """{'greedy', 'sampled', 'failures'}: rewards of the completions of held-out prompts."""
    with rewards.build(recipe('sft', {}).reward) as reward:
        return pipeline.score(model, rows, ('prompt',), reward)


def divergence(model: loading.LoadedModel, base: loading.LoadedModel, rows: list[Row]) -> float | None:
    """KL divergence from the base in nats a completion: the mean of log p - log p_base over sampled completions.

    One completion of each of SAMPLED prompts, of those that ended; None if none did.
    """
    ids = [prompts.encode(row.fields['prompt'], model.tokenizer) for row in rows[:SAMPLED]]
    options = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'end_ids': model.end_ids}
    options |= {'vocab_size': model.tokenizer.vocab_size, 'absent': model.tokenizer.absent}
    sampled = sample.generate(model.model, model.params, ids, max_tokens=MAX_TOKENS, **options)
    texts = [
        likelihood.TokenPrompt(np.array(context, np.int32), (np.array([*each.ids, model.end_ids[0]], np.int32),))
        for context, each in zip(ids, sampled, strict=True)
        if each.finish_reason == 'stop'
    ]
    if not texts:
        return None
    own, other = (
        np.concatenate(likelihood.log_likelihoods(each.model, each.params, texts, len(texts)).nats)
        for each in (model, base)
    )
    return float(np.mean(own - other))


def trial(name: str, seed: int, workdir: pathlib.Path, quick: dict) -> dict:
    """One run from the base of a seed, from trial.json if it is finished."""
    source, changes = OBJECTIVES[name]
    base = workdir / f'base-{seed}'
    folder = workdir / f'{name.split(",")[0].replace(" ", "_")}-{seed}'
    finished = folder / 'trial.json'
    if not finished.exists():
        if not (base / 'results.json').exists():
            cli.train_here('sft', base, {'seed': seed} | quick)
        results = cli.train_here(source, folder, {'seed': seed, 'init.base': str(base)} | changes | quick)
        rows = pipeline.held_out_rows(recipe('sft', {}))
        start, end = loading.load_run(base, 'last'), loading.load_run(folder, 'last')
        figures = {'before': score(start, rows), 'after': score(end, rows)}
        figures |= {'kl': divergence(end, start, rows), 'minutes': results['cost']['seconds'] / 60}
        figures |= {'steps': results['cost']['steps'], 'rows': len(rows)}
        about = {'commit': record.git('rev-parse', 'HEAD'), 'processor': record.machine()['processor']}
        files.write_json(finished, {'objective': name, 'seed': seed} | about | figures)
    return files.read_json_object(finished)


def argument_bytes(workdir: pathlib.Path) -> list[dict]:
    """Bytes of the arguments of the compiled train step with LoRA: state and batch, which a step holds at its start."""
    entries = []
    for source in ('sft', 'dpo', 'grpo'):
        changes = LORA | {'init.base': str(workdir / f'base-{SEEDS[0]}'), 'data.tokenizer': 'base'}
        run = build(*resolve(recipe(source, changes)))
        *_, lowered = run.lowered().values()
        memory = lowered.compile().memory_analysis()
        entries.append({'memory_of': source, 'argument_bytes': memory.argument_size_in_bytes})
    return entries


def figure(name: str, trials: list[dict]) -> dict:
    """The row of an objective: means over the seeds, and the lowest and highest score."""
    own = [each for each in trials if each.get('objective') == name]
    parts = []
    for kind in ('greedy', 'sampled'):
        before, after = ([each[when][kind] for each in own] for when in ('before', 'after'))
        means = f'{statistics.mean(before):.1%} to {statistics.mean(after):.1%}'
        parts.append(f'{kind} {means} ({min(after):.1%} to {max(after):.1%})')
    minutes, kls = [each['minutes'] for each in own], [each['kl'] for each in own if each['kl'] is not None]
    parts.append(f'{statistics.mean(minutes):.1f} min')
    parts.append(f'KL {statistics.mean(kls):.1f} nats' if kls else 'no completion ended')
    reached = max(minutes) <= MINUTES and all(
        each['before'][kind] < BEFORE and each['after'][kind] > AFTER for each in own for kind in ('greedy', 'sampled')
    )
    target = f'every seed from < {BEFORE:.0%} to > {AFTER:.0%} in <= {MINUTES:.0f} min'
    what = f'{name}: held-out prompts that the completion answers, {terminal.counted(len(own), "seed")}'
    has_target = name in WITH_TARGET
    return record.row(what, '; '.join(parts), target if has_target else '', reached if has_target else None)


def memory_figures(entries: list[dict]) -> list[dict]:
    """The rows of the memory: each objective over supervised fine-tuning."""
    own = {each['memory_of']: each['argument_bytes'] for each in entries}
    return [
        record.row(
            f'{source} with LoRA: argument bytes of the step over those of sft with LoRA',
            f'{own[source] / own["sft"]:.3f}x ({own[source] / 2**20:.2f} MiB)',
            f'<= {MEMORY}x',
            own[source] / own['sft'] <= MEMORY,
        )
        for source in own
        if source != 'sft'
    ]


def earlier(trials: list[dict]) -> list[str]:
    """A note on the objectives that were trained before the present commit, in a folder that was continued."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for each in trials:
        if each['commit'] != record.git('rev-parse', 'HEAD'):
            names.setdefault((each['commit'][:10], each['processor']), {})[each['objective']] = None
    return [
        f'Trained at the earlier commit {commit}, on {processor}: {"; ".join(own)}.'
        for (commit, processor), own in names.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='one seed, a few steps; results.json is not written')
    parser.add_argument('--workdir', default='runs/experiment_rewards', type=pathlib.Path)
    arguments = parser.parse_args()
    workdir = arguments.workdir.absolute() / ('quick' if arguments.quick else 'whole')
    quick, seeds = (QUICK, SEEDS[:1]) if arguments.quick else ({}, SEEDS)
    trials = [trial(name, seed, workdir, quick) for name in OBJECTIVES for seed in seeds]
    memory = argument_bytes(workdir)
    figures = [*(figure(name, trials) for name in OBJECTIVES), *memory_figures(memory)]
    print(record.table([record.cells(each) for each in figures]))
    if arguments.quick:
        return
    record.write(
        'rewards',
        command='python -m experiments.rewards',
        figures=figures,
        trials=[*trials, *memory],
        not_shown=[
            *earlier(trials),
            'The recipes (rates, steps, prompts and samples of a rollout) were chosen on validation prompts of seed 0; '
            'the scores are of test prompts.',
            'Minutes are those of the training alone, without its start, compilation and the supervised base. Other '
            'programs shared the two cores: they are upper bounds.',
            'The divergence is estimated from one sampled completion of each of 128 test prompts, of those that ended.',
        ],
    )


if __name__ == '__main__':
    main()
