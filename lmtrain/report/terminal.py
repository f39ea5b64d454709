"""Text blocks of a run for a terminal: its data, tables, evaluation, and the format of numbers."""

import math
import os
import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from lmtrain.tree import Params

COUNTS = ('', 'k', 'M', 'B', 'T')
SI = ('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')
STYLES = {'bold': '1', 'dim': '2', 'accent': '36', 'bad': '31'}
GAP = '  '
OFF_SCALE = 3.0  # times the value of the model: where bars of baselines are cut
CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, '\n\t')}, '\ufffd')


def number(value: float, prefixes: tuple[str, ...] = COUNTS, significant: int = 3) -> str:
    """A number in two or three significant digits: 'B' is 10^9 in counts, and 'G' with `SI` prefixes.

    >>> number(950), number(12_345), number(124e6), number(7e9)
    ('950', '12.3k', '124M', '7.00B')
    """
    if not math.isfinite(value):
        return str(value)
    power = 0
    # 999.5 would have four digits.
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if abs(value) >= 99.95 or (power == 0 and value == int(value)) else 1 if abs(value) >= 9.995 else 2
    return f'{value:.{max(0, digits + significant - 3)}f}{prefixes[power]}'


def unit(value: float, name: str, significant: int = 3) -> str:
    """A quantity with SI prefix.

    >>> unit(3.41e12, 'FLOP/s'), unit(950, 'B')
    ('3.41 TFLOP/s', '950 B')
    """
    text = number(value, SI, significant)
    prefix = text[-1] if text[-1].isalpha() and math.isfinite(value) else ''
    return f'{text.removesuffix(prefix)} {prefix}{name}'


def duration(seconds: float) -> str:
    """A time in two units.

    >>> duration(42), duration(245), duration(3780), duration(187_200)
    ('42s', '4m 05s', '1h 03m', '2d 04h')
    """
    if not math.isfinite(seconds):
        return '?'
    whole = round(seconds)
    for size, name, smaller, small in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm'), (60, 'm', 1, 's')):
        if whole >= size:
            return f'{whole // size}{name} {whole % size // smaller:02d}{small}'
    return f'{whole}s'


def percent(share: float) -> str:
    return f'{100 * share:.0f}%' if share >= 0.0995 or share == 0 else f'{100 * share:.1f}%'


def printable(text: str) -> str:
    """`text` without control characters, which would act on a terminal: U+FFFD stands for each.

    >>> printable('a\\x1b[2Jb')
    'a\ufffd[2Jb'
    """
    return text.translate(CONTROL)


def style(text: str, name: str, on: bool = True) -> str:
    """`text` in an ANSI style if `on`."""
    return f'\x1b[{STYLES[name]}m{text}\x1b[0m' if on else text


