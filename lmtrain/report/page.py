"""The report of a run, report.md and loss.png, from its config and the files in its folder."""

import functools
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

from lmtrain.files import flatten_fields, read_json, read_json_lines
from lmtrain.report import calibration, evaluations, plot, terminal
from lmtrain.report.writers import numbers

LN2 = math.log(2)
BEST_OF_SWEEP = 'The best is the lowest loss of the rate with the lowest mean; the figures above are those of its rate.'
CURVE = '![{} over steps, with the baselines](loss.png)'
# Costs in results.json and timings.jsonl: (key, label, format).
COST = (
    ('steps', 'steps', '{:,}'.format),
    ('tokens', 'tokens, padding included', terminal.number),
    ('epochs', 'epochs', terminal.epochs),
    ('flops', 'FLOPs of the model', functools.partial(terminal.unit, name='FLOP')),
    ('reference_flops', 'of which the reference model, once', functools.partial(terminal.unit, name='FLOP')),
    ('rollout_flops', 'of which rollouts', functools.partial(terminal.unit, name='FLOP')),
    ('evaluation_flops', 'FLOPs of held-out completions, besides', functools.partial(terminal.unit, name='FLOP')),
    ('seconds', 'wall time with evaluation and saving', terminal.duration),
    ('rollout_seconds', 'of which rollouts', terminal.duration),
    ('tokens_per_second', 'tokens per second, median', '{:,.0f}'.format),
    ('flops_per_second', 'FLOP/s, median', functools.partial(terminal.unit, name='FLOP/s')),
    ('mfu', 'model FLOPs utilisation, median', terminal.percent),
    ('data_wait', 'time spent waiting for data', terminal.percent),
    ('peak_memory', 'peak memory', functools.partial(terminal.unit, name='B')),
    ('skipped', 'updates skipped because of a non-finite gradient', '{:,}'.format),
    ('parameters', 'parameters', '{:,}'.format),
    ('trainable', 'trainable parameters', '{:,}'.format),
)


def write(workdir: str | os.PathLike, config: Mapping[str, Any]) -> pathlib.Path:
    """Writes loss.png and report.md into the folder of a run, and returns the path of report.md. May be called again.

    Control characters, such as those in samples of a model of bytes, are replaced by U+FFFD.

    Reads metrics.jsonl, timings.jsonl, lineage.jsonl (the 'command', 'machine' and 'versions' of each start),
    samples.txt and results.json: {'validation', 'test': the results of `evaluate.in_bits`; 'baselines': {name: bits per
    byte of the validation split}; 'unit': `Task.unit`; 'data': the result of `data.Corpus.facts`; 'cost' and 'plan'
    (the prediction of the cost): {any key of `COST`: number}}. The report states which of them are missing.

    Args:
      config: that of the run with all present fields, as a nested dict (`Run.resolved`, `run_config.upgrade`): the
        config.json of an older run may have former names.

    Raises InputError naming file and line of a broken file.
    """
    folder = pathlib.Path(workdir)
    results = read_json(folder / 'results.json') if (folder / 'results.json').exists() else {}
    results = numbers(results) if 'sweep' in results else results
    names = ('metrics', 'timings', 'lineage', 'completions')
    lines, timings, starts, completions = (read_json_lines(folder / f'{name}.jsonl') for name in names)
    baselines = results.get('baselines') or {}
    curve = 'config.log.plot is False: no curve.'
    if config['log']['plot']:
        train_split = results['data']['splits']['train'] if 'data' in results else None
        plotted = plot.plot(lines, baselines, folder / 'loss.png', results.get('sweep'), train_split)
        curve = CURVE.format('reward' if evaluations.of_policy(lines) else 'loss')
        curve = curve if plotted else 'metrics.jsonl has fewer than two steps with a loss: no curve.'
    samples = folder / 'samples.txt'
    samples = samples.read_text(encoding='utf-8').strip('\n') if samples.exists() else ''
    batches = config['evaluate']['max_batches']  # 0 is all
    sample = f'a random sample of at most {batches:,} batches of ' if batches else ''
    page = [
        f'# {folder.resolve().name}\n',
        _verdict(results, baselines, sample),
        '## Result\n\n' + _results(results, baselines, sample),
        *(['## Members\n\n' + _members(results['sweep'])] if 'sweep' in results else []),
        *(['## Gained and forgotten\n\n' + _domains(results['domains'])] if 'domains' in results else []),
        *(['## Data\n\n' + _data(results['data'])] if 'data' in results else []),
        *(
            ['## Calibration\n\n' + calibration.section(results['calibration'], folder)]
            if 'calibration' in results
            else []
        ),
        '## Curve\n\n' + curve,
        *(['## Completions\n\n' + _completions(completions)] if completions else []),
        *(f'* {name}: {sentence}' for name, sentence in results.get('remarks', {}).items()),
        '## Samples\n\n' + (_fenced(samples, 'text') if samples.strip() else 'The run has no samples.'),
        '## Cost\n\n' + _cost(results, timings),
        *(['## Plan and actual\n\n' + _plan(results['plan'], results['cost'])] if 'plan' in results else []),
        '## What was run\n\n' + _config(config, starts),
        '## Machine\n\n' + _machine(starts),
    ]
    text = terminal.printable('\n\n'.join(part.strip() for part in page) + '\n')
    # The name of a file that is not UTF-8 has surrogates, which cannot be encoded.
    (folder / 'report.md').write_text(text, encoding='utf-8', errors='backslashreplace')
    return folder / 'report.md'


