"""Recipes and overrides: values, derived fields and errors."""

import json
import math
import re
import shlex
import sys
import warnings

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import base
from launch import cli, process_setup, recipe
from lmtrain import tree
from lmtrain.models import Transformer

FIELDS = sorted(recipe.types(base.get_config()))
NAMES = [path.stem for path in recipe.files()]


def test_a_recipe_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = recipe.FOLDER / 'tiny.py'
    assert recipe.find('tiny') == recipe.find('configs/tiny.py') == recipe.find('tiny.py') == (own, None)
    assert recipe.find('pretrain_gpt2:355M') == (recipe.FOLDER / 'pretrain_gpt2.py', '355M')
    (tmp_path / 'configs').mkdir()
    mine = tmp_path / 'configs' / 'tiny.py'
    mine.write_text(own.read_text())
    assert recipe.find('configs/tiny.py')[0].resolve() == mine  # one's own comes first
    assert recipe.find(str(mine)) == (mine, None)
    with pytest.raises(ValueError, match="knows no '125M'.*124M"):
        recipe.load('pretrain_gpt2:125M')
    with pytest.raises(FileNotFoundError, match='elsewhere/tiny.py'):
        recipe.find('elsewhere/tiny.py')


def test_override_changes_derived_fields():
    config = recipe.load(
        'tiny', {'budget.steps': '80', 'model.width': '64', 'data.seq_len': '48', 'data.vocab_size': '300'}
    )
    assert config.evaluate.every_steps == config.checkpoint.every_steps == 40
    assert (config.model.head_dim, config.model.mlp_dim) == (32, 256)
    assert (config.model.max_len, config.model.vocab_size) == (48, 300)
    model = recipe.load('modern', {'model.width': '1024'}).model
    assert (model.num_heads, model.num_kv_heads, model.head_dim) == (8, 8, 128)


@pytest.mark.parametrize(
    ('field', 'source'),
    [
        ('model.num_kv_heads', 'model.num_heads'),
        ('model.vocab_size', 'data.vocab_size'),
        ('model.max_len', 'data.seq_len'),
        ('model.unroll', 'model.num_layers'),
        ('model.mlp_dim', 'model.width'),
        ('evaluate.every_steps', 'budget.steps'),
    ],
)
def test_derived_field_does_not_change_its_source(field, source):
    plain, changed = dict(recipe.leaves(recipe.load('tiny'))), dict(recipe.leaves(recipe.load('tiny', {field: '1'})))
    assert changed[field] == 1
    assert changed[source] == plain[source] != 1


FORMER = {
    'verify_every': ('sdc_check_every', 7),
    'learns': ('trainable', '.*/scale'),
    'data.corrupt': ('data.mask_rate', 0.25),
    'adapt.layers.learns': ('adapt.layers.trainable', 'layers/1/.*'),
}


def test_an_override_returns_the_present_name():
    config = recipe.load('tiny').unlock()
    assert recipe.override(config, 'data.corrupt', '0.25') == 'data.mask_rate'
    assert recipe.override(config, 'data.mask_rate', '0.5') == 'data.mask_rate'


@pytest.mark.parametrize(
    ('field', 'text', 'value'),
    [
        ('task.labels', '0,1', ('0', '1')),
        ('task.labels', 'True,False', ('True', 'False')),
        ('task.labels', '(0, 1)', (0, 1)),
        ('task.text', '1,2', ('1', '2')),
        ('sample.prompts', '1, 2', ('1, 2',)),
        ('task.lengths', '64,128', (64, 128)),
    ],
)
def test_texts_may_look_like_numbers(field, text, value):
    assert dict(recipe.leaves(recipe.load('classify', {field: text})))[field] == value


def test_former_names_of_fields_work_and_the_new_ones_are_named(tmp_path, capsys):
    config = recipe.load('tiny', {former: str(value) for former, (_, value) in FORMER.items()})
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f'note: config.{former} is now called config.{name}' for former, (name, _) in FORMER.items()]
    lines = [f'    config.{former} = {value!r}\n' for former, (_, value) in FORMER.items()]
    head = 'from configs import tiny\n\n\ndef get_config():\n    config = tiny.get_config()\n'
    (tmp_path / 'own.py').write_text(head + ''.join(lines) + '    return config\n', encoding='utf-8')
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter('always')
        assert recipe.load(str(tmp_path / 'own.py')) == config
    assert "field 'verify_every' is now called 'sdc_check_every'" in str(notes[0].message)
    assert [(note.filename, note.lineno) for note in notes] == [(str(tmp_path / 'own.py'), 6 + n) for n in range(4)]
    for name, value in FORMER.values():
        assert dict(recipe.leaves(config))[name] == value
    with pytest.raises(ValueError, match='config.data.learns'):  # a name of another section
        recipe.load('tiny', {'data.learns': 'x'})


