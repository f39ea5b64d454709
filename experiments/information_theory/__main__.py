"""How does `-log p` of each next word become entropy, cross-entropy, perplexity, bits per byte, and the loss?

python -m experiments.information_theory [--steps=N] [--chess=FILE.pgn]   # executes notebook.ipynb, stores its outputs
"""

import argparse
import pathlib
import time

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments import record
from experiments.information_theory import run_notebook

NOTEBOOK = pathlib.Path(__file__).parent / 'notebook.ipynb'


def figures(values: dict) -> list[dict]:
    """The rows of the README, from the variables of the notebook."""
    text = f'{values["H"]:.3f} without context, {values["conditional"]:.3f} given the previous token'
    per_byte = f'unigram {values["unigram_bits_per_byte"]:.3f}, bigram {values["baselines"]["bigram"]:.3f}, '
    per_byte += f'transformer {values["bits_per_byte"]:.3f}'
    games = f'{values["H_move"]:.2f} bits, perplexity {2 ** values["H_move"]:.0f}'
    divergence = f'{values["kl_black_white"]:.2f} and {values["kl_white_black"]:.2f} bits a move'
    return [
        record.row('entropy of the next token of the training text, bits', text),
        record.row('KL(validation || training) of token frequencies', f'{values["KL"]:.3f} bits a token'),
        record.row('bits per byte of the validation text', per_byte),
        record.row('the same of the transformer by `lmtrain evaluate`', f'{values["evaluated"]["bits_per_byte"]:.3f}'),
        record.row(f'entropy of a move in {len(values["games"])} chess games', games),
        record.row('KL(Black || White) and KL(White || Black) of moves', divergence),
    ]


def plot(words: list[str], bits: list[float], path: pathlib.Path) -> None:
    """One bar for each token: its surprise in bits."""
    figure = Figure(figsize=(8.4, 3.2), dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(range(len(words)), bits, color='#1f5fa8')
    mean = sum(bits) / len(bits)
    axes.axhline(mean, color='#d1491b', linestyle='--', label=f'mean = loss: {mean:.2f} bits')
    axes.set_xticks(range(len(words)), [word.encode('unicode_escape').decode() for word in words], rotation=60)
    axes.tick_params(axis='x', labelsize=8, labelfontfamily='DejaVu Sans Mono')
    axes.set_ylabel('-log2 p, bits')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--chess', default='', help='a file of games; without it the three games of the notebook')
    parser.add_argument('--steps', type=int, default=100, help='of the training')
    options = parser.parse_args()
    parameters = {'STEPS': options.steps} | (
        {'CHESS': str(pathlib.Path(options.chess).resolve())} if options.chess else {}
    )
    notebook, begun = run_notebook.load(NOTEBOOK), time.monotonic()
    values = run_notebook.execute(notebook, parameters)
    run_notebook.save(notebook, NOTEBOOK)
    bits = [float(nats) / values['math'].log(2) for nats in values['word_nats']]
    plot(values['words'], bits, NOTEBOOK.parent / 'surprise.png')
    record.write(
        'information_theory',
        command=f'python -m experiments.information_theory{" --chess=FILE.pgn" if options.chess else ""}',
        figures=figures(values),
        trials=[{'seconds': time.monotonic() - begun, 'words': values['words'], 'bits': bits}],
        not_shown=[f'a trained model: {options.steps} steps only.', 'a model of chess: the frequencies of moves only.'],
    )


if __name__ == '__main__':
    main()
