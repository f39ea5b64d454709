"""Compute-optimal model size and number of tokens for a budget in FLOPs (Chinchilla, arXiv 2203.15556)."""

import math
from typing import NamedTuple

from lmtrain.errors import InputError
from lmtrain.models.families.llama import rung
from lmtrain.report import terminal


class Law(NamedTuple):
    """loss(N, D) = E + A / N^alpha + B / D^beta in nats per token, for N parameters trained on D tokens.

    >>> parameters, tokens = HOFFMANN.best(5.76e23)  # Gopher's budget
    >>> f'{parameters:.2g} parameters, {tokens:.2g} tokens'
    '4e+10 parameters, 2.4e+12 tokens'
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def best(self, flops: float) -> tuple[float, float]:
        """(N, D) that minimises the loss subject to 6 N D = `flops`: the derivative along that curve is 0."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        parameters = (ratio * (flops / 6) ** self.beta) ** (1 / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


# arXiv 2203.15556, approach 3, with the digits of its TeX source: arXiv 2404.10102 (version 2) shows the error of the
# rounded ones. With these, Gopher's budget gives 40 billion parameters.
HOFFMANN = Law(1.69337368, 406.401018, 410.722827, 0.33917084, 0.2849083)
BESIROGLU = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # arXiv 2404.10102, a new fit of the same runs
RATIO = 20.0  # tokens per parameter, the usual rounding of approaches 1 and 2


class ComputeOptimal(NamedTuple):
    """A way to spend a budget: parameters, tokens, and the loss that BESIROGLU predicts."""

    law: str
    parameters: float
    tokens: float
    loss: float


def choices(flops: float) -> list[ComputeOptimal]:
    """The best size and tokens for a budget by each law. Raises InputError unless the budget is a positive number."""
    if not 0 < flops < math.inf:
        raise InputError(f'a budget of {flops} FLOPs: it must be a positive, finite number')
    by_ratio = math.sqrt(flops / 6 / RATIO)
    best = {
        'Hoffmann et al. 2022': HOFFMANN.best(flops),
        'Besiroglu et al. 2024': BESIROGLU.best(flops),
        f'{RATIO:g} tokens a parameter': (by_ratio, RATIO * by_ratio),
    }
    return [ComputeOptimal(law, *best, BESIROGLU.loss(*best)) for law, best in best.items()]


def size(depth: int, vocab_size: int) -> int:
    """Parameters of the rung of that depth (lmtrain.models.families.llama), without norms."""
    m = rung(depth)
    return m['width'] * (vocab_size + depth * (4 * m['width'] + 3 * m['mlp_dim']))


def depth(parameters: float, vocab_size: int) -> int:
    """Layers of the rung whose size is nearest in ratio to `parameters`."""
    high = 1
    while size(high, vocab_size) < parameters:
        high *= 2
    return min(range(max(1, high // 2), high + 1), key=lambda n: abs(math.log(size(n, vocab_size) / parameters)))


def page(flops: float, vocab_size: int) -> str:
    """The choices for a budget as a table, each with the nearest model of lmtrain."""
    rows = [('', 'parameters', 'tokens', 'a parameter', 'loss', 'layers x width')]
    for choice in choices(flops):
        layers = depth(choice.parameters, vocab_size)
        rows.append(
            (
                f'  {choice.law}',
                terminal.number(choice.parameters),
                terminal.number(choice.tokens),
                f'{choice.tokens / choice.parameters:.1f}',
                f'{choice.loss:.3f}',
                f'{layers} x {rung(layers)["width"]}',
            )
        )
    note = (
        '  Hoffmann et al. by approach 3; the loss is in nats per token on their text and\n'
        '  tokenizer, by the law of 2024'
    )
    title = f'where {terminal.unit(flops, "FLOP")} are best spent'
    return '\n'.join([title, *terminal.table(rows, right=(1, 2, 3, 4, 5)), note])
