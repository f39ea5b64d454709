import json
import math
import sys

import pytest

from configs import base
from lmtrain.report import page as report

CONFIG = json.loads(base.get_config().to_json())
CONFIG['model']['width'] = 192
CONFIG['data']['source'] = 'a|b.txt'


def write_lines(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def a_run(folder, *, evaluated=True, sampled=True):
    """Writes the folder of a run of 300 steps."""
    folder.mkdir()
    lines, timings = [], []
    for step in range(10, 301, 10):
        loss = 3.0 + 5.0 * math.exp(-step / 60)
        lines.append({'step': step, 'batch': 'c0ffee', 'loss': 'nan' if step == 50 else loss, 'nats': loss})
        timings.append({'step': step, 'tokens_per_second': 100.0 * step, 'data_wait': 0.01})
        if evaluated and step % 100 == 0:
            lines.append({'step': step, 'validation_loss': loss, 'validation_bits_per_byte': loss / 2})
    write_lines(folder / 'metrics.jsonl', lines)
    write_lines(folder / 'timings.jsonl', timings)
    results = {'cost': {'steps': 300, 'tokens': 2_457_600, 'flops': 1.3e14, 'seconds': 245.0, 'peak_memory': 1.1e9}}
    results |= {'plan': {'steps': 300, 'seconds': 100.0, 'peak_memory': 1e9}}
    if evaluated:
        last = {
            'loss': loss,
            'perplexity': math.exp(loss),
            'bits_per_token': loss / math.log(2),
            'bits_per_byte': loss / 2,
        }
        results |= {'validation': last, 'baselines': {'unigram': 3.312, 'bigram': 1.862, 'xz': 1.3}}
    (folder / 'results.json').write_text(json.dumps(results))
    starts = [
        {
            'time': 'then',
            'resumed_from': None,
            'changed': {},
            'command': 'lmtrain train --config=x',
            'versions': {'jax': '0'},
        },
        {
            'time': 'now',
            'resumed_from': 200,
            'changed': {},
            'versions': {'jax': '1.2.3'},
            'machine': {'device': '8 x cpu', 'cores': 2},
        },
    ]
    write_lines(folder / 'lineage.jsonl', starts)
    if sampled:
        (folder / 'samples.txt').write_text("--- 'def '\ndef f():\n    ```\n    return 1\n")
    return folder


def test_complete_run(tmp_path):
    page = report.write(a_run(tmp_path / 'quick'), CONFIG).read_text()
    assert page.startswith('# quick\n\n**1.517 bits per byte** on validation text, less than bigram (1.862)')
    assert 'not less than xz (1.300)' in page
    for expected in (
        '| steps | 300 |',
        '| tokens, padding included | 2.46M |',
        '| FLOPs of the model | 130 TFLOP |',
        '| wall time with evaluation and saving | 4m 05s |',
        '| tokens per second, median | 15,500 |',
        '| peak memory | 1.10 GB |',
        '| `model.width` | `192` | `256` |',
        '| `data.source` | `"a\\|b.txt"` | `"python"` |',
        'lmtrain train --config=x',
        'started 2 times; the later starts resumed from step 200',
        '![loss over steps, with the baselines](loss.png)',
        '| device | 8 x cpu |\n| cores | 2 |\n| jax | 1.2.3 |',
    ):
        assert expected in page, expected
    rows = [
        line.split('|')[1].strip()
        for line in page.split('## Result')[1].split('## Curve')[0].splitlines()
        if '|' in line
    ]
    assert rows[2:] == ['**this model**, validation', 'xz', 'bigram', 'unigram']
    # The sample contains a fence, so the fence around it is longer.
    assert "````text\n--- 'def '" in page and page.count('````') == 2
    assert page.index('## Samples') < page.index('## What was run')  # which has the whole config
    picture = (tmp_path / 'quick/loss.png').read_bytes()
    assert picture.startswith(b'\x89PNG') and len(picture) > 10_000


def test_texts_of_a_model_stay_in_their_code(tmp_path):
    folder = a_run(tmp_path / 'run')
    row = {'step': 1, 'prompt': 'a|b', 'completion': 'x `` <img src=y> ```', 'reward': 1.0, 'ended': True}
    write_lines(folder / 'completions.jsonl', [row])
    assert r'| `a\|b` | ```` x `` <img src=y> ``` ```` |' in report.write(folder, CONFIG).read_text(encoding='utf-8')


def test_limited_evaluation_is_stated(tmp_path):
    folder = a_run(tmp_path / 'run')
    assert 'The others are measured on the same validation text.' in report.write(folder, CONFIG).read_text()
    page = report.write(folder, CONFIG | {'evaluate': CONFIG['evaluate'] | {'max_batches': 8}}).read_text()
    assert 'bits per byte** on a random sample of at most 8 batches of validation text' in page
    assert 'on all of the validation text, this model on a random sample of at most 8 batches of it.' in page
    assert 'same validation text' not in page


def test_data_section_of_a_mixture(tmp_path):
    folder = a_run(tmp_path / 'run')
    results = json.loads((folder / 'results.json').read_text())
    own = {'bits_per_byte': 1.25, 'loss': 2.5, 'perplexity': 12.18, 'bits_per_token': 3.61}
    results['validation']['sources'] = {'a.txt': own, 'b/': own | {'bits_per_byte': 1.75}}
    source = {
        'name': 'a.txt',
        'weight': 1.0,
        'files': 1,
        'documents': 1,
        'bytes': 9000,
        'divided': 'tails',
        'skipped': {},
    }
    other = source | {'name': 'b/', 'weight': 0.25, 'files': 2, 'skipped': {'.png': 3, 'empty': 1}}
    split = {'documents': 2, 'bytes': 15_000, 'tokens': 5000}
    results['data'] = {'sources': [source, other], 'splits': {'train': split, 'test': split | {'bytes': 5000}}}
    (folder / 'results.json').write_text(json.dumps(results))
    starts = [json.loads(line) for line in (folder / 'lineage.jsonl').read_text().splitlines()]
    starts[0]['command'] = 'lmtrain train --workdir=caf\udce9'  # a name that is not UTF-8, in Python
    write_lines(folder / 'lineage.jsonl', starts)
    page = report.write(folder, CONFIG).read_text(encoding='utf-8')
    for expected in (
        '| this model, `b/` alone (weight 0.25) | 1.7500 | 2.5000 | 12.18 | 3.6067 |',
        '* `a.txt`: weight 1: 1 file, 1 document, 9.00 kB; the tail of each document is held out.',
        '* `b/`: skipped 3 .png, 1 empty.',
        '| train | 2 | 15,000 | 75.0 % | 5,000 |',
        '--workdir=caf\\udce9',
    ):
        assert expected in page, expected


@pytest.mark.parametrize('loss', ['nan', 'inf'])
def test_non_finite_evaluation_is_not_drawn(tmp_path, loss):
    folder = a_run(tmp_path / 'run')
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({'step': 301, 'validation_loss': loss, 'validation_bits_per_byte': loss}) + '\n')
    report.write(folder, CONFIG)
    assert (folder / 'loss.png').stat().st_size > 10_000


