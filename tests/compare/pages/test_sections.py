import pytest

from lmtrain.compare.pages import analyses, drawing, protocol, recommendation, sections
from lmtrain.compare.pages.blocks import Table


@pytest.fixture(scope='module')
def results(comparison):
    return comparison()


@pytest.fixture(scope='module')
def content(results):
    """{name: section}."""
    with drawing.settings():
        own = sections.sections(results, recommendation.recommend(results))
    return {section.name: section for section in own}


def table(blocks):
    """{first cell: {title: text}} of the first table."""
    own = next(block for block in blocks if isinstance(block, Table))
    titles = [column.title for column in own.columns]
    return {row[0].text: dict(zip(titles, (cell.text for cell in row))) for row in own.rows}


def test_sections_are_in_order(content):
    names = 'trade-offs missing fronts rows sensitivity description-length forgetting break-even pairs'
    assert list(content) == [*names.split(), 'protocol', 'provenance', 'trials']


def test_trade_offs(content):
    assert 'The time to create includes compilation' in content['trade-offs'].blocks[0].text
    rows = table(content['trade-offs'].blocks)
    assert list(rows)[:3] == ['lora', 'full', 'last-layers']
    lora = rows['lora']
    assert lora['accuracy (95 % interval) ↑'] == '84.0 % (78.9 to 89.1)'
    assert lora['latency of a query ↓'] == '28 ms' and lora['compute to create ↓'] == '25.0 PFLOP'
    assert lora['time to update ↓'] == '4m 10s' and rows['k-shot']['time to update ↓'] == '0 s'
    assert lora['latency, shared tokens cached ↓'] == '28 ms' != rows['k-shot']['latency of a query ↓']
    assert lora['cache of shared tokens ↓'] == '0 B' and rows['k-shot']['cache of shared tokens ↓'] == '1.02 MB'
    assert lora['stored ↓'] == '2.40 MB' and lora['trained parameters ↓'] == '600k'
    assert lora['price to create ↓'] == '0.0025 EUR' and lora['forgetting, bits per byte ↓'] == '+0.100'
    (own,) = [block for block in content['trade-offs'].blocks if isinstance(block, Table)]
    assert own.marked == 0
    index = [column.title for column in own.columns].index('compute to create ↓')
    assert [row[0].text for row in own.rows if row[index].strong] == ['k-shot', 'zero-shot']  # nothing to create


def test_interval_plots_share_an_axis(content):
    (own,) = [block for block in content['trade-offs'].blocks if isinstance(block, Table)]
    spans = [row[1].span for row in own.rows]
    assert min(low for low, _, _ in spans) == pytest.approx(0) and max(high for _, _, high in spans) == pytest.approx(
        100
    )
    assert all(low < middle < high for low, middle, high in spans)
    assert [middle for _, middle, _ in spans] == sorted((middle for _, middle, _ in spans), reverse=True)


def test_missing_names_arms_trials_and_costs(comparison):
    results = comparison()
    assert 'Nothing' in sections.missing(results, 512, [])[0].text
    results['arms']['full'] |= {'status': 'partial', 'reason': 'diverged'}
    results['arms']['few'] = {'kind': 'prompt', 'status': 'skipped', 'reason': 'an encoder without a head'}
    for trial in results['trials']:
        if trial['arm'] == 'full' and trial['size'] == 8 and trial['seed'] == 2:
            trial |= {'status': 'failed', 'reason': 'not finite at step 3'}
        del trial['ledger']['update_seconds']
        if trial['arm'] == 'head':
            trial['ledger']['peak_bytes'] = None
    rows = table(blocks := sections.missing(results, 512, ['Break-even']))
    assert rows['full'] == {
        'arm': 'full',
        'status': 'partial',
        'trials': '8 rows, seed 2',
        'reason': 'diverged; not finite at step 3',
    }
    assert rows['few']['trials'] == 'all' and rows['few']['reason'] == 'an encoder without a head' and len(rows) == 2
    assert blocks[-1].lines == [
        'Not measured for any arm: time to update.',
        'Not measured, peak memory to create: head.',
        'Not measured, so that the section is left out: Break-even.',
    ]