def test_budget_override_replaces_the_recipes():
    config = recipe.load('quickstart', {'budget.steps': '7'})
    assert (config.budget.steps, config.budget.hours) == (7, None)
    assert recipe.load('quickstart').budget.hours > 0
    both = recipe.load('quickstart', {'budget.steps': '7', 'budget.hours': '1'})  # refused later
    assert (both.budget.steps, both.budget.hours) == (7, 1.0)
    with pytest.raises(ValueError, match=r'config\.\w+\.every_steps follows a field that is not set'):
        recipe.load('tiny', {'budget.hours': '1'})


@pytest.mark.parametrize(
    ('field', 'text', 'value'),
    [
        ('budget.steps', '1_000', 1000),
        ('budget.steps', '1e3', 1000),
        ('model.num_layers', '1.2e1', 12),
        ('task.train', 'train.csv', ('train.csv',)),
        ('task.train', 'a.csv,b.csv', ('a.csv', 'b.csv')),
        ('task.train', "('a.csv', 'b')", ('a.csv', 'b')),
        ('init.ignore', 'x', ('x',)),
        ('sample.prompts', 'Once upon a time, there', ('Once upon a time, there',)),
        ('adapt.lora.rank', '16', (('.*/attention/(query|value)/kernel', 16),)),
        ('adapt.lora.rank', "(('.*', 4),)", (('.*', 4),)),
        ('adapt.lora.alpha', '32', (('.*', 32),)),
        ('adapt.lora.alpha', '0.5', (('.*', 0.5),)),
        ('adapt.lora.targets', 'all-linear', 'all-linear'),
        ('budget.tokens', '1e9', 1e9),
        ('optimizer.weight_decay', '0', 0.0),
        ('mesh.data', '-1', -1),
        ('model.tied', 'False', False),
        ('data.root', '', ''),
        ('data.source', 'a=b c*.txt', 'a=b c*.txt'),
        ('sample.prompts', "['a', 'b']", ('a', 'b')),
        ('data.mix', "[['x.txt', 0.5]]", (('x.txt', 0.5),)),
    ],
)
def test_text_is_parsed_as_the_type_of_its_field(field, text, value):
    found = dict(recipe.leaves(recipe.load('quickstart', {field: text})))[field]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ('field', 'text'),
    [
        ('model.num_layers', '4.5'),
        ('model.num_layers', '1.5e0'),
        ('model.num_layers', '1e-3'),
        ('model.num_layers', '9' * 5000),
        ('model.num_layers', 'none'),
        ('optimizer.learning_rate', 'inf'),
        ('optimizer.learning_rate', 'fast'),
        ('model.tied', '1'),
        ('sample.prompts', '(' * 500),
        ('sample.prompts', '("a", "b"'),
        ('evaluate.sources', '1.5'),
        ('data.mix', '3'),
        ('data.mix', 'more.txt'),
        ('sweep.seeds', '3'),
        ('adapt.lora.rank', 'many'),
    ],
)
def test_wrong_type_names_field_text_and_type(field, text):
    with pytest.raises(ValueError, match=rf'config\.{field} must be .*, not ') as error:
        recipe.load('tiny', {field: text})
    assert len(str(error.value)) < 300
    assert f'; now it is {dict(recipe.leaves(recipe.load("tiny")))[field]!r}' in str(error.value)


@pytest.mark.parametrize(
    ('field', 'text', 'value'),
    [
        ('compare.only', 'zero_shot,bm25,head', ('zero_shot', 'bm25', 'head')),
        ('compare.only', 'zero_shot', ('zero_shot',)),
        ('compare.arms.head.scores', 'sum,batch', ('sum', 'batch')),
        ('compare.templates', 'Text: {text}, label: {label}', ('Text: {text}, label: {label}',)),
        ('compare.sizes', '8,16', (8, 16)),
        ('model.biased', 'query,mlp', ('query', 'mlp')),
        ('log.trackers', 'wandb', ('wandb',)),
    ],
)
def test_commas_separate_texts_of_every_section(field, text, value):
    assert dict(recipe.leaves(recipe.load('compare', {field: text})))[field] == value