def has_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours (no-color.org)."""
    return stream.isatty() and not os.environ.get('NO_COLOR') and os.environ.get('TERM') != 'dumb'


def table(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Lines with aligned columns; columns in `right` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        GAP.join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def parameters(trainable: 'Params', frozen: 'Params') -> str:
    """The table of parameters: path, shape, dtype, sharding, whether it is trainable, count.

    If the terminal is too narrow for one line per parameter, the path has a line of its own.

    Args:
      trainable, frozen: trees of arrays or shapes.
    """
    from lmtrain import tree  # late: the other functions need no jax

    rows = [('path', 'shape', 'dtype', 'sharding', 'train', 'count')]
    trainable_leaves, frozen_leaves = tree.flatten(trainable), tree.flatten(frozen)
    for path, leaf in sorted((trainable_leaves | frozen_leaves).items()):
        spec = getattr(getattr(leaf, 'sharding', None), 'spec', ())
        axes = ', '.join('-' if axis is None else str(axis) for axis in spec) if any(spec) else 'replicated'
        shape = ' x '.join(map(str, leaf.shape)) or 'scalar'
        is_trainable = 'yes' if path in trainable_leaves else 'no'
        rows.append((path, shape, str(leaf.dtype), axes, is_trainable, f'{math.prod(leaf.shape):,}'))
    rows.append(('total', '', '', '', '', f'{tree.count(trainable) + tree.count(frozen):,}'))
    lines = table(rows, right=(5,))
    if max(map(len, lines)) > shutil.get_terminal_size().columns:
        own_lines = [GAP + line for line in table([row[1:] for row in rows], right=(4,))]
        lines = [f'{path}\n{line}' for (path, *_), line in zip(rows, own_lines)]
    rule = '-' * max(len(part) for line in lines for part in line.split('\n'))
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def epochs(count: float) -> str:
    """A number of epochs.

    >>> epochs(0.034), epochs(2.0), epochs(1234.5)
    ('0.034', '2', '1.23k')
    """
    return f'{count:.2g}' if count < 9.95 else number(count)


HELD_OUT = {
    'document': 'whole documents are held out',
    'tail': 'the end of the text is held out',
    'tails': 'the tail of each document is held out',
}


def sources(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """[(name of a source, what was read of it)], from `data.Corpus.facts`."""
    rows = []
    for source in facts['sources']:
        parts = [] if source['name'].split(':')[0] in ('python', 'tfds') else [counted(source['files'], 'file')]
        parts += [counted(source['documents'], 'document'), unit(source['bytes'], 'B')]
        weight = f'weight {source["weight"]:g}: ' if len(facts['sources']) > 1 else ''
        rows.append((source['name'], f'{weight}{", ".join(parts)}; {HELD_OUT[source["divided"]]}'))
    return rows


def skipped(facts: Mapping[str, Any], limit: int = 1000) -> list[tuple[str, str]]:
    """[(name of a source, how many files were skipped and why)], of the sources with skipped files.

    The `limit` most frequent reasons are named, the others counted together.
    """
    rows = []
    for source in facts['sources']:
        reasons = sorted(source['skipped'].items(), key=lambda item: -item[1])
        parts = [f'{count:,} {reason}' for reason, count in reasons[:limit]]
        if len(reasons) > limit:
            parts.append(f'{sum(count for _, count in reasons[limit:]):,} other files')
        if parts:
            rows.append((source['name'], ', '.join(parts)))
    return rows


def text(facts: Mapping[str, Any]) -> str:
    """The data of a run for its header: sources, tables that are read as text, splits and skipped files."""
    several = len(facts['sources']) > 1
    lines = [('data', f'{name}: {line}' if several else line) for name, line in sources(facts)]
    tables = [source['name'] for source in facts['sources'] if source['name'].lower().endswith(('.csv', '.tsv'))]
    lines += [
        ('data', f'{name} is read as plain text; rows with labels: --config=configs/classify.py') for name in tables
    ]
    total = sum(split['bytes'] for split in facts['splits'].values())
    for name, split in facts['splits'].items():
        size = f'{unit(split["bytes"], "B")} ({100 * split["bytes"] / total:.1f}%)'
        lines.append((name, f'{size}, {number(split["tokens"])} tokens, {counted(split["documents"], "document")}'))
    lines += [('skipped', f'{name}: {line}' if several else line) for name, line in skipped(facts, limit=4)]
    return '\n'.join(note(*line) for line in lines)


def note(name: str, text: str) -> str:
    """A line of the header, wrapped at 80 columns: a name and a text."""
    options = {'break_long_words': False, 'break_on_hyphens': False}
    return textwrap.fill(text, 80, initial_indent=f'  {name:<11}', subsequent_indent=' ' * 13, **options)


def remark(text: str) -> str:
    """A line for what the user may not expect, wrapped at 80 columns.

    >>> remark('2 rows are left out')
    'note: 2 rows are left out'
    """
    return textwrap.fill(f'note: {text}', 80, subsequent_indent='  ')


def command(words: Sequence[str], begin: str = GAP) -> str:
    """A shell command, continued after a backslash where it is wider than 80 columns; `begin` is before its first line.

    >>> print(command(['lmtrain', 'generate', '--workdir=runs/a', '--prompt=a b'], 'next: '))
    next: lmtrain generate --workdir=runs/a --prompt='a b'
    """
    lines, line = [], begin.removesuffix(' ')
    for word in words:
        name, equals, value = word.partition('=')
        word = f'{name}={shlex.quote(value)}' if equals else shlex.quote(word)
        if len(f'{line} {word} \\') > 80 and line.strip():
            lines, line = [*lines, f'{line} \\'], ' ' * (len(begin) + 3)
        line += f' {word}'
    return '\n'.join([*lines, line])


def counted(count: int, noun: str) -> str:
    """A count and its noun.

    >>> counted(1, 'file'), counted(1200, 'file')
    ('1 file', '1,200 files')
    """
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'


def evaluation_line(results: Mapping[str, float], baselines: Mapping[str, float], unit: str = '') -> str:
    """One line about an evaluation (`evaluate.in_bits`) and the baselines, in bits per byte.

    Args:
      unit: `Task.unit`, whose number is added to the scores of a task; '' adds none.

    >>> evaluation_line({'loss': 0.2319, 'accuracy': 1.0, 'targets': 3.0}, {}, 'row')
    'loss 0.2319, accuracy 1.0000  (3 rows)'
    >>> evaluation_line({'loss': 0.2319, 'loss_stderr': 0.01, 'accuracy': 0.5, 'accuracy_stderr': 0.125}, {})
    'loss 0.2319 +- 0.0100, accuracy 0.5000 +- 0.1250'
    """
    if 'bits_per_byte' not in results:
        line = ', '.join(
            f'{name.replace("_", " ")} {results[name]:.4f}'
            + (f' +- {error:.4f}' if (error := results.get(f'{name}_stderr')) is not None else '')
            for name in measures(results)
        )
        return f'{line}  ({size})' if (size := measured_on(results, unit)) else line
    others = ', '.join(f'{name} {value:.2f}' for name, value in sorted(baselines.items(), key=lambda item: item[1]))
    # The evaluations of a training have no standard errors.
    loss = f' +- {error:.4f}' if (error := results.get('loss_stderr')) is not None else ''
    bits = f' +- {error:.4f}' if (error := results.get('bits_per_byte_stderr')) is not None else ''
    line = (
        f'loss {results["loss"]:.4f}{loss}, perplexity {results["perplexity"]:.4g}, '
        f'{results["bits_per_token"]:.2f} bits/token, {results["bits_per_byte"]:.3f}{bits} bits/byte'
    )
    return f'{line} ({others})' if others else line


def measured_on(results: Mapping[str, Any], unit: str) -> str:
    """'3 rows': the number of targets of an evaluation; '' if it or their unit is unknown, as in earlier folders."""
    return counted(round(results['targets']), unit) if unit and 'targets' in results else ''


def measures(results: Mapping[str, Any]) -> list[str]:
    """The names of the measures of a task, the loss first, without counts, standard errors and lists."""
    counts = ('loss', 'targets', 'bytes')
    first = [] if 'reward_error' in results else ['loss']  # the loss of a policy is minus its reward
    return [
        *first,
        *(
            name
            for name, x in results.items()
            if isinstance(x, float) and name not in counts and not name.endswith('_stderr')
        ),
    ]


def evaluation(ended: Mapping[str, Any], colour: bool = False) -> str:
    """The end of a run as a block: the scores, a bar per baseline and one for the model, the shortest first; notes.

    A bar of more than OFF_SCALE times the model's is cut and ends in '>'.

    Args:
      ended: the content of results.json: 'validation', and optionally 'unit', 'baselines', 'sweep' (its learning rates
        become a table) and 'remarks' ({name: sentence}).
    """
    results, baselines, title = ended['validation'], ended.get('baselines', {}), 'validation'
    notes = rate_table(ended['sweep']) if 'sweep' in ended else []
    notes += [note(*remark) for remark in ended.get('remarks', {}).items()]
    if 'bits_per_byte' not in results:
        text = evaluation_line(results, baselines, ended.get('unit', ''))
        line = textwrap.fill(text, 80, initial_indent=GAP, subsequent_indent=GAP)
        return '\n'.join([style(title, 'bold', colour), line, *notes])
    lines = [
        style(title, 'bold', colour),
        f'  loss {results["loss"]:.4f} nats   perplexity {results["perplexity"]:.4g}   '
        f'{results["bits_per_token"]:.3f} bits/token',
        '  bits per byte, lower is better',
    ]
    compared = sorted({**baselines, 'this model': results['bits_per_byte']}.items(), key=lambda item: item[1])
    widest = min(compared[-1][1], OFF_SCALE * results['bits_per_byte'])
    for name, value in compared:
        bar = bars(value / widest, 40) if value <= widest else bars(1.0, 39) + '>'
        line = f'    {name:<12}{value:6.3f}  {bar}'
        lines.append(style(line, 'accent', colour) if name == 'this model' else line)
    return '\n'.join([*lines, *notes])


def rate_table(swept: Mapping[str, Any]) -> list[str]:
    """Lines on the learning rates of a sweep: the mean loss of the members of each, and its interval."""
    rows = [('learning rate', 'members', 'mean loss', '95 % interval')]
    for group in swept['intervals']:
        mean, low, high = group['loss']
        span = '(one member)' if low is None else f'{low:.4f} to {high:.4f}'
        rows.append((f'{group["learning_rate"]:g}', f'{group["members"]}', f'{mean:.4f}', span))
    return [f'  {line}' for line in table(rows, right=(0, 1, 2))]


def bars(share: float, width: int) -> str:
    """A bar of `share` of `width` characters, in steps of an eighth of a character."""
    eighths = round(share * width * 8)
    return '█' * (eighths // 8) + ' ▏▎▍▌▋▊▉'[eighths % 8].strip()