def test_missing_has_the_notes_and_the_rows_that_were_cut(comparison):
    results = comparison()
    results['task']['notes'] = ['2 test rows are left out: their text is empty']
    for trial in results['trials']:
        trial['test']['cut'] = {'lora': trial['seed'], 'head': 5}.get(trial['arm'], 0)
        trial['selection']['cut'] = {'lora': 2}.get(trial['arm'], 0)
    (block,) = sections.missing(results, 512, [])
    selected = 'Selection rows that were cut to the context: lora 2.'
    cut = 'Test rows that were cut, to data.seq_len or to the context: lora 3 and head 5.'
    assert block.lines == ['2 test rows are left out: their text is empty', selected, cut]


def test_selection_rows_count_as_labelled_rows(comparison, content):
    text = content['rows'].blocks[0].text
    assert '64 selection rows' in text and 'with 8 training rows uses 72 labelled rows.' in text
    assert content['trade-offs'].blocks[0].text.startswith('With 512 training rows + 64 selection rows, ')
    results = comparison()
    results['task']['rows'] = None
    assert 'labelled' not in sections.efficiency(results)[0].text


def test_table_of_fronts(content):
    rows = table(content['fronts'].blocks)
    assert rows['lora']['compute to create, FLOP'] == 'front' and rows['full']['compute to create, FLOP'] == 'close'
    assert rows['soft-prompt']['compute to create, FLOP'] == 'dominated'


def test_table_of_rows_ends_with_the_recommendations(content):
    rows = table(content['rows'].blocks)
    assert rows['lora']['8 rows'] == '50.0 % (43.1 to 56.9)'
    assert list(rows)[-1] == 'recommended' and rows['recommended']['512 rows'] == 'lora'
    assert rows['recommended']['32 rows'] == 'retrieval'


def test_analyses(content):
    spread = table(content['sensitivity'].blocks)['retrieval']
    assert spread['mean (95 % interval)'] == '75.0 % (73.0 to 77.0)'
    assert spread['worst (95 % over rows)'] == '60.0 % (50.0 to 70.0)' and spread['within a seed'] == '4.0 points'
    assert spread['median (95 %)'] == '75.0 % (73.0 to 77.0)'
    assert spread['5 % quantile (95 %)'] == '66.0 % (64.0 to 68.0)'
    assert spread['standard deviation (95 %)'] == '5.0 points (4.0 to 7.0)'
    caption = content['sensitivity'].blocks[0].text
    assert 'Intervals cover the choice of the prompts alone, on these 64 selection rows' in caption
    assert 'prompts of several seeds count as independent' in caption
    bits = table(content['description-length'].blocks)
    assert next(iter(bits)) == 'retrieval' and bits['retrieval']['bits ↓'] == '998'
    assert bits['retrieval']['of a uniform code'] == '65 %' and bits['retrieval']['bits to row 512'] == '399'
    lost = table(content['forgetting'].blocks)
    assert lost['lora']['change ↓'] == '+0.100' and lost['lora']['KL to the base, nats ↓'] == '0.2500'
    assert next(iter(lost)) == 'zero-shot'


def test_orders_of_the_same_demonstrations_have_a_table_of_their_own(comparison):
    results = comparison()
    with drawing.settings():
        before = analyses.sensitivity(results)
        [spread] = [own for arm, own in results['sensitivity'].items() if arm == 'retrieval']
        results['order_sensitivity'] = {'retrieval': spread | {'stdev_within': 0.0123, 'best_interval': None}}
        blocks = analyses.sensitivity(results)
    assert len(blocks) == len(before) + 2  # of an earlier version there are no orders
    about, own = blocks[len(before) :]
    assert about.text.startswith('Each arm was repeated with other orders of the same demonstrations.')
    cells = table([own])['retrieval']
    assert cells['within a seed'] == '1.2 points' and cells['best (95 % over rows)'] == '86.0 %'


def test_break_even_by_hand(content):
    (own,) = [block for block in content['break-even'].blocks if isinstance(block, Table)]
    row = next([cell.text for cell in row] for row in own.rows if [c.text for c in row[:2]] == ['lora', 'k-shot'])
    # 5 x 5e15 / (9e10 - 4e9) = 291 k
    assert row == ['lora', 'k-shot', '+18.0 (+14.3 to +21.7)', '291k', '11.6M', '29.1k', '2.91M']
    assert own.rows[0][0].text == 'lora'  # pairs with the recommended arm come first


