"""`lmtrain cost`: a page in 80 columns for every kind of model, without data."""

import re

import pytest

from configs import tiny
from launch import cli, process_setup
from lmtrain.training import train


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # the verb sets it
    monkeypatch.chdir(tmp_path)  # without any data


def page(capsys, *words):
    code = cli.main(['cost', *words])
    text = ''.join(capsys.readouterr())
    assert code == 0, text
    assert max(map(len, text.splitlines())) <= 80
    return text


def row(text, name):
    return re.split(r'  +', re.search(rf'^  {name}  +(.*)$', text, re.MULTILINE)[1])


def test_page_of_gpt2_on_a_chip(capsys):
    """Published: 855 MFLOP a token (nanoGPT), 10 billion tokens; causal blocks of attention are 6 % fewer."""
    text = page(capsys, '--config=pretrain_gpt2', '--target=h100:1', '--config.plan.price=2')
    trained, create, _, stored, _, time, money = row(text, 'pretraining')
    assert (trained, stored) == ('124M', '498M')
    assert create == '8.82E'  # 8.5 E, and the logits a second time
    hours = float(create[:-1]) * 1e18 / 989.5e12 / 0.4 / 3600
    assert time == f'{int(hours)}h {round(hours % 1 * 60):02d}m'
    assert float(money) == pytest.approx(2 * hours, rel=0.01)
    assert row(text, 'soft prompt of 20')[0] == '15.4k' and row(text, 'BitFit')[0] == '102k'
    assert '!' not in text


def test_what_does_not_fit_on_a_device_is_marked(capsys):
    text = page(capsys, '--config=pretrain_llama_70b', '--target=h100:64')
    assert row(text, 'LoRA')[4].endswith('!')
    assert '  not shown  BitFit: ' in text  # it has no biases
    assert 'money' not in text.partition('assumed')[0]


def test_encoder_is_not_prompted(capsys):
    text = page(capsys, '--config=cramming_bert', '--config.budget.hours=None', '--config.budget.steps=10')
    assert ' shots' not in text and 'generate' not in text and '  not shown  prompts: an encoder' in text
    assert row(text, 'head')[0] == '7.69k'


def test_policies_and_cached_references_cost_more_than_their_steps(capsys):
    """LoRA by GRPO: per token of a step, the rollout at most; by DPO: a pass over the rows of the workload."""

    def create(*words):
        text = row(page(capsys, *words, '--target=h100:1'), 'LoRA')[1]
        return float(text[:-1]) * {'M': 1e6, 'G': 1e9, 'T': 1e12, 'P': 1e15, 'E': 1e18}[text[-1]]

    policy = ('--config=grpo', '--config.data.tokenizer=bytes', '--config.objective.kl_weight=0')
    once, twice = (create(*policy, f'--config.policy.epochs={epochs}') for epochs in (1, 2))
    assert once > 1.2 * twice  # the same steps, half of the rollouts
    pairs = ('--config=dpo', '--config.data.tokenizer=bytes')
    few, many = (create(*pairs, f'--train_rows={rows}') for rows in (1000, 9000))
    live = create(*pairs, '--config.objective.reference=live')
    assert few < many and few < live


def test_workload_and_errors(capsys):
    text = page(capsys, '--config=classify', '--shots=1', '--classes=3', '--row_tokens=20')
    assert row(text, '1 shot')
    assert cli.main(['cost', '--config=tiny', '--row_tokens=40']) == 2
    assert '--row_tokens=40' in capsys.readouterr().err
    assert cli.main(['cost', '--config=tiny', '--target=cpu:2']) == 2
    assert 'no speed' in capsys.readouterr().err


def test_pretraining_is_that_of_the_base(capsys, text, tmp_path):
    config = tiny.get_config()
    config.data.source, config.data.cache, config.data.validation = str(text), str(text.parent / 'cache'), 0.2
    config.budget.steps, config.sample.prompts, config.log.tensorboard = 2, (), False
    train.train(config, tmp_path / 'run')
    capsys.readouterr()
    base = f'--config.init.base={tmp_path / "run"}'
    shown = page(capsys, '--config=tiny', base, '--target=h100:1', '--config.budget.steps=3')
    assert f'  base       {2 * 8 * 32} tokens: those of the base' in shown
    assert f'  continual  {3 * 8 * 32} tokens: the budget of the recipe' in shown
    other = page(capsys, '--config=instruct', base, '--target=h100:1')
    assert '  continual  5.12 tokens: 1% of pretraining' in other and row(other, 'pretraining')[0] == '41.2k'


def test_a_device_holds_its_part_of_the_rows_of_pretraining(capsys):
    def memory(chips):
        text = row(page(capsys, '--config=classify', f'--target=h100:{chips}'), 'pretraining')[4].rstrip('!')
        return float(text[:-1]) * {'M': 1e6, 'G': 1e9}[text[-1]]

    assert memory(4) < memory(1)
