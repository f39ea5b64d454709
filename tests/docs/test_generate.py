"""docs/config.md and the tree of README.md are those of the code."""

import re

import lmtrain
from configs import base, compare
from docs import generate
from launch import recipe, show


def test_generated_parts_are_up_to_date():
    outdated = [str(file) for file, text in generate.files().items() if file.read_text(encoding='utf-8') != text]
    assert not outdated, 'run python -m docs.generate'


def test_every_field_is_documented_with_its_default():
    text, values = generate.config(), dict(recipe.leaves(base.get_config()))
    rows = dict(re.findall(r'^\| `([\w.]+)` \| \w+ \| (.*?) \| .+ \|$', text, re.MULTILINE))
    own = {key for key, _ in recipe.leaves(compare.get_config()) if key.startswith('compare.')}
    assert rows.keys() == values.keys() | {key for key in own if not key.startswith(recipe.ARMS)}
    assert rows['data.seq_len'] == '`256`' and rows['budget.steps'] == 'not set'


def test_descriptions_are_whole_phrases():
    """The heading of a table does not continue in its cells, nor a cell in the next one."""
    notes = show.notes()
    for key, _ in recipe.leaves(base.get_config()):
        words = re.findall(r'\w+', notes[key])
        assert words[0] not in ('and', 'of', 'also') and words[-1] != 'or', f'{key}: {notes[key]}'


def test_the_tree_has_every_module_in_import_order():
    names = re.findall(r'^  (\w+)(?:\.py|/) ', generate.tree(), re.MULTILINE)
    assert names == re.findall(r'^    (\w+)(?:\.py|/) ', lmtrain.__doc__, re.MULTILINE)
    assert len(names) > 10 and names[-1] == 'api'
