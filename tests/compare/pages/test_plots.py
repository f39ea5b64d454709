import re

import pytest

from lmtrain.compare.pages import drawing, plots, values

COST = [('create_flops', 'compute to create, FLOP', 'FLOP')]
ARMS = {
    'a $price$ <b>': ('prompt', 0.6, 0.6, 0, 0.0, 9e10),
    'lora': ('train', 0.5, 0.8, 10, 1e12, 1e9),
    'an arm with a long name': ('train', 0.3, 0.4, 10, 1e14, 1e9),
}


def texts(svg):
    return re.findall(r'<text[^>]*>(.*?)</text>', svg)


@pytest.fixture(autouse=True)
def settings():
    with drawing.settings():
        yield


def test_front_names_the_arms_on_it(comparison):
    (panel,) = plots.fronts(comparison(arms=ARMS), 512, COST)
    names = texts(panel.svg)
    assert 'a $price$ &lt;b&gt;' in names and 'lora' in names  # no formula, no markup
    assert drawing.short('an arm with a long name') not in names  # dominated
    ticks = {name: float(x) for x, name in re.findall(r'<text[^>]* x="([^"]*)"[^>]*>(0|10T|100T)<', panel.svg)}
    assert ticks['0'] < ticks['10T'] < ticks['100T']
    (circle,) = re.findall(r'<use [^>]*x="([^"]*)"[^>]*fill: var\(--prompt', panel.svg)
    assert float(circle) == pytest.approx(ticks['0'], abs=0.01)  # creation of nothing has a place of its own
    assert panel.text == 'Accuracy against compute to create, FLOP; on the front: a $price$ <b> and lora.'


def test_cost_that_does_not_differ_has_no_panel(comparison):
    arms = {name: (*values_[:5], 1e9) for name, values_ in ARMS.items()}
    assert plots.fronts(comparison(arms=arms), 512, [('query_flops', 'FLOPs of a query', 'FLOP')]) == []


def test_efficiency_has_a_panel_for_each_arm(comparison):
    results = comparison(arms=ARMS)
    panels = plots.efficiency(results)
    assert [panel.text.split(':')[0] for panel in panels] == ['lora', 'a $price$ <b>', 'an arm with a long name']
    assert panels[0].text == 'lora: 50.0 % at 8, 60.0 % at 32, 70.0 % at 128 and 80.0 % at 512 rows.'
    assert {'8', '32', '128', '512'} <= set(texts(panels[0].svg))
    assert len({panel.name for panel in panels}) == 3
    odd = plots.efficiency(comparison(arms=ARMS, sizes=(500, 1500, 2500)))
    assert {'500', '1.5k', '2.5k'} <= set(texts(odd[0].svg))
    assert plots.efficiency(comparison(arms=ARMS, sizes=(8,))) == []


def test_sensitivity_and_break_even(comparison):
    results = comparison()
    (panel,) = plots.sensitivity(results, results['sensitivity'])
    assert {'zero-shot', 'k-shot', 'retrieval', 'prompt-search'} <= set(texts(panel.svg))
    own = [entry for entry in results['break_even'] if entry['trained'] == 'lora']
    (panel,) = plots.break_even(results, own, 'lora')
    assert {'k-shot', 'retrieval', 'prompt-search', '0.1', '10'} <= set(texts(panel.svg))
    assert 'Queries until lora is cheaper than' in texts(panel.svg)
    queries = {entry['prompt']: values.count(entry['curve'][-1][1]) for entry in own}
    assert f'k-shot {values.count(own[0]["curve"][0][1])} to {queries["k-shot"]} queries' in panel.text
    assert plots.break_even(results, [entry | {'curve': [[1, None]]} for entry in own], 'lora') == []


def test_figures_have_variables_for_colours_and_their_own_ids(comparison):
    panels = plots.efficiency(comparison(arms=ARMS))
    for panel in panels:
        assert not re.findall(r': #[0-9a-f]{6}', panel.svg)
        assert all(name.startswith(panel.name) for name in re.findall(r'\bid="([^"]*)"', panel.svg))
        references = re.findall(r'(?:href="#|url\(#)([^")]*)', panel.svg)
        assert references and all(f'id="{name}"' in panel.svg for name in references)
        assert '<style' not in panel.svg and '<metadata' not in panel.svg
    assert drawing.standalone(panels[0].svg).count('prefers-color-scheme: dark') == 1


def test_figures_are_reproducible(comparison):
    first, second = (plots.fronts(comparison(arms=ARMS), 512, COST)[0].svg for _ in range(2))
    assert first == second
