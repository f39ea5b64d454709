"""Scaling laws: the closed form is the optimum and gives the published sizes."""

import re

import numpy as np
import pytest

from lmtrain.plan import scaling_laws


@pytest.mark.parametrize('law', [scaling_laws.HOFFMANN, scaling_laws.BESIROGLU])
@pytest.mark.parametrize('flops', [1e17, 1e21, 5.76e23])
def test_closed_form_minimises_the_loss(law, flops):
    parameters, tokens = law.best(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    around = parameters * np.geomspace(0.1, 10, 20_001)
    assert around[np.argmin(law.loss(around, flops / 6 / around))] == pytest.approx(parameters, rel=1e-3)


def test_budget_of_chinchilla():
    by_law = {choice.law: choice for choice in scaling_laws.choices(6 * 70e9 * 1.4e12)}
    ratio = by_law['20 tokens a parameter']
    assert (ratio.parameters, ratio.tokens) == pytest.approx((70e9, 1.4e12))
    again = by_law['Besiroglu et al. 2024']
    assert 15 < again.tokens / again.parameters < 35  # they find about 20 as well
    assert scaling_laws.HOFFMANN.best(5.76e23)[0] == pytest.approx(40e9, rel=0.02)  # Gopher's budget
    assert min(by_law.values(), key=lambda choice: choice.loss) is again  # the law that predicts


def test_the_suggested_depth_is_the_nearest():
    for depth in (1, 3, 12, 40):
        assert scaling_laws.depth(1.02 * scaling_laws.size(depth, 32_000), 32_000) == depth
    page = scaling_laws.page(1e21, 128_256)
    assert len(re.findall(r' \d+ x \d+$', page, re.MULTILINE)) == 3


@pytest.mark.parametrize('flops', [0, -1.0, float('inf'), float('nan')])
def test_invalid_budget_is_an_error(flops):
    with pytest.raises(ValueError, match='positive'):
        scaling_laws.choices(flops)