def _table(rows: list[tuple[str, ...]]) -> str:
    # In inline code too, where an entity would be shown as it is (GitHub Flavored Markdown, section 4.10).
    escaped = [' | '.join(cell.replace('|', r'\|') for cell in row) for row in rows]
    head, *body = [f'| {line} |' for line in escaped]
    return '\n'.join([head, '|' + '---|' * len(rows[0]), *body])


def _code(text: str) -> str:
    """A text as inline code, whose fence is longer than any in the text."""
    fence = '`' * (1 + max(map(len, re.findall('`+', text)), default=0))
    blank = ' ' * (len(fence) > 1)
    return f'{fence}{blank}{text}{blank}{fence}'


def _verdict(results: Mapping[str, Any], baselines: Mapping[str, float], sample: str) -> str:
    """The score in a sentence; `sample` is the part of the validation text that was evaluated, '' for all."""
    if not results.get('validation'):
        return 'This run has no final evaluation.'
    if 'bits_per_byte' not in results['validation']:
        size = terminal.measured_on(results['validation'], results.get('unit', '')) or 'the rows'
        return f'**{terminal.evaluation_line(results["validation"], {})}** on {size} of validation.'
    bits = results['validation']['bits_per_byte']
    ordered = sorted(baselines.items(), key=lambda item: item[1])
    worse = [f'{name} ({value:.3f})' for name, value in ordered if bits < value]
    better = [f'{name} ({value:.3f})' for name, value in ordered if bits >= value]
    text = f'**{bits:.3f} bits per byte** on {sample}validation text'
    if worse:
        text += ', less than ' + ', '.join(worse)
    if better:
        text += f'{";" if worse else ","} not less than ' + ', '.join(better)
    return text + '.'


