"""What a later call with other sizes, draws or templates measures of a finished trial."""

import pytest

from lmtrain.compare import prompted, rows, trained, trials, updates


@pytest.fixture(scope='module')
def few_shot(small):
    """(comparison, trial, record) of a prompt at the largest size."""
    shared, selected = small('updated', ('few_shot',))
    trial = trials.listed(shared, selected)[-1]
    return shared, trial, trials.run(shared, trial, prompted.run)


def changed(shared, **settings):
    config = shared.config.copy_and_resolve_references().unlock()
    config.compare.update(settings)
    return shared._replace(config=config)


@pytest.mark.slow
def test_a_record_that_has_everything_is_not_measured(few_shot):
    shared, trial, record = few_shot
    assert not updates.outdated(shared, trial, record)
    assert updates.measure(shared, trial, record) == record


@pytest.mark.parametrize(
    ('settings', 'counts'),
    [({'draws': 3}, (3, 3, 3)), ({'draws': 0}, (0, 0, 3)), ({'templates': ('{text} {label}',)}, (2, 2, 2))],
)
def test_draws_and_templates_are_repeated_if_their_number_changes(few_shot, settings, counts):
    shared, trial, record = few_shot
    names = 'draws', 'orders', 'templates'
    assert tuple(len(record[name]) for name in names) == (2, 2, 3)
    other = changed(shared, **settings)
    assert updates.outdated(other, trial, record)
    own = updates.measure(other, trial, record)
    assert tuple(len(own[name]) for name in names) == counts and own['chosen'] == record['chosen']
    assert not updates.outdated(other, trial, own)


def test_templates_with_other_texts_are_measured_again(few_shot):
    shared, trial, record = few_shot
    texts = record['template_texts']
    assert texts == ['{note}\nLabel: {animal}', *shared.config.compare.templates]
    others = (texts[2], 'Zebra {text} is {label}')
    other = changed(shared, templates=others)
    assert updates.outdated(other, trial, record)
    own = updates.measure(other, trial, record)
    assert own['template_texts'] == [texts[0], *others] and own['draws'] == record['draws']
    assert own['templates'][:2] == [record['templates'][0], record['templates'][2]]
    assert not updates.outdated(other, trial, own) and updates.outdated(shared, trial, own)


def test_templates_of_earlier_versions_have_no_texts_and_are_measured_again(few_shot):
    shared, trial, record = few_shot
    earlier = {name: value for name, value in record.items() if name != 'template_texts'}
    earlier['templates'] = [0.0, 0.0, 0.0]
    assert updates.outdated(shared, trial, earlier)
    assert updates.measure(shared, trial, earlier)['templates'] == record['templates']
    assert updates.measure(changed(shared, templates=()), trial, earlier)['templates'] == []


def test_draws_of_earlier_versions_had_the_bias_of_another_draw_and_are_measured_again(few_shot):
    shared, trial, record = few_shot
    earlier = {name: value for name, value in record.items() if name != 'draws_fitted'} | {'draws': [2.0, 2.0]}
    earlier['chosen'] = record['chosen'] | {'score': 'sum', 'bias': []}
    assert not updates.outdated(shared, trial, earlier)  # without a bias they are right
    earlier['chosen'] = record['chosen'] | {'score': 'batch', 'bias': [0.1, 0.2, 0.3]}
    assert updates.outdated(shared, trial, earlier)
    own = updates.measure(shared, trial, earlier)
    assert own['draws'] != [2.0, 2.0] and not updates.outdated(shared, trial, own)


def test_costs_that_trials_of_earlier_versions_lack_are_measured(few_shot):
    shared, trial, record = few_shot
    for name in ('peak_bytes', 'query_seconds_cached'):
        costs = {field: value for field, value in record['ledger'].items() if field != name}
        earlier = record | {'ledger': costs | ({name: None} if name == 'peak_bytes' else {})}
        assert updates.outdated(shared, trial, earlier)
        own = updates.measure(shared, trial, earlier)
        assert own['ledger'][name] > 0 and not updates.outdated(shared, trial, own)
        assert own['ledger']['selection_flops'] == record['ledger']['selection_flops']


def test_latencies_of_earlier_versions_were_of_unmerged_weights_and_are_measured_again(small):
    shared, [arm] = small('unmerged', ('lora',), sizes=(4,))
    [trial] = trials.listed(shared, [arm])
    record = trials.run(shared, trial, trained.run)
    costs = {name: value for name, value in record['ledger'].items() if name != 'query_seconds_cached'}
    earlier = record | {'ledger': costs | {'query_seconds': 9.0}}
    assert not updates.outdated(shared, trial, record) and updates.outdated(shared, trial, earlier)
    own = updates.measure(shared, trial, earlier)['ledger']
    assert 0 < own['query_seconds'] < 9 and own['query_seconds_cached'] == own['query_seconds']


def test_orders_that_earlier_versions_lack_are_measured(few_shot):
    shared, trial, record = few_shot
    earlier = {name: value for name, value in record.items() if name != 'orders'}
    assert updates.outdated(shared, trial, earlier)
    assert updates.measure(shared, trial, earlier) == record
    assert not updates.outdated(changed(shared, draws=0), trial, earlier | {'draws': []})


def test_blocks_of_another_size_are_scored(few_shot):
    shared, trial, record = few_shot
    larger = trial._replace(next_size=24)
    assert updates.outdated(shared, larger, record) and record['blocks'] == []
    rows.write_subsets(shared.task, (16, 24), 1)
    own = updates.measure(shared._replace(sizes=[4, 16, 24]), larger, record)
    assert [(block['begin'], block['end']) for block in own['blocks']] == [(16, 24)] and own['blocks'][0]['nats'] > 0
    assert own['draws'] == []  # no longer the largest size


def test_forgetting_is_measured_when_a_size_becomes_the_largest(small):
    shared, selected = small('forgotten', ('head',))
    trial = trials.listed(shared, selected)[0]
    record = trials.run(shared, trial, trained.run)
    assert record['forgetting'] is None and record['status'] == 'done'
    largest = shared._replace(sizes=[4])
    alone = trial._replace(next_size=0)
    own = record | {'blocks': []}
    assert updates.outdated(largest, alone, own)
    assert not updates.outdated(largest._replace(own_text=[]), alone, own)  # of a base whose text is not known
    measured = updates.measure(largest, alone, own)
    assert measured['forgetting']['kl'] == pytest.approx(0, abs=1e-6) and not updates.outdated(largest, alone, measured)
    other = largest._replace(own_text=largest.own_text[:1], text_digest='of another text')
    assert updates.outdated(other, alone, measured)
    again = updates.measure(other, alone, measured)
    bits = [each['forgetting']['bits_per_byte_before'] for each in (measured, again)]
    assert bits[0] != bits[1] and not updates.outdated(other, alone, again)
    assert updates.outdated(largest, alone, again)  # the config names no text any more