def test_a_refused_tuple_names_the_comma_and_the_present_value_in_whole_words():
    with pytest.raises(ValueError, match=r"a tuple of one value has a comma: \('review',\)\)"):
        recipe.load('compare', {'task.text': "('review')"})
    with pytest.raises(ValueError, match=r'a tuple of one value has a comma: \(8,\)\)'):
        recipe.load('compare', {'compare.sizes': '(8)'})
    with pytest.raises(ValueError, match=r"must be a tuple.*; now it is \('zero_shot', .*', \.\.\.$") as error:
        recipe.load('compare', {'compare.only': '("head"'})
    assert len(str(error.value).partition('now it is ')[2]) <= 84


def test_recipe_may_give_one_value_for_a_tuple(tmp_path):
    body = 'config.task.train, config.adapt.lora.rank, config.adapt.lora.alpha = "a.csv", 16, 32'
    path = tmp_path / 'own.py'
    path.write_text(
        f'from configs import tiny\ndef get_config():\n    config = tiny.get_config()\n    {body}\n    return config\n'
    )
    config = recipe.load(str(path))
    assert config.task.train == ('a.csv',) and config.adapt.lora.alpha == (('.*', 32),)
    assert config.adapt.lora.rank == (('.*/attention/(query|value)/kernel', 16),)


@pytest.mark.parametrize(
    ('body', 'said'),
    [
        ('config.model.num_layer = 3', "line 4: unknown field 'num_layer', did you mean .*model.num_layers"),
        ('config.model.num_layers = "3"', 'line 4: .*int'),
        ('config.model.num_layers = True', r'config\.model\.num_layers must be an integer, not True'),
        ('config.optimizer.learning_rate = float("nan")', r'config\.optimizer\.learning_rate must be finite'),
        ('undefined', "line 4: name 'undefined' is not defined"),
        ('config.model.num_layers = = 3', 'line 4: invalid syntax'),
        ('return None', 'get_config returned NoneType'),
    ],
)
def test_an_error_in_a_recipe_names_its_line(body, said, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from configs import base\ndef get_config():\n    config = base.get_config()\n'
        f'    config.budget.steps = 1; {body}\n    return config\n'
    )
    with pytest.raises(ValueError, match=rf'mine\.py.*{said}'):
        recipe.load(str(path))


def test_recipe_without_base_config_is_an_error(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({"seed": 1})\n')
    with pytest.raises(ValueError, match=r'config\..* is missing; a recipe starts from configs.base'):
        recipe.load(str(path))
    path.write_text('steps = 3\n')
    with pytest.raises(ValueError, match='get_config'):
        recipe.load(str(path))


def test_every_recipe_resolves_and_survives_json():
    for name in NAMES:
        config = recipe.load(name)
        assert config.is_locked, name
        assert sum(value is not None for value in config.budget.values()) == 1, name
        again = json.loads(config.to_json())
        for field, value in recipe.leaves(config):
            node = again
            for part in field.split('.'):
                node = node[part]
            assert recipe.tuples(node) == value, (name, field)


def test_every_recipe_can_run_for_one_step():
    for name in NAMES:
        config = recipe.load(name, {'budget.steps': '1', 'model.num_layers': '1'})
        assert config.evaluate.every_steps >= 1 and config.checkpoint.every_steps >= 1, name
        Transformer(**config.model)


def test_documented_commands_work():
    told = [cli.HELP, (recipe.FOLDER.parent / 'README.md').read_text()]
    told += [
        path.read_text() for folder in ('configs', 'launch') for path in (recipe.FOLDER.parent / folder).glob('*.py')
    ]
    commands = re.findall(
        r'lmtrain (?:train|show) (--config=configs/(?!NAME).*?)(?:\s{2,}|$|`)',
        re.sub(r'\\+\n\s*', '', '\n'.join(told)),  # continued lines are one
        re.MULTILINE,
    )
    assert len(commands) > 15
    for command in commands:
        words = dict(word.removeprefix('--').partition('=')[::2] for word in shlex.split(command))
        overrides = {key.removeprefix('config.'): text for key, text in words.items() if key.startswith('config.')}
        Transformer(**recipe.load(words['config'], overrides).model)


def test_every_recipe_states_its_claim_command_cost_and_score():
    results = (recipe.FOLDER.parent / 'experiments').glob('*/results.json')
    programs = [file.read_text(encoding='utf-8') for path in results for file in path.parent.glob('*.py')]
    for name in NAMES:
        text = (recipe.FOLDER / f'{name}.py').read_text(encoding='utf-8').split('"""')[1]
        assert len(text.splitlines()[0]) <= 120, name
        for heading in ('Command: ', 'Cost:    ', 'Score:   '):
            assert f'\n{heading}' in text, name
        assert f'configs/{name}.py' in text, name
        if any(f'configs/{name}.py' in program or f"cli.train('{name}'" in program for program in programs):
            assert 'not measured' not in text.partition('Score:   ')[2].partition('\n')[0], name


def test_the_list_has_every_recipe_and_its_claim(capsys):
    assert cli.main(['configs']) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert f'  {name} ' in said
        assert recipe.claim(recipe.FOLDER / f'{name}.py') in ' '.join(said.split())  # it may go on in the next line
    assert '--config=configs/ladder.py:10M ' in said  # how to select a variant


def test_show_marks_what_differs(capsys):
    assert cli.main(['show', '--config=tiny', '--config.model.num_heads=4']) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[2:].split()[0]: line for line in lines if line[:2] in ('  ', '* ', '> ')}
    assert len(rows) > 60
    assert rows['num_heads'].startswith('> num_heads')
    assert rows['width'].startswith('* width')
    assert '(base 256)' in rows['width']
    assert rows['num_kv_heads'].startswith('  num_kv_heads') or '(base ' in rows['num_kv_heads']
    assert rows['norm'].startswith('  norm')
    assert 'rows per step' in rows['batch_size']