def test_page_is_reproducible(tmp_path):
    folder = a_run(tmp_path / 'run')
    first = report.write(folder, CONFIG).read_text()
    assert report.write(folder, CONFIG).read_text() == first
    (folder / 'samples.txt').write_text('other words\x1b[2J', encoding='utf-8')
    assert 'other words\ufffd[2J' in report.write(folder, CONFIG).read_text(encoding='utf-8')


def test_run_without_evaluation_and_samples(tmp_path):
    page = report.write(a_run(tmp_path / 'run', evaluated=False, sampled=False), CONFIG).read_text()
    for expected in ('no final evaluation', 'The run was not evaluated', 'The run has no samples'):
        assert expected in page
    assert (tmp_path / 'run/loss.png').exists()


def test_run_that_has_just_started(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'metrics.jsonl').write_text('{"step": 1, "batch": "a", "loss": 3.0}\n{"step": 2, "ba')
    page = report.write(folder, base.get_config().to_dict()).read_text()  # with its tuples
    assert 'no curve' in page and not (folder / 'loss.png').exists()
    for expected in (
        'has the cost of the run',
        'There is no difference',
        'command was not recorded',
        'versions were not recorded',
    ):
        assert expected in page


def test_broken_files_are_named(tmp_path):
    folder = a_run(tmp_path / 'run')
    (folder / 'metrics.jsonl').write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match='metrics.jsonl:2: invalid JSON'):
        report.write(folder, CONFIG)
    (folder / 'results.json').write_text('{')
    with pytest.raises(ValueError, match='results.json: invalid JSON'):
        report.write(folder, CONFIG)


