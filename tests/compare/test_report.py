from lmtrain.compare import report


def test_answer_table(comparison):
    lines = report.answer_table(comparison()).splitlines()
    assert lines[0] == '| arm, 512 training rows | accuracy (95 % interval) | to create | for a query |'
    assert lines[2] == '| **lora** | 84.0 % (78.9 to 89.1 %) | 25.0 PFLOP, 4m 10s | 4.00 GFLOP, 28 ms |'
    assert [line.split('|')[1].strip() for line in lines[2:5]] == ['**lora**', 'full', 'last-layers']
    assert report.answer_table({}) == 'No arm has a result.'


def test_terminal_summary_fits_80_columns(comparison):
    results = comparison()
    results['arms']['an-arm-with-a-name-that-is-far-too-long-for-a-terminal'] = results['arms'].pop('lora')
    for entry in results['summary']:
        entry['arm'] = entry['arm'].replace('lora', 'an-arm-with-a-name-that-is-far-too-long-for-a-terminal')
    text = report.terminal_summary(results)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith('Use ') and '\nfull ' in text