@pytest.mark.parametrize(
    'words',
    [
        ['--config=tiny', '--config.log.every_steps=0'],
        ['--config=tiny', '--config.optimizer.name=adam'],
        ['--config=tiny', '--config.model.num_heads=3'],
        ['--config=tiny', '--config.data.seq_len=1'],
        ['--config=tiny', '--config.adapt.method=lora', '--config.adapt.lora.targets=layers/nothing'],
        ['--config=tiny', '--config.optimizer.learning_rates=(("no", 2.0),)'],
        ['--config=tiny', '--config.sample.temperature=-1'],
        ['--config=tiny', '--config.budget.hours=1', '--config.budget.steps=2'],
        ['--config=classify', '--config.data.tokenizer=bytes', '--config.task.name=classification'],
        ['--config=instruct', '--config.data.tokenizer=bytes', '--config.task.train=nowhere.csv'],
    ],
)
def test_show_refuses_what_a_dry_run_refuses(words, capsys, text, monkeypatch):
    monkeypatch.setattr(process_setup, 'configure', lambda: None)
    errors = []
    for verb in (['show'], ['train', '--dry_run', f'--config.data.source={text}']):
        assert cli.main([*verb, *words]) == 2
        out, err = capsys.readouterr()
        errors.append(err.partition(': ')[2])
        assert not out
    assert errors[0] == errors[1]


def test_show_fits_80_columns_of_a_terminal(capsys, monkeypatch):
    assert cli.main(['show', '--config=cramming_bert']) == 0
    wide = capsys.readouterr().out.split()
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setenv('NO_COLOR', '1')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    assert cli.main(['show', '--config=cramming_bert']) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80 and narrow.split() == wide  # nothing is left out


def test_show_has_every_field_once(capsys):
    assert cli.main(['show', '--config=tiny']) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line[2:].split()[0] for line in lines[:-1] if line[:2] in ('  ', '* ') and line[2:3].isalpha()]
    assert sorted(shown) == sorted(field.rpartition('.')[2] for field in FIELDS)
    assert not [line for line in lines if line.startswith('compare')]  # fields of another kind of recipe


@pytest.mark.slow
@given(st.sampled_from(FIELDS), st.text(max_size=30))
@example('optimizer.learning_rates', "(('.*', float('nan')),)")
@example('data.mix', '(((((1,),),),),)')
@settings(max_examples=60, deadline=None)
def test_no_override_ends_in_a_traceback(field, text):
    try:
        config = recipe.load('tiny', {field: text})
    except ValueError as error:
        assert f'config.{field}' in str(error) or 'follows' in str(error)
        assert '\n' not in str(error)
    else:
        assert recipe.tuples(json.loads(config.to_json())) is not None