def _results(results: Mapping[str, Any], baselines: Mapping[str, float], sample: str) -> str:
    if results.get('validation') and 'bits_per_byte' not in results['validation']:
        splits = {split: results[split] for split in ('validation', 'test') if results.get(split)}
        names = terminal.measures(results['validation'])
        sizes = {split: terminal.measured_on(of, results.get('unit', '')) for split, of in splits.items()}
        rows = [('', *(name.replace('_', ' ') for name in names), 'measured on')]
        rows += [(split, *(f'{of[name]:.4f}' for name in names), sizes[split]) for split, of in splits.items()]
        return _table(rows if any(sizes.values()) else [row[:-1] for row in rows])
    rows = [('', 'bits per byte', 'loss, nats per token', 'perplexity', 'bits per token')]
    for split in ('validation', 'test'):
        if scores := results.get(split):
            _, *cells = _scores('', scores)
            rows.append((f'**this model**, {split}', f'**{scores["bits_per_byte"]:.4f}**', *cells[1:]))
    rows += [(name, f'{value:.4f}', '', '', '') for name, value in sorted(baselines.items(), key=lambda item: item[1])]
    if len(rows) == 1:
        return 'The run was not evaluated: results.json has neither `validation` nor `baselines`.'
    sources = results['validation'].get('sources', {}) if results.get('validation') else {}
    if sources:
        weights = {source['name']: source['weight'] for source in results['data']['sources']}
        rows += [
            _scores(f'this model, {_code(name)} alone (weight {weights[name]:g})', own) for name, own in sources.items()
        ]
    text = f'on all of the validation text, this model on {sample}it' if sample else 'on the same validation text'
    return _table(rows) + (f'\n\nThe others are measured {text}.' if baselines else '')


def _scores(name: str, scores: Mapping[str, float]) -> tuple[str, ...]:
    loss = scores['loss']
    return name, f'{scores["bits_per_byte"]:.4f}', f'{loss:.4f}', f'{scores["perplexity"]:.4g}', f'{loss / LN2:.4f}'


def _members(swept: Mapping[str, Any]) -> str:
    """The mean and interval of each learning rate of a sweep, its members, and the best by validation."""
    first = swept['members'][0]
    unit = next(name for name in ('bits_per_byte', 'accuracy', 'loss') if name in first)  # the score of the task
    names = list(dict.fromkeys((unit, 'loss')))
    labels = [name.replace('_', ' ') for name in names]
    means = [('learning rate', 'members', *(f'{label}, mean (95 % interval)' for label in labels))]
    for group in swept['intervals']:
        means.append(
            (f'{group["learning_rate"]:g}', f'{group["members"]}', *(_interval(group[name]) for name in names))
        )
    rows = [('member', 'learning rate', 'seed', 'order of the data', *labels)]
    for index, row in enumerate(swept['members']):
        scores = (f'{row[name]:.4f}' for name in names)
        rows.append((f'{index}', f'{row["learning_rate"]:g}', f'{row["seed"]}', f'{row["order"]}', *scores))
    note = f'Means over the members of one learning rate. {BEST_OF_SWEEP}'
    best = f'Best by validation: **{evaluations.best_of_sweep(swept)}**.'
    return '\n\n'.join([best, note, _table(means), _table(rows)])


def _interval(estimate) -> str:
    mean, low, high = estimate
    return f'{mean:.4f} (one member)' if low is None else f'{mean:.4f} ({low:.4f} to {high:.4f})'


def _domains(domains: Mapping[str, Any]) -> str:
    """Bits per byte of each text before and after."""
    rows = [('validation text of', 'before', 'after', 'change')]
    for name, scores in domains.items():
        before, after = (scores[when]['bits_per_byte'] for when in ('before', 'after'))
        rows.append((name, f'{before:.4f}', f'{after:.4f}', f'{100 * (after / before - 1):+.1f} %'))
    return 'Bits per byte.\n\n' + _table(rows)


def _data(facts: Mapping[str, Any]) -> str:
    """Sources, splits, and skipped files."""
    total = sum(split['bytes'] for split in facts['splits'].values())
    rows = [('', 'documents', 'bytes', 'share', 'tokens')]
    for name, split in facts['splits'].items():
        share = f'{100 * split["bytes"] / total:.1f} %'
        rows.append((name, f'{split["documents"]:,}', f'{split["bytes"]:,}', share, f'{split["tokens"]:,}'))
    lines = [f'* {_code(name)}: {line}.' for name, line in terminal.sources(facts)]
    lines += [f'* {_code(name)}: skipped {line}.' for name, line in terminal.skipped(facts)]
    return '\n'.join(lines) + '\n\n' + _table(rows)