def test_no_curve_is_drawn_without_log_plot(tmp_path):
    folder = a_run(tmp_path / 'run')
    page = report.write(folder, CONFIG | {'log': CONFIG['log'] | {'plot': False}}).read_text()
    assert 'config.log.plot is False: no curve.' in page and not (folder / 'loss.png').exists()


def test_plot_needs_no_display(tmp_path):
    report.write(a_run(tmp_path / 'run'), CONFIG)
    assert 'matplotlib.pyplot' not in sys.modules, 'pyplot looks for a display and keeps figures'


def test_plan_and_actual_cost(tmp_path):
    page = report.write(a_run(tmp_path / 'quick'), CONFIG).read_text()
    assert '| peak memory | 1.00 GB | 1.10 GB | 1.10 |' in page
    assert '| wall time with evaluation and saving | 1m 40s | 4m 05s | 2.45 |' in page
    assert '| tokens, padding included |' in page.partition('## Plan and actual')[0]
    assert '| tokens, padding included |' not in page.partition('## Plan and actual')[2]  # tokens have no plan


def cells(page, row):
    """The cells of the table row that begins with `row`."""
    (line,) = [line for line in page.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


def test_result_cells(tmp_path):
    loss = 3.0 + 5.0 * math.exp(-5)
    folder = a_run(tmp_path / 'run')
    results = json.loads((folder / 'results.json').read_text())
    results['baselines']['tie'] = loss / 2  # equal to this model: not less
    (folder / 'results.json').write_text(json.dumps(results))
    page = report.write(folder, CONFIG).read_text()
    figures = [f'**{loss / 2:.4f}**', f'{loss:.4f}', f'{math.exp(loss):.4g}', f'{loss / math.log(2):.4f}']
    assert cells(page, '**this model**, validation') == figures
    assert cells(page, 'xz') == ['1.3000', '', '', '']
    assert 'less than bigram (1.862), unigram (3.312); not less than xz (1.300), tie (1.517).' in page


def test_medians_and_last_command(tmp_path):
    folder = a_run(tmp_path / 'run')
    write_lines(
        folder / 'timings.jsonl', [{'step': step, 'tokens_per_second': value} for step, value in enumerate((1, 2, 9))]
    )
    with (folder / 'lineage.jsonl').open('a') as file:
        file.write(json.dumps({'resumed_from': 250, 'command': 'lmtrain train --config=y'}) + '\n')
    page = report.write(folder, CONFIG).read_text()
    assert cells(page, 'tokens per second, median') == ['2']
    assert 'lmtrain train --config=y' in page and '--config=x' not in page
    assert 'started 3 times; the later starts resumed from step 200, 250' in page


def test_member_and_domain_cells(tmp_path):
    folder = a_run(tmp_path / 'run')
    results = json.loads((folder / 'results.json').read_text())
    rows = [
        {'seed': seed, 'learning_rate': rate, 'order': 7, 'loss': loss, 'bits_per_byte': loss / 2}
        for seed, rate, loss in ((3, 0.001, 2.0), (4, 0.001, 2.4), (3, 0.01, 2.8))
    ]
    intervals = [
        {'learning_rate': 0.001, 'members': 2, 'bits_per_byte': [1.1, 0.9, 1.3], 'loss': [2.2, 1.8, 2.6]},
        {'learning_rate': 0.01, 'members': 1, 'bits_per_byte': [1.4, None, None], 'loss': [2.8, None, None]},
    ]
    results['sweep'] = {'members': rows, 'intervals': intervals}
    measured = {'old': (1.25, 1.5), 'new.txt': (4.0, 2.0)}
    results['domains'] = {
        name: {'before': {'bits_per_byte': before}, 'after': {'bits_per_byte': after}}
        for name, (before, after) in measured.items()
    }
    (folder / 'results.json').write_text(json.dumps(results))
    page = report.write(folder, CONFIG).read_text()
    assert '| 1 | 0.001 | 4 | 7 | 1.2000 | 2.4000 |' in page
    assert '| 0.001 | 2 | 1.1000 (0.9000 to 1.3000) | 2.2000 (1.8000 to 2.6000) |' in page
    assert '| 0.01 | 1 | 1.4000 (one member) | 2.8000 (one member) |' in page
    assert 'Best by validation: **learning rate 0.001, of it member 0 (seed 3)**' in page
    assert cells(page, 'old') == ['1.2500', '1.5000', '+20.0 %']
    assert cells(page, 'new.txt') == ['4.0000', '2.0000', '-50.0 %']


def test_plot_content(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path: figures.append(figure))
    folder = a_run(tmp_path / 'run')
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    lines[7]['nats'] = 'nan'  # a step with a non-finite loss is left out
    write_lines(folder / 'metrics.jsonl', lines)
    report.write(folder, CONFIG)
    training, _, validation, *_ = figures[0].axes[0].lines
    finite = [line for line in lines if 'loss' in line and line.get('nats') != 'nan']
    assert list(training.get_xdata()) == [line['step'] for line in finite]
    # In bits per byte: the last evaluation has two nats per token for each bit per byte.
    assert list(training.get_ydata()) == pytest.approx([line['nats'] / 2 for line in finite])
    assert list(validation.get_xdata()) == [100, 200, 300]
    assert list(validation.get_ydata()) == pytest.approx(
        [(3 + 5 * math.exp(-step / 60)) / 2 for step in (100, 200, 300)]
    )
    assert figures[0].axes[0].get_ylabel() == 'bits per byte'
    low, high = figures[0].axes[0].get_ylim()
    assert low < 1.3 and high > 3.312  # the baselines are in the plot


def test_training_curve_has_the_bytes_of_training_tokens(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path: figures.append(figure))
    folder = a_run(tmp_path / 'run')
    results = json.loads((folder / 'results.json').read_text(encoding='utf-8'))
    sizes = {'documents': 1, 'bytes': 3000, 'tokens': 1000}
    results['data'] = {'sources': [], 'splits': {'train': sizes, 'validation': sizes | {'bytes': 2885}}}
    (folder / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    report.write(folder, CONFIG)
    training, _, validation, *_ = figures[0].axes[0].lines
    assert training.get_ydata()[-1] == pytest.approx((3 + 5 * math.exp(-5)) / 3 / math.log(2))
    assert validation.get_ydata()[-1] == pytest.approx((3 + 5 * math.exp(-5)) / 2)  # as evaluated


def test_baseline_off_scale_is_labelled_at_the_edge(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path: figures.append(figure))
    folder = a_run(tmp_path / 'run')
    results = json.loads((folder / 'results.json').read_text(encoding='utf-8'))
    results['baselines'] |= {'xz': 90.0, 'bigram': 0.001}
    (folder / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    report.write(folder, CONFIG)
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    labels = {text.get_text(): text.xy[1] for text in axes.texts}
    assert high < 12 and labels['xz 90.00 ↑'] == high
    assert [name for name in labels if name.startswith('unigram 3.31') and '↑' not in name]


def test_plot_range_includes_validation(tmp_path):
    """Points outside of the axes would shrink the plot."""
    folder = a_run(tmp_path / 'run')
    lines = [{'step': step, 'loss': 5.5 + 1e-4 * step, 'nats': 5.5} for step in range(1, 9)]
    lines += [{'step': 8, 'validation_loss': 9.0, 'validation_bits_per_byte': 4.5}]
    write_lines(folder / 'metrics.jsonl', lines)
    report.write(folder, CONFIG)  # warnings of matplotlib are errors
    assert (folder / 'loss.png').stat().st_size > 10_000


def test_scores_of_a_task_have_the_number_of_rows_they_were_measured_on(tmp_path):
    folder = a_run(tmp_path / 'run')
    scores = {'loss': 0.2319, 'accuracy': 1.0, 'targets': 3.0}
    for unit, verdict, row in (({'unit': 'row'}, '3 rows', ['3 rows']), ({}, 'the rows', [])):
        results = {'validation': scores} | unit
        (folder / 'results.json').write_text(json.dumps(results))
        page = report.write(folder, CONFIG).read_text()
        assert f'**loss 0.2319, accuracy 1.0000** on {verdict} of validation.' in page
        assert cells(page, 'validation') == ['0.2319', '1.0000', *row]