@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=20), max_size=3))
@settings(max_examples=30, deadline=None)
def test_no_command_line_ends_in_a_traceback(words):
    for argv in (['show', '--config=tiny', *words], ['show', *(f'--config{word}' for word in words)]):
        assert cli.main(argv) in (0, 2)


SIZES = [f'pretrain_gpt2:{size}' for size in ('124M', '355M', '774M', '1558M')]
SIZES += [f'ladder:{size}' for size in ('1M', '3M', '10M', '25M', '85M', '200M', '400M', '700M')]
SIZES += [f'pretrain_llama:{size}' for size in ('1B', '3B', '8B', '70B')]
EMBEDDED = {'pretrain_gpt2': True, 'pretrain_llama': True, 'ladder': False}  # whether the name counts the embeddings


@pytest.mark.slow
def test_every_size_has_the_parameter_count_in_its_name():
    for name in SIZES:
        family, _, size = name.partition(':')
        shapes = shapes_of(recipe.load(name, {'model.unroll': '1'}))
        leaves = tree.flatten(shapes if EMBEDDED[family] else shapes['layers'])
        parameters = sum(math.prod(leaf.shape) for leaf in leaves.values())
        named = float(size[:-1]) * {'M': 1e6, 'B': 1e9}[size[-1]]
        assert parameters == pytest.approx(named, rel=0.35 if size in ('1M', '1B') else 0.1), name


@pytest.mark.parametrize('size', ['1B', '3B', '8B', '70B'])
def test_budget_of_llama_is_twenty_tokens_per_parameter(size):
    config = recipe.load(f'pretrain_llama:{size}')
    assert config.budget.tokens == pytest.approx(20e9 * float(size[:-1]), rel=0.26 if size == '1B' else 0.1)


@pytest.mark.parametrize('size', ['8B', '70B'])
def test_llama_recipe_of_a_size_is_the_variant_of_that_size(size):
    assert recipe.load(f'pretrain_llama_{size.lower()}').to_json() == recipe.load(f'pretrain_llama:{size}').to_json()


def test_the_model_of_every_recipe_has_the_configured_shapes():
    for name in sorted(set(NAMES) - EMBEDDED.keys()):
        config = recipe.load(name, {'model.unroll': '1'})  # the shapes are the same, and tracing takes less time
        shapes = shapes_of(config)
        assert shapes['embed']['embedding'].shape == (config.model.vocab_size, config.model.width), name
        assert shapes['layers']['attention']['query']['kernel'].shape[0] == config.model.num_layers, name


def shapes_of(config):
    model = Transformer(**config.model)
    batch = {'tokens': np.zeros((1, config.data.seq_len), np.int32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)['params']


@pytest.mark.parametrize(
    ('name', 'answer'), [('tiny', 'yes, as llama'), ('modern', "no, because .* model.activation='relu2'")]
)
def test_show_reports_whether_the_model_can_be_exported(capsys, name, answer):
    cli.main(['show', f'--config={name}'])
    shown = ' '.join(capsys.readouterr().out.split())
    assert re.search(f'exportable: {answer}', shown)


@pytest.mark.parametrize(
    ('name', 'overrides', 'failed', 'zero'),
    [
        ('modern', {'model.width': '64'}, 'head_dim', 'num_heads'),  # 64 // 128 heads
        ('modern', {'model.width': '0'}, 'head_dim', 'width'),
        ('tiny', {'model.num_heads': '0'}, 'head_dim', 'num_heads'),
        ('tiny', {'model.num_heads': '0', 'model.width': '64'}, 'head_dim', 'num_heads'),
    ],
)
def test_a_derived_field_that_divides_by_zero_is_named(name, overrides, failed, zero):
    with pytest.raises(ValueError) as error:
        recipe.load(name, overrides)
    said = str(error.value)
    assert '\n' not in said
    assert f'config.model.{failed} is computed by a division by zero (config.model.{zero} = 0)' in said


@pytest.mark.parametrize('order', [1, -1])
def test_division_by_zero_prevented_by_a_later_override_is_no_error(order):
    overrides = [('model.width', '64'), ('model.num_heads', '1')][::order]
    model = recipe.load('modern', dict(overrides)).model
    assert (model.num_heads, model.num_kv_heads, model.head_dim) == (1, 1, 64)