def test_break_even_without_a_crossing(comparison):
    results = comparison(arms={'prompt': ('prompt', 0.6, 0.6, 0, 0.0, 1e9), 'lora': ('train', 0.5, 0.9, 9, 1e12, 2e9)})
    even = {'prompt': 'prompt', 'trained': 'lora', 'size': 512, 'queries': None, 'curve': [[0.1, None], [10, None]]}
    results['break_even'] = [even]
    with drawing.settings():
        blocks = analyses.break_even(results, recommendation.recommend(results))
    assert [cell.text for cell in blocks[-1].rows[0]][3:] == ['never', 'not measured', 'never', 'never'] and blocks[
        1
    ].panels == []


@pytest.mark.parametrize(('needed', 'text'), [(0, '201'), (4321, '4.32k'), (None, 'more seeds')])
def test_an_undecided_pair_says_what_would_decide(comparison, needed, text):
    equal = ('train', 0.4, 0.88, 10, 1e13, 4e9)
    results = comparison(arms={'lora': equal, 'head': equal}, rows=200)
    for pair in results['pairs']:
        pair |= {'rows_to_decide': needed, 'p_holm': 0.5, 'p_equivalent_holm': 0.5}
    blocks = analyses.pairs(results, recommendation.recommend(results))
    assert {row[-1].text for block in blocks if isinstance(block, Table) for row in block.rows} == {text}


def test_pairs_are_turned_and_ordered(content):
    own, *tables = [block for block in content['pairs'].blocks if isinstance(block, Table)]
    assert [row[0].text for row in own.rows[:2]] == ['lora − full', 'lora − last-layers'] and len(own.rows) == 9
    assert [own.summary for own in tables][:2] == ['512 training rows: 45 pairs', '128 training rows: 45 pairs']
    first, last = tables[0].rows[0], tables[0].rows[-1]
    assert first[0].text == 'lora − zero-shot' and first[0].strong and first[1].text == '+32.0'
    assert last[1].text == '+1.0' and not last[0].strong
    assert all(row[1].text.startswith('+') for row in tables[0].rows)


def test_protocol_and_trials(content):
    facts = dict(content['protocol'].blocks[0].facts)
    assert facts['Labelled rows'] == '512 for training, 64 for selection and 200 for the test'
    assert facts['Seeds'] == '1, 2 and 3; a seed draws the rows as well as the initial values'
    assert facts['Without a model'] == '9.0 % by the most frequent class, 12.5 % by chance'
    assert facts['Prices'].startswith('0.04 EUR for an hour')
    assert dict(content['provenance'].blocks[0].facts)['versions.jax'] == '0.10.2'
    (own,) = content['trials'].blocks
    assert own.summary == 'All 120 trials' and len(own.rows) == 120
    row = dict(zip((column.title for column in own.columns), (cell.text for cell in own.rows[-1])))
    assert row['chosen on the selection rows'] == 'learning_rate = 0.001, step = 120'
    assert row['folder'] == 'trials/full/n512-seed3' and row['status'] == 'done'


def test_protocol_says_which_results_were_known_when_further_trials_were_tested(comparison):
    results, once = comparison(sizes=(8,), seeds=(1,)), 'each trial was tested once, after every trial had finished'
    assert dict(protocol.protocol(results)[0].facts)['Test'] == once
    for trial in results['trials']:
        trial['test']['stage'] = {'lora': 2, 'full': 3, 'zero-shot': 3}.get(trial['arm'], 1)
    results['trials'] = [trial for trial in results['trials'] if trial['arm'] in ('head', 'lora', 'full', 'zero-shot')]
    assert dict(protocol.protocol(results)[0].facts)['Test'] == (
        'in 3 stages, each after its trials had finished; when that of lora began, the results of head were known; '
        'when that of zero-shot and full began, the results of head and lora were known'
    )


def test_arms_show_their_overrides():
    arm = {'kind': 'train', 'overrides': {'adapt.lora.rank': [['.*/kernel', 8]], 'adapt.method': 'lora'}}
    rows = table(protocol.protocol({'arms': {'lora': arm}}))
    assert rows['lora']['overrides'] == 'adapt.lora.rank = [[".*/kernel", 8]], adapt.method = lora'
