"""Texts about a comparison, from results.json alone: the answer table and the summary for a terminal."""

import textwrap

from lmtrain.compare.pages import recommendation, values
from lmtrain.compare.pages.values import Results, interval, percent
from lmtrain.report import terminal

WIDTH = 80  # columns of a terminal


def answer_table(results: Results) -> str:
    """The arms at the largest size as a markdown table: accuracy with interval, cost to create, cost of a query."""
    sizes = values.sizes(results)
    if not sizes:
        return 'No arm has a result.'
    size = sizes[-1]
    advised = recommendation.choose(results, size).arm
    lines = [
        f'| arm, {size:,} training rows | accuracy (95 % interval) | to create | for a query |',
        '|---|---|---|---|',
    ]
    for arm in values.scored(results, size):
        name = f'**{arm}**' if arm == advised else arm
        accuracy, limits, *costs = _row(results, arm, size)
        times = [values.cost(results, arm, size, field) for field in ('device_seconds', 'query_seconds')]
        costs = [cost if time is None else f'{cost}, {values.seconds(time)}' for cost, time in zip(costs, times)]
        cells = (name, f'{accuracy} ({limits})', *costs)
        lines.append(f'| {" | ".join(cell.replace("|", "&#124;") for cell in cells)} |')
    return '\n'.join(lines)


def terminal_summary(results: Results) -> str:
    """The recommendation, and a line for each arm with its accuracy and costs; at most 80 columns."""
    advice = recommendation.recommend(results)
    blocks = [textwrap.fill(advice.headline, WIDTH)]
    size = advice.choice.size
    if arms := values.scored(results, size):
        rows = [('arm', 'accuracy', '95 % interval', 'to create', 'for a query')]
        rows += [(textwrap.shorten(arm, 24, placeholder='...'), *_row(results, arm, size)) for arm in arms]
        blocks.append('\n'.join(terminal.table(rows, right=(1, 2, 3, 4))))
    blocks += [
        textwrap.fill(line, WIDTH, initial_indent='* ', subsequent_indent='  ')
        for line in [f'{label}: {text}' for label, text in advice.evidence] + advice.changes
    ]
    return '\n\n'.join(blocks[:2]) + '\n\n' + '\n'.join(blocks[2:])


def _row(results: Results, arm: str, size: int) -> tuple[str, ...]:
    entry = values.summary(results, arm, size)
    costs = [values.cost(results, arm, size, field) for field in ('create_flops', 'query_flops')]
    return (
        percent(entry['accuracy']),
        interval(entry.get('interval')),
        *(values.quantity(flops, 'FLOP') for flops in costs),
    )
