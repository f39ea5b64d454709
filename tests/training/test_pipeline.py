"""A pipeline: stages in order on one base, one held-out score, and a second call that continues."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import sft
from launch import cli, recipe
from lmtrain import rewards, tree
from lmtrain.data.chat.load import open_template
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError
from lmtrain.training import load as loading
from lmtrain.training import pipeline, reward_scores

ROWS = 'generated:sort,rows=200,length=3'
STAGES = (pipeline.Stage('first'), pipeline.Stage('second', 'first'))


def config(cache, base: bool):
    own = sft.get_config()
    own.data.cache = str(cache)
    own.data.seq_len, own.data.batch_size = 24, 8
    own.task.train = own.task.validation = own.task.test = (ROWS,)
    own.data.tokenizer = 'base' if base else 'bytes'
    own.model.num_layers, own.model.width, own.model.num_heads = 1, 16, 2
    own.budget.steps, own.evaluate.every_steps, own.checkpoint.every_steps = 8 if base else 4, 4, 4
    own.sample.prompts = ()
    return own


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(folder, configs, results) of a pipeline of two stages."""
    folder = tmp_path_factory.mktemp('pipeline')
    configs = {'first': config(folder / 'cache', False), 'second': config(folder / 'cache', True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pipeline.PIPELINES, 'both', STAGES)
        results = pipeline.run('both', configs, folder / 'runs')
        yield folder / 'runs', configs, results


@pytest.mark.slow
def test_stages_follow_each_other_and_share_a_score(trained):
    folder, _, results = trained
    assert [each['stage'] for each in results] == ['first', 'second'] and [each['steps'] for each in results] == [4, 8]
    assert json.loads((folder / 'pipeline.json').read_text(encoding='utf-8')) == results
    saved = json.loads((folder / 'second' / 'config.json').read_text(encoding='utf-8'))
    assert saved['init']['base'] == str(folder / 'first')
    assert all(0 <= each['greedy'] <= 1 and 0 <= each['sampled'] <= 1 and not each['failures'] for each in results)


@pytest.mark.slow
def test_score_is_the_mean_reward_of_greedy_completions(trained, monkeypatch):
    folder, configs, results = trained
    rows = pipeline.held_out_rows(configs['first'])
    assert len(rows) > 10 and {row.fields['prompt'] for row in rows}.isdisjoint(
        row.fields['prompt'] for row in pipeline.read_rows(ROWS, '', split='train')
    )
    model = loading.load_run(folder / 'second')
    texts = []

    def reward(prompts, completions, fields):
        assert [each['prompt'] for each in fields] == prompts
        texts.extend(completions)
        return rewards.Scored(np.arange(len(prompts), dtype=np.float32), {}, {'odd': 1})

    mean = (len(rows) - 1) / 2
    scored = pipeline.score(model, rows, ('prompt',), reward)
    assert scored == {'greedy': mean, 'sampled': mean, 'failures': {'odd': 2}}
    greedy, sampled = texts[: len(rows)], texts[len(rows) :]
    assert len(sampled) == len(rows) and greedy != sampled


def completions_of(model, rows, **settings):
    """The greedy completions that are scored, and the prompts that the reward reads."""
    calls = []

    def reward(prompts, completions, fields):
        calls.append((prompts, completions))
        return rewards.Scored(np.zeros(len(prompts), np.float32), {}, {})

    pipeline.score(model, rows, (), reward, **settings)
    return calls[0][1], calls[0][0]


def test_a_long_prompt_does_not_shorten_the_other_completions(trained):
    model = loading.load_run(trained[0] / 'second')
    model = model._replace(end_ids=[])  # completions as long as they may be
    short, long = Row('1', {'prompt': '1 2'}), Row('2', {'prompt': '3' * (model.model.max_len - 2)})
    (alone,), _ = completions_of(model, [short])
    (beside, last), _ = completions_of(model, [short, long])
    assert len(alone) > len(last) and beside == alone
    (limited,), _ = completions_of(model, [short], max_tokens=8)
    assert alone.startswith(limited) and len(limited) == 8 < len(alone)


@pytest.mark.parametrize(('max_tokens', 'kept'), [(2, 8), (64, 5)])
def test_a_prompt_beyond_the_context_is_cut_at_its_beginning(monkeypatch, max_tokens, kept):
    """It keeps its first token and leaves room for a completion; one that fits is not cut."""
    tokenizer, read = Bytes(), []
    monkeypatch.setattr(
        pipeline.sample, 'generate', lambda model, params, ids, **_: read.append(ids) or [SimpleNamespace(ids=[])] * 2
    )
    own = SimpleNamespace(tokenizer=tokenizer, template=None, params={'layers': {}}, end_ids=[])
    own.model = SimpleNamespace(max_len=10, position_offset=0)
    rows = [Row('1', {'prompt': 'abcdefghi'}), Row('2', {'prompt': 'abcdefghijkl'})]
    completions_of(own, rows, max_tokens=max_tokens)
    begin = tokenizer.begin_id
    assert read[0] == read[1] == [[begin, *b'abcdefghi'], [begin, *b'abcdefghijkl'[1 - kept :]]]


def test_completion_is_scored_as_a_rollout_reads_it(monkeypatch):
    """With its first space, which a SentencePiece model drops at the beginning of a text; before, it was dropped."""

    class Dropping(Bytes):
        def decode(self, ids):
            return super().decode(ids).removeprefix(' ')

    generated = [SimpleNamespace(ids=[*b' 12'])]
    monkeypatch.setattr(pipeline.sample, 'generate', lambda *_, **__: generated)
    own = SimpleNamespace(tokenizer=Dropping(), template=None, params={'layers': {}}, end_ids=[])
    own.model = SimpleNamespace(max_len=10, position_offset=0)
    assert completions_of(own, [Row('1', {'prompt': 'a'})]) == ([' 12'], ['a'])


def test_conversations_and_questions_are_scored(trained):
    model = loading.load_run(trained[0] / 'second')
    model = model._replace(template=open_template('plain', model.tokenizer, '', '2026-01-01'))
    turns = [{'role': role, 'content': content} for role, content in zip(('user', 'assistant'), ('1 2', '3'))]
    rows = [Row('1', {'messages': turns}), Row('2', {'question': '1 2', 'answer': '3'}), Row('3', {'prompt': '1 2'})]
    completions, prompts = completions_of(model, rows)
    assert prompts == ['1 2'] * 3 and len(set(completions)) == 1


def test_rows_without_a_prompt_are_named_before_the_first_stage(trained, tmp_path, monkeypatch):
    _, configs, _ = trained
    first = configs['first'].copy_and_resolve_references()
    row = {'text': 'a', first.reward.field: 'b'}
    (tmp_path / 'rows.jsonl').write_text(json.dumps(row) + '\n', encoding='utf-8')
    first.task.test = (str(tmp_path / 'rows.jsonl'),)
    monkeypatch.setattr(pipeline.training, 'train', lambda *_: pytest.fail('a stage was trained'))
    with pytest.raises(InputError, match=r'rows\.jsonl'):
        pipeline.run('both', configs | {'first': first}, tmp_path / 'runs')


def test_completions_are_scored_as_long_as_a_policy_samples_them(trained, tmp_path, monkeypatch):
    _, configs, _ = trained
    second, limits = configs['second'].copy_and_resolve_references(), []
    second.task.name, second.policy.max_tokens = 'policy', 100
    results = {'validation': {'loss': 1.0}, 'cost': {'steps': 1, 'seconds': 1.0}}
    monkeypatch.setattr(pipeline.training, 'train', lambda own, to: to.mkdir(parents=True) or results)
    monkeypatch.setattr(pipeline.loading, 'load_run', lambda *_: None)
    monkeypatch.setattr(pipeline, 'score', lambda *arguments: limits.append(arguments[-1]) or {})
    pipeline.run('both', configs | {'second': second}, tmp_path)
    second.policy.max_tokens = 8
    pipeline.run('both', configs | {'second': second}, tmp_path / 'short')
    assert limits == [100, 100, 64, 64]


def test_a_reward_file_that_fails_after_the_first_stage_is_counted_in_a_later_call_too(trained, tmp_path, monkeypatch):
    """The first call of a process that continues a pipeline is not that of the pipeline."""
    _, configs, _ = trained
    fails, interrupted = tmp_path / 'fails', []
    (tmp_path / 'own.py').write_text(
        f'import pathlib\ndef reward(p, c):\n    if pathlib.Path({str(fails)!r}).exists(): raise KeyError("oh")\n'
        '    return [1.0] * len(c)\n',
        encoding='utf-8',
    )
    first = configs['first'].copy_and_resolve_references()
    first.reward.update(verifier='', file=str(tmp_path / 'own.py'))

    def train(own, to):
        if to.name == 'second' and not interrupted:
            interrupted.append(to)
            raise KeyboardInterrupt
        to.mkdir(parents=True, exist_ok=True)
        return {'validation': {'loss': 1.0}, 'cost': {'steps': 1, 'seconds': 1.0}}

    def score(model, rows, text, reward, max_tokens):
        scored = reward(['p'], ['c'], [{}])
        return {'greedy': float(scored.total[0]), 'sampled': 0.0, 'failures': scored.failures}

    monkeypatch.setattr(pipeline.training, 'train', train)
    monkeypatch.setattr(pipeline.loading, 'load_run', lambda *_: None)
    monkeypatch.setattr(pipeline, 'score', score)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run('both', configs | {'first': first}, tmp_path / 'runs')
    fails.touch()
    results = pipeline.run('both', configs | {'first': first}, tmp_path / 'runs')
    assert [each['greedy'] for each in results] == [1.0, 0.0]
    assert results[1]['failures'] == {"file: KeyError: 'oh' (line 3)": 1}
    with pytest.raises(InputError, match="the first call failed: KeyError: 'oh'"):
        pipeline.run('both', configs | {'first': first}, tmp_path / 'another')


def test_a_second_call_runs_nothing_again(trained, monkeypatch):
    folder, configs, results = trained
    monkeypatch.setattr(pipeline.training, 'train', lambda *_: pytest.fail('a finished stage was trained again'))
    assert pipeline.run('both', configs, folder) == results


def test_a_call_continues_at_the_stage_that_is_not_finished(trained, monkeypatch):
    folder, configs, results = trained
    calls, train = [], pipeline.training.train
    monkeypatch.setattr(pipeline.training, 'train', lambda own, to: calls.append(to.name) or train(own, to))
    (folder / 'second' / 'stage.json').rename(folder / 'kept.json')
    again = pipeline.run('both', configs, folder)
    assert calls == ['second']
    assert [{**each, 'seconds': 0} for each in again] == [{**each, 'seconds': 0} for each in results]


RUN = """lambda configs, folder: (
    pipeline.PIPELINES.update(both=(pipeline.Stage('first'), pipeline.Stage('second', 'first'))),
    pipeline.run('both', {name: config_of(values) for name, values in configs.items()}, folder),
)"""


@pytest.mark.slow
def test_a_pipeline_that_was_killed_ends_with_the_same_bits(trained, tmp_path, kill):
    folder, configs, results = trained
    kill([('kill@7', RUN, {name: each.to_dict() for name, each in configs.items()}, str(tmp_path))])
    assert (tmp_path / 'first' / 'stage.json').exists() and not (tmp_path / 'second' / 'stage.json').exists()
    again = pipeline.run('both', configs, tmp_path)
    assert [{**each, 'seconds': 0} for each in again] == [{**each, 'seconds': 0} for each in results]
    one, other = (tree.flatten(loading.load_run(each / 'second').params) for each in (folder, tmp_path))
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])


