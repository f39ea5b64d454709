"""The figures of the experiment."""

import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLES = {
    'model': {'color': '#1f5fa8', 'marker': 'o', 'linewidth': 2.0, 'markersize': 4},
    'dMMSE': {'color': '#d1491b', 'linestyle': '--'},
    'ridge': {'color': '#2b8a3e', 'linestyle': '--'},
    'exact': {'color': '#d1491b', 'linestyle': '--'},
}
OTHERS = ({'color': '#a0a0a0', 'linestyle': ':'}, {'color': '#606060', 'linestyle': ':'})


def _figure(rows: int, columns: int, size: tuple[float, float]):
    figure = Figure(figsize=size, dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.grid(color='#e8e8e8', linewidth=0.7)
        each.set_axisbelow(True)
        each.spines[['top', 'right']].set_visible(False)
    return figure, axes


def regression(trials: list[dict], path: pathlib.Path) -> None:
    """Error over k: one column for each number of tasks; tasks of the pool above, new tasks below."""
    figure, axes = _figure(2, len(trials), (3.1 * len(trials), 5.6))
    for column, trial in enumerate(trials):
        for row, (kind, title) in enumerate((('pool', 'tasks of the pool'), ('new', 'new tasks'))):
            on, results = axes[row, column], trial['results'].get(kind)
            if results is None:
                on.axis('off')
                continue
            others = iter(OTHERS)
            for name in sorted(results['error'], key=lambda name: name == 'model'):
                style = STYLES.get(name) or next(others)
                on.plot(np.array(results['error'][name]) / trial['dimensions'], label=name, **style)
            tasks = f'{trial["tasks"]:,} tasks' if trial['tasks'] else 'a new task in each prompt'
            on.set_title(f'{tasks}: {title}', fontsize=9)
            on.set_ylim(0, 1.6)
            on.set_xlabel('examples k')
            if column == 0:
                on.set_ylabel('squared error / D')
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def ginc(trial: dict, path: pathlib.Path) -> None:
    """Cross-entropy over position, and accuracy over k, of the model and of the exact law."""
    figure, axes = _figure(1, 2, (8.4, 3.4))
    left, right = axes[0]
    for name in ('model', 'exact'):
        style = {key: value for key, value in STYLES[name].items() if key != 'marker'}
        left.plot(np.arange(1, trial['length'] + 1), trial['positions'][name], label=name, **style)
        shares = [row[name] for row in trial['prompts']]
        right.plot([str(row['examples']) for row in trial['prompts']], shares, label=name, **STYLES[name])
    left.set_xscale('log')
    left.set_xlabel('position in the document')
    left.set_ylabel('cross-entropy, nats')
    right.set_xlabel('examples k')
    right.set_ylabel('accuracy of the answer')
    right.set_ylim(0, 1)
    left.legend(frameon=False)
    figure.savefig(path)