def _cost(results: Mapping[str, Any], timings: list[dict[str, Any]]) -> str:
    known = dict(results.get('cost') or {})
    for name in ('tokens_per_second', 'flops_per_second', 'mfu', 'data_wait'):
        values = [float(line[name]) for line in timings if name in line]
        if name not in known and values:
            known[name] = statistics.median(values)
    rows = [(label, show(known[key])) for key, label, show in COST if known.get(key) is not None]
    return _table([('', ''), *rows]) if rows else 'Neither results.json nor timings.jsonl has the cost of the run.'


def _plan(planned: Mapping[str, float], actual: Mapping[str, float]) -> str:
    """The predicted and the actual cost."""
    rows = [('', 'planned', 'actual', 'actual / planned')]
    for key, label, show in COST:
        if planned.get(key) and actual.get(key) is not None:
            rows.append((label, show(planned[key]), show(actual[key]), f'{actual[key] / planned[key]:.2f}'))
    note = 'Planned memory is computed for one device; on a CPU the actual memory is that of the whole process.'
    return f'{_table(rows)}\n\n{note}'


def _config(config: Mapping[str, Any], starts: list[dict[str, Any]]) -> str:
    from configs import base  # late: only the page needs the defaults

    standard = flatten_fields(json.loads(base.get_config().to_json()))
    own = flatten_fields(config)
    rows = [
        tuple(map(_code, (field, json.dumps(own.get(field)), json.dumps(standard.get(field)))))
        for field in sorted(own | standard)
        if json.dumps(own.get(field)) != json.dumps(standard.get(field))
    ]
    command = next((start['command'] for start in reversed(starts) if start.get('command')), None)
    parts = [_fenced(command, 'bash') if command else 'The command was not recorded.']
    if len(starts) > 1:
        resumed = ', '.join(f'{start.get("resumed_from") or 0:,}' for start in starts[1:])
        parts.append(f'The run was started {len(starts)} times; the later starts resumed from step {resumed}.')
    parts.append(
        'Differences from configs/base.py:\n\n' + _table([('field', 'this run', 'base'), *rows])
        if rows
        else 'There is no difference from configs/base.py.'
    )
    parts.append(
        '<details><summary>The whole config</summary>\n\n'
        + _fenced(json.dumps(config, indent=2), 'json')
        + '\n\n</details>'
    )
    return '\n\n'.join(parts)


def _completions(lines: list[dict[str, Any]]) -> str:
    """Sample completions of the first, the middle and the last rollout that was recorded."""
    steps = sorted({line['step'] for line in lines})
    rows = [('step', 'reward', 'ended', 'prompt', 'completion')]
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]}):
        for line in lines:
            if line['step'] == step:
                texts = (_inline(line[name]) for name in ('prompt', 'completion'))
                rows.append((f'{step:,}', f'{float(line["reward"]):.3g}', 'yes' if line['ended'] else 'no', *texts))
    return _table(rows)


def _inline(text: str, limit: int = 200) -> str:
    """A text of a model as inline code, on one line."""
    text = ' '.join(text.split())
    text = text if len(text) <= limit else f'{text[:limit]}...'
    return _code(text) if text else ''


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{fence}{language}\n{text}\n{fence}'


def _machine(starts: list[dict[str, Any]]) -> str:
    last = starts[-1] if starts else {}
    facts = flatten_fields({name: last[name] for name in ('machine', 'versions') if last.get(name)})
    rows = [(name.removeprefix('machine.').removeprefix('versions.'), str(value)) for name, value in facts.items()]
    return _table([('', ''), *rows]) if rows else 'Machine and versions were not recorded.'