def test_settings_of_later_stages_are_checked_before_the_first_is_trained(trained, tmp_path):
    _, configs, _ = trained
    changed = configs['second'].copy_and_resolve_references()
    changed.budget.steps = -3
    with pytest.raises(InputError, match='the stage second: budget.steps = -3'):
        pipeline.run('both', configs | {'second': changed}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_others_start_from_is_no_sweep(trained, tmp_path):
    _, configs, _ = trained
    first = configs['first'].copy_and_resolve_references().unlock()
    first.sweep.seeds = (0, 1)
    message = 'the stage first: config.sweep has 2 members, and the stage second starts from one model'
    with pytest.raises(InputError, match=message):
        pipeline.run('both', configs | {'first': first}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('method', ['lora', 'ia3', 'prompt', 'prefix'])
def test_two_adapters_of_one_kind_are_refused_before_the_first_stage(tmp_path, monkeypatch, method):
    """Before, the first stage was trained, and the second refused."""
    monkeypatch.setitem(pipeline.PIPELINES, 'both', STAGES)
    monkeypatch.setattr(pipeline, '_run_stage', lambda stage, *_: pytest.fail(f'{stage.name} is run'))
    configs = {'first': config(tmp_path / 'cache', False), 'second': config(tmp_path / 'cache', True)}
    for own in configs.values():
        own.adapt.method = method
    message = f"config.second.adapt.method = config.first.adapt.method = '{method}': .*--merge --to=DIR"
    with pytest.raises(InputError, match=message):
        pipeline.run('both', configs, tmp_path / 'runs')
    # A stage that has begun, on a base that was merged by hand, goes on; and so do two methods.
    monkeypatch.setattr(pipeline, '_run_stage', lambda stage, *_: 1 / 0)
    (tmp_path / 'runs' / 'second').mkdir(parents=True)
    (tmp_path / 'runs' / 'second' / 'config.json').write_text('{}', encoding='utf-8')
    with pytest.raises(ZeroDivisionError):  # the first stage begins
        pipeline.run('both', configs, tmp_path / 'runs')
    configs['first'].adapt.lora.alpha = 3.0  # the leaves have the same names
    with pytest.raises(InputError, match=message):
        pipeline.run('both', configs, tmp_path / 'alpha')
    configs['first'].adapt.update({'method': 'full'} if method != 'lora' else {'lora': {'rank': (('.*/mlp/.*', 4),)}})
    with pytest.raises(ZeroDivisionError):  # the first stage begins
        pipeline.run('both', configs, tmp_path / 'others')


def test_a_finished_stage_keeps_its_settings(trained):
    folder, configs, _ = trained
    changed = configs['first'].copy_and_resolve_references()
    changed.optimizer.learning_rate = 0.5
    with pytest.raises(InputError, match=r'first is finished with optimizer.learning_rate = 0.002, not 0.5'):
        pipeline.run('both', configs | {'first': changed}, folder)


def test_a_pipeline_needs_held_out_rows(tmp_path):
    own = config(tmp_path, False)
    own.task.test = ()
    with pytest.raises(InputError, match=r'config\.task\.test of the first stage is \(\)'):
        pipeline.held_out_rows(own)
    own.task.train, own.task.test = 'mine.jsonl', ('generated:sort',)
    with pytest.raises(InputError, match=r"'generated:sort'.* and config.task.train = .*mine.* of the same task"):
        pipeline.held_out_rows(own)


def test_the_table_fits_the_terminal():
    row = {
        'stage': 'reward_model',
        'greedy': None,
        'sampled': None,
        'validation': {'loss': 0.51234},
        'steps': 12_000,
        'seconds': 4000.0,
    }
    text = pipeline.table([row, row | {'stage': 'ppo', 'greedy': 0.9123, 'sampled': 0.5}])
    assert '0.912' in text and '12,000' in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize('name', pipeline.PIPELINES)
def test_stages_of_a_pipeline_are_recipes_on_the_same_rows(name):
    stages = pipeline.PIPELINES[name]
    configs = [recipe.load(f'configs/{stage.name}.py') for stage in stages]
    for index, stage in enumerate(stages):
        earlier = [each.name for each in stages[:index]]
        assert {stage.base, stage.reward_model} - {''} <= set(earlier) and bool(stage.base) == bool(index)
    assert len({(each.task.validation, each.task.test) for each in configs}) == 1
    assert pipeline.held_out_rows(configs[0]) and configs[0].reward.verifier


@pytest.mark.parametrize(
    ('changes', 'weights'),
    [
        ({}, (('model', 1.0), ('exact', 0.0))),
        ({'file': 'own.py'}, (('model', 1.0), ('file', 1.0), ('exact', 0.0))),
        ({'verifier': ''}, (('model', 1.0),)),
        ({'weights': (('model', 1.0), ('exact', 0.5))}, (('model', 1.0), ('exact', 0.5))),
    ],
)
def test_a_policy_learns_from_the_reward_model_and_its_verifier_is_measured(changes, weights, tmp_path):
    own = recipe.load('configs/ppo.py').unlock()
    own.reward.update(changes)
    pipeline._set_inputs(pipeline.PIPELINES['sft_ppo'][-1], own, tmp_path)
    assert (own.init.base, own.reward.model) == (str(tmp_path / 'sft'), str(tmp_path / 'reward_model'))
    assert own.reward.weights == weights


@pytest.mark.slow
def test_a_shipped_pipeline_learns_from_its_own_reward_model(tmp_path):
    names = [stage.name for stage in pipeline.PIPELINES['sft_ppo']]
    configs = {name: recipe.load(f'configs/{name}.py').unlock() for name in names}
    for own in configs.values():
        own.data.cache, own.data.batch_size = str(tmp_path / 'cache'), 8
        own.task.train = own.task.validation = own.task.test = (ROWS,)
        own.model.update(num_layers=1, width=16, num_heads=2)
        own.budget.steps = own.evaluate.every_steps = own.checkpoint.every_steps = 4
        own.evaluate.max_batches = 1
    configs['ppo'].policy.update(prompts=4, samples=4, epochs=1, show_every=1)  # two rollouts of two steps
    results = pipeline.run('sft_ppo', configs, tmp_path / 'runs')
    assert [(each['stage'], each['steps']) for each in results] == [(name, 4) for name in names]
    assert [each['greedy'] is None for each in results] == [False, True, False]  # a reward model writes no text
    measured = results[-1]['validation']
    assert measured.keys() >= {'reward_model', 'reward_exact'} and measured['reward'] == measured['reward_model']
    lines = (tmp_path / 'runs' / 'ppo' / 'completions.jsonl').read_text(encoding='utf-8').splitlines()
    samples = [json.loads(line) for line in lines]
    texts = [[each[name] for each in samples] for name in ('prompt', 'completion')]
    scores = reward_scores.score_texts(str(tmp_path / 'runs' / 'reward_model'), *texts)
    assert len(samples) == 8 and scores.std() > 0
    np.testing.assert_allclose([each['reward'] for each in samples], scores, rtol=1e-4, atol=1e-5)


def test_flags_change_the_recipe_of_a_stage(monkeypatch):
    calls = []
    monkeypatch.setattr(pipeline, 'run', lambda *arguments: calls.append(arguments))
    flags = ['--config.grpo.policy.samples=4', '--config.sft.seed=3', '--workdir=here']
    assert cli.main(['pipeline', '--name=sft_grpo', *flags]) == 0
    (name, configs, workdir), *_ = calls
    assert (name, list(configs), workdir) == ('sft_grpo', ['sft', 'grpo'], 'here')
    assert configs['grpo'].policy.samples == 4 and configs['sft'].seed == 3 and configs['grpo'].seed == 0


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--name=sft_grop'], '--name=sft_grop: it is one of sft_dpo, '),
        ([], 'it is one of sft_dpo'),
        (['--name=sft_dpo', '--config.ppo.seed=1'], '--config.ppo: the stages of sft_dpo are sft, dpo'),
        (['--name=sft_dpo', '--config.dpo.sede=1'], 'unknown field config.sede'),
    ],
)
def test_wrong_flags_are_named(flags, message, capsys):
    assert cli.main(['pipeline', *flags]) == 2
    assert message in capsys.readouterr().err.replace('\n', ' ')
