"""docs/data.md: the example of an evaluation task is scored, and the tables have every field."""

import json
import pathlib
import re

from lmtrain.evaluation import task_file, task_run

TEXT = (pathlib.Path(__file__).parents[2] / 'docs' / 'data.md').read_text(encoding='utf-8')
SECTION = TEXT.split('\n## Evaluation tasks')[1].split('\n## ')[0]


def test_the_example_of_a_task_is_scored(tmp_path, computes):
    (example,) = re.findall(r'^```toml\n(.*?)^```$', SECTION, re.MULTILINE | re.DOTALL)
    (tmp_path / 'which.toml').write_text(example, encoding='utf-8')
    rows = [('open a file', 'io'), ('the sine', 'math'), ('a pattern', 're'), ('read it', 'io'), ('pi', 'math')]
    lines = [json.dumps({'text': text, 'package': package}) for text, package in rows]
    (tmp_path / 'which.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    evaluation = task_run.evaluate(task_file.read(tmp_path / 'which.toml'), *computes)
    assert evaluation.results['metric'] == 'accuracy_per_byte' and evaluation.results['rows'] == 5
    assert task_run.line(evaluation.results).startswith('which: accuracy per byte ')


def test_the_tables_have_every_field_and_kind():
    for section, fields in task_file.FIELDS.items():
        for field in fields if section else ():
            assert f'`{field}`' in SECTION, f'{section}.{field}'
    for name in (*task_file.KINDS, *task_file.CHOICES, *task_file.GENERATION):
        assert f'`{name}`' in SECTION, name
