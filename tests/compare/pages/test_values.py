import pytest

from lmtrain.compare import report
from lmtrain.compare.pages import sections, values


def test_pair_is_turned_to_the_order_of_the_question(comparison):
    results = comparison()
    straight, turned = (values.pair(results, *arms, 512) for arms in (('lora', 'head'), ('head', 'lora')))
    assert straight['difference'] == pytest.approx(0.1) and turned['difference'] == pytest.approx(-0.1)
    assert turned['interval'] == [-end for end in straight['interval'][::-1]] and turned['p'] == straight['p']
    assert values.positive(turned)['arms'] == ['lora', 'head'] and values.positive(straight) == straight
    assert values.pair(results, 'lora', 'head', 7) is None and values.pair(results, 'lora', 'nobody', 512) is None


@pytest.mark.parametrize(('needed', 'shown'), [(0, 101), (40, 101), (100, 101), (4321, 4321), (None, None)])
def test_an_undecided_pair_needs_more_rows_than_there_are(comparison, needed, shown):
    results = comparison(rows=100)
    assert values.rows_to_decide(results, results['pairs'][0] | {'rows_to_decide': needed}) == shown


def test_costs_are_means_over_seeds(comparison):
    results = comparison()
    own = [trial for trial in results['trials'] if trial['arm'] == 'lora' and trial['size'] == 512]
    for trial, seconds in zip(own, (1.0, 2.0, None)):
        trial['ledger']['query_seconds'] = seconds
    assert values.cost(results, 'lora', 512, 'query_seconds') == 1.5
    assert values.cost(results, 'lora', 512, 'create_flops') == pytest.approx(5e15 + 4 * 5e15)
    assert values.cost(results, 'lora', 7, 'query_seconds') is None
    own[0]['status'] = 'failed'
    assert values.cost(results, 'lora', 512, 'query_seconds') == 2.0


def test_arms_that_choose_an_end_of_their_grid_are_named(comparison):
    results = comparison()
    grids = {'lora': [1e-4, 1e-3, 1e-2], 'full': [1e-3, 1e-2], 'head': [1e-4, 1e-2, 1e-3, 1e-1], 'prefix': [1e-2]}
    for name, rates in grids.items():
        results['arms'][name]['learning_rates'] = rates
    for trial in results['trials']:
        if trial['arm'] in grids:
            at_largest = trial['arm'] == 'lora' and trial['size'] == 512 and trial['seed'] < 3
            trial['chosen'] = {'learning_rate': 1e-2 if at_largest or trial['arm'] == 'prefix' else 1e-3}
    full = [trial for trial in results['trials'] if trial['arm'] == 'full' and trial['size'] == 512]
    full[0]['chosen'], full[1]['status'] = {'learning_rate': 1e-2}, 'failed'
    assert values.rate_notes(results) == [
        'lora: the chosen learning rate is an end of the grid, the highest (0.01) in 2 of 3 trials; '
        'a wider grid may do better.',
        'full: the chosen learning rate is an end of the grid, the highest (0.01) in 1 and the lowest (0.001) in 1 of '
        '2 trials; a wider grid may do better.',
    ]
    (block,) = sections.missing(results | {'arms': results['arms'] | {'full': {'status': 'done'}}}, 512, [])[-1:]
    assert block.lines[-1] == values.rate_notes(results)[0]
    for trial in results['trials']:
        trial['selection'] |= {'diverged': [0.1, 0.03]} if (trial['arm'], trial['size']) == ('head', 512) else {}
    results['arms'] = {'head': results['arms']['head']}
    assert values.rate_notes(results) == ['head: the learning rates 0.03 and 0.1 diverged.']
    results['arms']['head'] = {'learning_rates': [1e-2]}
    results['trials'] = [trial for trial in results['trials'] if trial['size'] < 512]
    assert values.rate_notes(results) == [] == values.rate_notes({})


def test_arms_that_choose_the_last_step_of_their_budget_in_most_trials_are_named(comparison):
    results = comparison()
    chosen = {'lora': (80, 80, 80), 'full': (80, 40, 80), 'head': (80, 40, 40), 'prefix': (80, 80, 80)}
    for trial in results['trials']:
        if trial['arm'] in chosen:
            step = chosen[trial['arm']][trial['seed'] - 1] if trial['size'] == 512 else 40
            trial['chosen'] = {'step': step, 'learning_rate': 1e-3}
            steps = (80,) if trial['arm'] == 'prefix' else (40, 80)  # 'prefix' had no choice
            trial['selection']['candidates'] = [{'step': each, 'loss': 1.0} for each in steps]
    note = 'The chosen step is the last one of the budget in most trials: lora (step 80, 3 of 3 trials) and full (step '
    note += '80, 2 of 3 trials); a larger config.budget may do better.'
    assert values.step_notes(results) == [note] and values.step_notes({}) == []
    (block,) = sections.missing(results | {'arms': results['arms'] | {'full': {'status': 'done'}}}, 512, [])[-1:]
    assert block.lines[-1] == note
    assert note in ' '.join(report.terminal_summary(results).split())
    of_prompts = [trial for trial in results['trials'] if trial['kind'] == 'prompt']
    assert values.step_notes(results | {'trials': of_prompts}) == []


def test_creation_is_unknown_if_a_part_of_it_is():
    candidates = {'candidates': [{'learning_rate': 0.1}]}
    known = {'train_flops': 5.0, 'selection_flops': 2.0}
    assert values.creation({'kind': 'train', 'ledger': known}) == 7.0
    assert values.creation({'kind': 'train', 'ledger': known | {'train_flops': None}}) is None
    assert values.creation({'kind': 'prompt', 'ledger': known | {'train_flops': None}}) == 2.0  # trains nothing
    assert values.creation({'kind': 'train', 'ledger': {'train_flops': 5.0}, 'selection': candidates}) is None
    assert values.creation({'kind': 'train', 'ledger': {'train_flops': 5.0}}) == 5.0  # nothing was selected


def test_arm_without_rows_has_one_entry_for_every_size():
    results = {'summary': [{'arm': 'zero', 'size': 0, 'accuracy': 0.5}, {'arm': 'lora', 'size': 8, 'accuracy': 0.6}]}
    results |= {
        'arms': {'zero': {'kind': 'prompt'}, 'lora': {}},
        'trials': [{'arm': 'zero', 'size': 0, 'status': 'done'}],
    }
    assert values.sizes(results) == [0, 8]
    assert values.scored(results, 8) == ['lora', 'zero'] and values.scored(results, 0) == ['zero']
    assert values.trials(results, 'zero', 8) == results['trials'] and values.trials(results, 'lora', 8) == []


def test_prompt_forgets_nothing():
    results = {'arms': {'zero': {'kind': 'prompt'}, 'lora': {'kind': 'train'}, 'full': {'kind': 'train'}}}
    assert values.forgotten(results, 'zero') is None  # nothing was measured
    results['forgetting'] = {'lora': {'bits_per_byte_before': 1.0, 'bits_per_byte_after': 1.25}}
    assert values.forgotten(results, 'zero') == 0.0 and values.forgotten(results, 'lora') == 0.25
    assert values.forgotten(results, 'full') is None
