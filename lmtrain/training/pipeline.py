"""Runs that follow each other: supervised fine-tuning, then preferences or a policy, with one held-out score for all.

WORKDIR/STAGE/           an ordinary run
WORKDIR/STAGE/stage.json written when the stage is finished and scored: a finished stage is not run again
WORKDIR/pipeline.json    the table of all stages
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmtrain import files, rewards
from lmtrain.adapt.adapter import MERGE
from lmtrain.adapt.methods import adds_again
from lmtrain.data.rows import Row, read_rows
from lmtrain.data.verifiable_task import is_generated
from lmtrain.errors import InputError
from lmtrain.inference import prompts, sample
from lmtrain.models.virtual_tokens import room
from lmtrain.report import terminal
from lmtrain.tasks import TASKS, policy
from lmtrain.training import load as loading
from lmtrain.training import samples, sweep
from lmtrain.training import train as training
from lmtrain.training.checks import check_read, check_settings

FINISHED = 'stage.json'
MAX_TOKENS = 64  # of a completion that is scored, unless a policy among the stages samples longer ones
# The measure of results.json that the table shows: the first of these that the stage has.
MEASURES = ('accuracy', 'rewards/accuracies', 'reward', 'loss')


class Stage(NamedTuple):
    """A stage: the name of its recipe and folder, the stage of its base, and that of its reward model."""

    name: str
    base: str = ''
    reward_model: str = ''


PIPELINES = {
    'sft_dpo': (Stage('sft'), Stage('dpo', 'sft')),
    'sft_grpo': (Stage('sft'), Stage('grpo', 'sft')),
    'sft_ppo': (Stage('sft'), Stage('reward_model', 'sft'), Stage('ppo', 'sft', 'reward_model')),
}


def run(name: str, configs: Mapping[str, Any], workdir) -> list[dict[str, Any]]:
    """Trains the stages of a pipeline in order, or continues where an earlier call stopped.

    Args:
      name: of PIPELINES.
      configs: {stage: config}. The first one's `task.test` rows and `reward` are the held-out measure.
      workdir: created if it does not exist.

    Returns:
      For each stage {'stage', 'greedy' and 'sampled' (mean rewards of completions of held-out prompts, at temperature 0
      and 1; None if the model writes no text), 'failures', 'validation' (of results.json), 'steps', 'seconds'}.

    Raises what `training.train` raises, and InputError if a finished stage had another config, or naming a held-out row
    that is no prompt.
    """
    workdir = files.local_path(workdir, '--workdir').absolute()
    stages = PIPELINES[name]
    for stage in stages:  # also the later ones, before the first is trained
        try:
            check_settings(configs[stage.name])
            if not (workdir / stage.name / 'config.json').exists():
                check_read(configs[stage.name])
        except InputError as error:
            raise InputError(f'the stage {stage.name}: {error}') from None
        _check_inputs(stage, configs, workdir)
    rows = held_out_rows(configs[stages[0].name])
    measured = configs[stages[0].name]
    _prompts(rows, measured.task.text)  # raises
    sampled = [each.policy.max_tokens for each in configs.values() if TASKS[each.task.name].on_policy]
    max_tokens, results = max([MAX_TOKENS, *sampled]), []
    begun = any((workdir / stage.name / FINISHED).exists() for stage in stages)
    with rewards.build(measured.reward, root=measured.data.root, strict=not begun) as reward:
        reward.check(rows)
        for stage in stages:
            results.append(_run_stage(stage, configs[stage.name], workdir, measured, rows, reward, max_tokens))
            print(f'\n{table(results)}\n')
    files.write_json(workdir / 'pipeline.json', results, indent=1)
    return results


def _check_inputs(stage: Stage, configs: Mapping[str, Any], workdir: Path) -> None:
    """Raises InputError if a stage that has not begun cannot start from the models of the stages before it."""
    if (workdir / stage.name / 'config.json').exists():
        return
    for source in filter(None, (stage.base, stage.reward_model)):
        if members := sweep.of(configs[source]):
            raise InputError(
                f'the stage {source}: config.sweep has {len(members)} members, and the stage {stage.name} starts '
                'from one model: leave its lists empty'
            )
    if not stage.base:
        return
    own, before = configs[stage.name].adapt, configs[stage.base].adapt
    if adds_again(own, before):
        raise InputError(
            f'config.{stage.name}.adapt.method = config.{stage.base}.adapt.method = {own.method!r}: the stage '
            f'{stage.name} would add the leaves that its base has from the stage {stage.base} a second time: {MERGE}'
        )


def _run_stage(
    stage: Stage, config, workdir: Path, measured, rows: list[Row], reward, max_tokens: int
) -> dict[str, Any]:
    """The entry of one stage, from stage.json if it is finished."""
    folder = workdir / stage.name
    config = config.copy_and_resolve_references().unlock()
    settings = {field: repr(value) for field, value in files.flatten_fields(config.to_dict()).items()}
    finished = folder / FINISHED
    if finished.exists():
        saved = files.read_json_object(finished)
        for field, value in saved['settings'].items():
            if settings.get(field, value) != value:
                raise InputError(
                    f'{folder} is finished with {field} = {value}, not {settings[field]}: choose another --workdir'
                )
        return saved['result']
    _set_inputs(stage, config, workdir)
    print(terminal.note('stage', f'{stage.name} in {folder}'))
    trained = training.train(config.lock(), folder)
    result = {'stage': stage.name, 'greedy': None, 'sampled': None, 'failures': {}, 'validation': trained['validation']}
    if TASKS[config.task.name].predicts_tokens:
        model = loading.load_run(folder, 'last')
        result |= score(model, rows, measured.task.text, reward, max_tokens)
    result |= {'steps': trained['cost']['steps'], 'seconds': trained['cost']['seconds']}
    files.write_json(finished, {'result': result, 'settings': settings}, indent=1)
    return result


def _set_inputs(stage: Stage, config, workdir: Path) -> None:
    """Sets the base and the reward of a stage: the scores of the reward model. Its verifier is measured alone."""
    if stage.base:
        config.init.base, config.data.tokenizer = str(workdir / stage.base), 'base'
    if stage.reward_model:
        reward = config.reward
        reward.model = str(workdir / stage.reward_model)
        weights = {'model': 1.0} | ({'file': 1.0} if reward.file else {})
        weights |= {reward.verifier: 0.0} if reward.verifier else {}
        reward.weights = reward.weights or tuple(weights.items())


def held_out_rows(config) -> list[Row]:
    """The rows of config.task.test. Raises InputError if there are none."""
    names = config.task.test
    names = (names,) if isinstance(names, str) else names
    if not names:
        raise InputError('config.task.test of the first stage is (): it names the held-out rows of a pipeline')
    train = (config.task.train,) if isinstance(config.task.train, str) else config.task.train
    if any(map(is_generated, names)) and not any(map(is_generated, train)):
        raise InputError(
            f'config.task.test = {names} and config.task.train = {tuple(train)}: name held-out rows of the same task'
        )
    return [row for name in names for row in read_rows(name, config.data.root, split='test')]


def _prompts(rows: list[Row], text: Sequence[str]) -> list[prompts.Prompt]:
    """The prompts of rows, as a policy reads them. Raises InputError naming a row that has none."""
    return [policy.prompt_of(row, tuple(text)) for row in rows]


def score(
    model: loading.LoadedModel, rows: list[Row], text: Sequence[str], reward, max_tokens: int = MAX_TOKENS
) -> dict[str, Any]:
    """{'greedy', 'sampled': mean reward at temperature 0 and 1, 'failures': of both, see `rewards.Scored`}.

    Args:
      text: fields of the prompt, as config.task.text, see `policy.prompt_of`. The reward reads the last message of a
        conversation.
      max_tokens: of a completion, and at most what the context of the model has room for after its prompt.

    All rows are scored in every stage, also those that the training cuts or drops: a prompt beyond the context of the
    model is cut at its beginning, after its first token.
    """
    tokenizer, read = model.tokenizer, _prompts(rows, text)
    texts = [prompts.shown(each) for each in read]
    context = room(model.model, model.params)
    limit = context - min(max_tokens, context // 2)  # of a prompt that is cut: its completion needs room
    ids = [prompts.encode(each, tokenizer, model.template) for each in read]
    ids = [each if len(each) <= context else [*each[:1], *each[len(each) - limit + 1 :]] for each in ids]
    results: dict[str, Any] = {'failures': {}}
    for name, temperature in (('greedy', 0.0), ('sampled', 1.0)):
        generated = sample.generate(
            model.model,
            model.params,
            ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            seed=0,
            end_ids=model.end_ids,
            vocab_size=tokenizer.vocab_size,
            absent=tokenizer.absent,
        )
        written = [
            samples.continuation(tokenizer, prompt, each.ids, chats=True)
            for prompt, each in zip(ids, generated, strict=True)
        ]
        scored = reward(texts, written, [row.fields for row in rows])
        results[name] = float(scored.total.mean())
        for reason, count in scored.failures.items():
            results['failures'][reason] = results['failures'].get(reason, 0) + count
    return results


def table(results: list[dict[str, Any]]) -> str:
    """The table of the stages: held-out rewards, validation, steps, time."""
    lines = [('stage', 'greedy', 'sampled', 'validation', 'steps', 'time')]
    for each in results:
        name = next(name for name in MEASURES if name in each['validation'])
        value = each['validation'][name]
        scores = ('-' if each[kind] is None else f'{each[kind]:.3f}' for kind in ('greedy', 'sampled'))
        cells = (f'{name} {value:.4g}', f'{each["steps"]:,}', terminal.duration(each['seconds']))
        lines.append((each['stage'], *scores, *cells))
    return '\n'.join(terminal.table(lines, right=(1, 2, 4, 5)))
