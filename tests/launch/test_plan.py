"""`lmtrain plan`: the needs of a run from its own compiled train step, without reading data."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from launch import cli, process_setup
from lmtrain.cost import hardware
from lmtrain.plan import compiled as forecast

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('here', 'no_compilation_cache')


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def plan(capsys, *words):
    code = cli.main(['plan', *words])
    out, err = capsys.readouterr()
    page = out if code == 0 else err  # a slow machine shows phases on stderr
    wide = [line for line in page.partition('to train')[0].splitlines() if len(line) > 80]
    assert code or not wide, wide
    return code, page


def test_the_tiny_recipe_on_simulated_devices(capsys):
    shape = ['--config.mesh.data=1', '--config.mesh.fsdp=8', '--config.data.source=nowhere/*.parquet']
    code, page = plan(capsys, '--config=tiny', '--target=cpu:8', *shape)
    assert code == 0
    assert 'cpu:8, 8 devices: fsdp=8' in page and 'the CPU compiler, 8 simulated devices' in page
    assert float(re.search(r'state and batch .* ([\d.]+)$', page, re.MULTILINE)[1]) <= 1.02
    assert float(re.search(r'([\d.]+) of it', page)[1]) == pytest.approx(1, abs=0.01)
    assert float(re.search(r'in all +([\d.]+) of the least', page)[1]) <= 1.05
    assert 'not modelled' in page


def test_one_device_exchanges_nothing(capsys):
    code, page = plan(capsys, '--config=tiny', '--target=cpu:1')
    assert code == 0 and 'one device' in page
    assert float(re.search(r'([\d.]+) of it', page)[1]) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_plan_is_unchanged_with_warm_compilation_cache(tmp_path):
    """With a recipe that imports models, and jax with them, before it is known for how many devices."""
    command = [sys.executable, '-m', 'launch.cli', 'plan', '--config=pretrain_gpt2', '--target=cpu:2']
    sizes = {'num_layers': 1, 'width': 32, 'num_heads': 2, 'num_kv_heads': 2, 'head_dim': 16, 'mlp_dim': 64}
    sizes['vocab_size'] = 264
    command += [f'--config.model.{name}={value}' for name, value in sizes.items()]
    command += ['--config.data.seq_len=32', '--config.data.batch_size=2', '--config.optimizer.accumulate=1']
    environment = {name: value for name, value in os.environ.items() if not name.startswith('JAX')}
    environment |= {'HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
    pages = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pages.append(done.stdout)
    assert pages[0] == pages[1] and 'cpu:2, 2 devices' in pages[0]


def test_gpu_plan_uses_theory_and_data_sheet(capsys):
    code, page = plan(capsys, '--config=tiny', '--target=h100:8', '--config.plan.price=2.5')
    assert "on these GPUs by XLA: cudnn needs dtype 'bfloat16' or 'float16', not 'float32'" in ' '.join(page.split())
    assert code == 0
    assert 'simulated devices' in page
    assert all(re.search(rf'^  {row} ', page, re.MULTILINE) for row in ('bound by', 'MFU', 'tokens/s', 'money'))
    assert 'at 40% MFU' in page
    wanted = ['--config=tiny', '--target=h100:8', '--config.model.attention=cudnn']
    code, page = plan(capsys, *wanted, '--config.model.dtype=bfloat16')
    assert code == 0 and 'on these GPUs by cudnn' in page and page.rstrip().endswith('model.dtype=bfloat16')
    assert '--config.model.attention=cudnn' in page
    code, page = plan(capsys, *wanted)
    assert code == 2 and "model.attention='cudnn' needs dtype 'bfloat16' or 'float16', not 'float32'; choose" in page


@pytest.mark.slow
def test_way_out_of_a_run_that_does_not_fit(capsys, monkeypatch):
    """At the same batch size; judged by the compiler if that finds more than theory."""
    words = ['--config=tiny', '--target=h100:1', "--config.data.source=it's.txt"]
    code, page = plan(capsys, *words)
    assert code == 0 and re.search('  fits +yes: ', page)
    *_, title, first, second = page.splitlines()
    assert (title, first) == ('to train it', '  lmtrain train --config=tiny \\')
    assert second == """    --config.'data.source=it'"'"'s.txt'"""
    memory = float(re.search(r'fits +yes: ([\d.]+) MB', page)[1]) * 1e6
    monkeypatch.setitem(hardware.CHIPS, 'h100', hardware.CHIPS['h100']._replace(memory=0.9 * memory))
    code, page = plan(capsys, *words)
    assert code == 0 and re.search('  fits +yes: ', page) and '  fits       no: ' not in page
    assert re.search(r'^  changed +optimizer.accumulate=\d.*; the recipe as it is: no: ', page, re.MULTILINE)
    command = page[page.index('lmtrain train') :]
    changes = re.findall(r'--config\.(optimizer\.accumulate|model\.remat)=(\w+)', command)
    assert changes and int(dict(changes)['optimizer.accumulate']) in (1, 2, 4, 8)
    code, again = plan(capsys, *words, *(f'--config.{field}={value}' for field, value in changes))
    assert re.search('  fits +yes: ', again) and '  changed ' not in again
    assert '8 rows' not in again and re.search(r'256 tokens a step', again)
    monkeypatch.setitem(hardware.CHIPS, 'h100', hardware.CHIPS['h100']._replace(memory=1e5))
    code, page = plan(capsys, *words)
    assert page.endswith('no number of micro-batches makes it fit:\n  take more chips than h100:1, or --search\n')


def test_way_out_continues_after_a_compiler_failure(capsys, monkeypatch):
    monkeypatch.setattr(hardware.Target, 'devices', lambda self: jax.devices()[: self.chips])

    def compiled(run):
        fits = run.config.optimizer.accumulate >= 4
        return forecast.Compiled(**({'total': 7_000_000} if fits else {'too_large': 'RESOURCE_EXHAUSTED: by far'}))

    monkeypatch.setattr(forecast, 'compiled', compiled)
    code, page = plan(capsys, '--config=tiny', '--target=v5e:1x1')
    assert code == 0 and re.search(r'the recipe as it is: no:\s+RESOURCE_EXHAUSTED: by far', page)
    assert page.splitlines()[-1].split() == ['--config.optimizer.accumulate=4']


def test_verdict_is_not_below_the_compilers_figure(capsys, monkeypatch):
    monkeypatch.setattr(forecast, 'compiled', lambda run: forecast.Compiled(total=int(90e9), flops=1.0))
    _, page = plan(capsys, '--config=tiny', '--target=h100:8')
    page = ' '.join(page.split())
    assert re.search(r'fits no: 90.0 GB of 80.0 GB a device, by the CPU compiler; [\d.]+ [kM]B by theory', page)


def test_search_ranks_candidates_that_fit(capsys, monkeypatch):
    monkeypatch.setattr(forecast, 'compiled', lambda run: forecast.Compiled(total=7_000_000))
    words = ['--config=tiny', '--target=h100:8', '--search', '--config.data.batch_size=32']
    code, page = plan(capsys, *words, '--config.plan.price=2.5')
    assert code == 0
    rows = re.findall(r'^  (\d)  (\d)x(\d)x(\d) +(\w+) +(\d+) (.*)$', page, re.MULTILINE)
    assert [row[0] for row in rows] == list('123')
    for _, data, fsdp, tensor, _, micro, rest in rows:
        assert int(data) * int(fsdp) * int(tensor) == 8 and 32 % (int(data) * int(fsdp) * int(micro)) == 0
        assert re.fullmatch(r' +\S+ +\w+ +7.00 MB +0.0% +\S+ +\S+', rest), rest  # no column is empty
    command = page[page.index('lmtrain train') :]
    _, data, fsdp, tensor, remat, micro, _ = rows[0]
    for field, value in {'mesh.data': data, 'mesh.fsdp': fsdp, 'mesh.tensor': tensor, 'model.remat': remat}.items():
        assert f'--config.{field}={value}' in command
    assert f'--config.optimizer.accumulate={micro}' in command and '--config.data.batch_size=32' in command
    assert 'money' not in plan(capsys, *words)[1]


def test_search_compiles_until_candidates_fit(capsys, monkeypatch):
    """Of what did not fit, nothing of the same remat policy that needs as much is compiled again."""
    monkeypatch.setattr(hardware.Target, 'devices', lambda self: jax.devices()[: self.chips])
    asked = []

    def compiled(run):
        asked.append((run.model.remat, run.memory['total']))
        return forecast.Compiled(**({'total': 7_000_000} if run.model.remat == 'none' else {'too_large': 'far'}))

    monkeypatch.setattr(forecast, 'compiled', compiled)
    code, page = plan(capsys, '--config=tiny', '--target=v5e:2x4', '--search')
    assert code == 0 and f'{len(asked)} compiled' in page and page.count('7.00 MB') == 3
    for policy in ('full', 'dots'):
        refused = [memory for remat, memory in asked if remat == policy]
        assert refused == sorted(set(refused), reverse=True)
    monkeypatch.setattr(forecast, 'compiled', lambda run: forecast.Compiled(too_large='far'))
    code, page = plan(capsys, '--config=tiny', '--target=v5e:2x4', '--search')
    assert code == 2 and 'fits on v5e:2x4 by the compiler' in page


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--config=tiny'], '--target is missing'),
        (['--config=tiny', '--target=v5e:256'], '--target=v5e:4x4'),
        (['--target=h100:8'], '--config is missing'),
        (['--flops=1e20', '--hours=1'], 'one of --flops, --hours, --money'),
        (['--money=100', '--target=h100:8'], '--config.plan.price'),
        (['--hours=1', '--target=cpu:8'], 'unknown'),
        (['--hours=1'], '--target is missing'),
        (['--config=tiny', '--target=cpu:8', '--search'], '--search'),
        (['--config=tiny', '--target=h100:8', '--search', '--config.model.vocab_size=7'], 'set model.vocab_size'),
        (['--config=tiny', '--target=cpu:8', '--config.mesh.fsdp=3'], 'mesh'),
    ],
)
def test_invalid_flags_are_errors(capsys, words, said):
    code, page = plan(capsys, *words)
    assert code == 2 and said in page


def test_hours_and_money_are_converted_to_flops(capsys):
    hours, money = ['--hours=8'], ['--money=160', '--config.plan.price=2.5']
    by_hours, by_money = (plan(capsys, '--target=h100:8', *words) for words in (hours, money))
    assert by_hours == by_money and by_hours[0] == 0
    # 989.5 TFLOP/s each, of which config.plan.mfu = 0.4 is reached.
    assert by_hours == plan(capsys, f'--flops={8 * 3600 * 8 * 989.5e12 * 0.4}')


def test_the_compiler_of_a_tpu(capsys):
    if importlib.util.find_spec('libtpu') is None:
        pytest.skip('libtpu is missing (the extra `plan`)')
    mesh = ['--config.mesh.data=1', '--config.mesh.fsdp=2', '--config.mesh.tensor=2']
    code, page = plan(capsys, '--config=tiny', '--target=v5e:2x2', *mesh, '--config.data.seq_len=128')
    assert code == 0 and "the TPU's compiler" in page and "attention 'splash'" in page
