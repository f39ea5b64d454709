"""A trained reward model scores texts, and is exported as a classifier with one label."""

import json
import shutil

import jax
import numpy as np
import pytest

import lmtrain
from configs import tiny
from configs.base import get_config
from launch import cli
from lmtrain.api import rows as api_rows
from lmtrain.cost import hlo
from lmtrain.data.chat.load import open_template
from lmtrain.data.chat.template import Template
from lmtrain.data.rows import Row
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.errors import InputError
from lmtrain.evaluation import heads
from lmtrain.models import Transformer
from lmtrain.rewards import RewardFunction, model_reward
from lmtrain.tasks import TASKS
from lmtrain.training import reward_scores
from lmtrain.training.load import LoadedModel

ROWS = [
    {'prompt': f'word {n} ', 'chosen': 'good' + '!' * (n % 3), 'rejected': 'bad' + '?' * (n % 4)} for n in range(32)
]


@pytest.fixture(scope='module', params=['auto', 'last'])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('reward')
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS), encoding='utf-8')
    config = tiny.get_config()
    config.data.update(root=str(folder), cache=str(folder / 'cache'), seq_len=64, batch_size=8, test=0.0)
    config.model.update(num_layers=1, width=32, unroll=1)
    config.task.update(name='reward', train=('rows.jsonl',), validation=('rows.jsonl',), text=(), label='', buckets=2)
    config.objective.update(pool=request.param, centring=0.01)
    config.budget.steps, config.optimizer.learning_rate = 30, 0.01
    config.evaluate.max_batches, config.log.every_steps, config.log.tensorboard = 0, 10, False
    results = lmtrain.train(config, folder / 'run')
    return folder / 'run', results


@pytest.mark.slow
def test_reward_model_learns_and_scores_texts(trained):
    folder, results = trained
    assert results['validation']['accuracy'] > 0.9
    scores = lmtrain.evaluate(folder, split='validation')
    assert scores['accuracy'] == pytest.approx(results['validation']['accuracy'])
    assert 0 <= scores['calibration_error'] < 0.5
    prompts = [row['prompt'] for row in ROWS]
    chosen, rejected = (
        reward_scores.score_texts(str(folder), prompts, [row[side] for row in ROWS]) for side in ('chosen', 'rejected')
    )
    assert chosen.shape == (32,) and chosen.dtype == np.float32
    assert np.mean(chosen > rejected) == pytest.approx(scores['accuracy'])
    np.testing.assert_allclose(np.mean(chosen - rejected), scores['margin'], rtol=1e-4)
    alone = reward_scores.score_texts(lmtrain.load(str(folder)), prompts[:1], [ROWS[0]['chosen']])
    np.testing.assert_allclose(alone, chosen[:1], rtol=1e-5, atol=1e-5)
    loaded = lmtrain.load(str(folder))
    begin, end = 256, 256  # of a text of bytes
    assert reward_scores._encode(loaded, 'ab', '') == [begin, *b'ab', end]
    assert reward_scores._encode(loaded, 'ab', 'c') == [begin, *b'abc', end]
    assert np.isfinite(reward_scores.score_texts(loaded, ['word 3 '], [''])).all()


@pytest.mark.slow
def test_flops_of_scores_are_those_of_the_compiler(no_compilation_cache, trained):
    score = reward_scores.scorer(str(trained[0]))
    texts = ['good'] * 32 + ['good and then some more than thirty-two of them'] * 8  # two batches, of 32 and 64 tokens
    score([''] * 40, texts)
    params, compiled = score.loaded.params, 0.0
    for length in (32, 64):
        tokens = np.ones((32, length), np.int32)
        batch = {'tokens': tokens, 'segment_ids': tokens, 'scored': np.ones((32, 1), np.int32)}
        program = score._run.lower(params, batch).compile({'xla_backend_optimization_level': 0})
        compiled += hlo.compiled_flops(program)
    np.testing.assert_allclose(score.flops, compiled, rtol=0.05)


def test_exported_reward_model_is_a_classifier_with_one_label(trained, tmp_path):
    folder, _ = trained
    lmtrain.export(folder, tmp_path / 'out', format='hf')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text(encoding='utf-8'))
    assert config['architectures'] == ['LlamaForSequenceClassification'] and config['num_labels'] == 1
    scores = [
        reward_scores.score_texts(str(where), ['word 3 '], ['good and then some'])
        for where in (folder, tmp_path / 'out')
    ]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)


def test_export_is_recognised_as_a_reward_model(trained, tmp_path):
    # As if the base had a chat template: these rows were not written by it, so the export must not have it.
    folder = shutil.copytree(trained[0], tmp_path / 'run')
    (folder / 'tokenizer' / 'chat_template.jinja').write_text('{{ messages }}', encoding='utf-8')
    lmtrain.export(folder, tmp_path / 'out', format='hf')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text(encoding='utf-8'))
    assert (config['id2label'], config['problem_type']) == ({'0': 'reward'}, 'regression')
    exported, row = lmtrain.load(tmp_path / 'out'), {'prompt': 'word 3 ', 'completion': 'good'}
    assert exported.template is None and 'chat_template' not in exported.tokenizer.config
    [own], [other] = lmtrain.load(trained[0]).predict([row]), exported.predict([row])
    assert other['prediction'] == pytest.approx(own['prediction'], abs=1e-5)
    with pytest.raises(InputError, match='a pair: one completion is scored'):
        exported.predict(ROWS[:1])

    (tmp_path / 'out' / 'chat_template.jinja').write_text('{{ messages[0].content }}', encoding='utf-8')
    assert lmtrain.load(tmp_path / 'out').template, 'an export with a chat template was trained with it'
    config |= {'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
    (tmp_path / 'out' / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    assert lmtrain.load(tmp_path / 'out').template is None
    assert api_rows.predicted_task(lmtrain.load(tmp_path / 'out')).name == 'regress'


@pytest.mark.slow
def test_exported_adapter_scores_by_the_chat_template_of_its_run(tmp_path):
    text_run(tmp_path, tmp_path / 'text')
    lmtrain.export(tmp_path / 'text', tmp_path / 'base', format='hf')
    pairs = []
    for row in ROWS[:16]:
        sides = {name: [{'role': 'assistant', 'content': row[name]}] for name in ('chosen', 'rejected')}
        pairs.append({'prompt': [{'role': 'user', 'content': row['prompt']}]} | sides)
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in pairs), encoding='utf-8')
    config = tiny.get_config()
    config.init.base, config.data.tokenizer, config.adapt.method = str(tmp_path / 'base'), 'base', 'lora'
    config.data.update(root=str(tmp_path), cache=str(tmp_path / 'cache'), seq_len=64, batch_size=8, test=0.0)
    config.task.update(name='reward', train=('rows.jsonl',), validation=('rows.jsonl',), text=(), label='')
    config.budget.steps, config.optimizer.learning_rate = 2, 0.01
    config.log.tensorboard = False
    lmtrain.train(config, tmp_path / 'run')
    lmtrain.export(tmp_path / 'run', tmp_path / 'adapter', format='peft')
    own, row = lmtrain.load(tmp_path / 'run'), {'messages': pairs[3]['prompt'] + pairs[3]['chosen']}
    assert 'chat_template' not in lmtrain.load(tmp_path / 'base').tokenizer.config
    for base in ('base', 'text'):  # a Hugging Face directory, and the run that was exported
        other = lmtrain.load(tmp_path / base, adapter=str(tmp_path / 'adapter'))
        assert other.template.source == own.template.source and api_rows.predicted_task(other).name == 'reward'
        assert other.predict([row])[0]['prediction'] == pytest.approx(own.predict([row])[0]['prediction'], abs=1e-5)


def text_run(folder, to):
    config = tiny.get_config()
    config.data.update(source=str(folder / 'a.txt'), cache=str(folder / 'cache'), validation=0.3, test=0.0, seq_len=64)
    (folder / 'a.txt').write_text('a few words. ' * 400)
    config.model.update(num_layers=1, width=16, unroll=1)
    config.budget.steps, config.log.tensorboard = 1, False
    lmtrain.train(config, to)


@pytest.mark.slow
def test_model_without_a_score_is_refused(tmp_path):
    text_run(tmp_path, tmp_path / 'run')
    with pytest.raises(InputError, match="needs a head for it; the model has model.head='lm'"):
        reward_scores.scorer(str(tmp_path / 'run'))


@pytest.mark.slow
def test_predict_writes_a_reward_for_every_row(trained, tmp_path, capsys):
    folder, _ = trained
    rows = [{'prompt': row['prompt'], 'completion': row['chosen'], 'id': n} for n, row in enumerate(ROWS[:3])]
    rows += [{'prompt': 'word 1 ', 'completion': ' ', 'id': 3}, {'question': 'word 0 ', 'answer': 'good', 'id': 4}]
    rows += [{'prompt': 'word ' * 30, 'completion': 'good', 'id': 5}]
    (tmp_path / 'new.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    words = ['predict', f'--workdir={folder}', f'--rows={tmp_path / "new.jsonl"}', f'--to={tmp_path / "out.jsonl"}']
    assert cli.main(words) == 0
    notes = capsys.readouterr().err
    assert 'reward: 6 rows\n' in notes and '1 without text' in notes and '1 longer than the context of the' in notes
    written = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [{name: each[name] for name in row} for each, row in zip(written, rows)] == rows
    predicted = [row['prediction'] for row in written]
    prompts, completions = ([row[name] for row in ROWS[:3]] for name in ('prompt', 'chosen'))
    expected = reward_scores.score_texts(str(folder), prompts, completions)
    np.testing.assert_allclose(predicted[:3], expected, rtol=1e-5, atol=1e-5)
    assert predicted[3] is None and predicted[4] == pytest.approx(predicted[0], abs=1e-5)
    model = lmtrain.load(folder)
    named = model.predict([{'q': 'word 0 ', 'reply': 'good'}], text=('q', 'reply'))
    assert named == [{'prediction': pytest.approx(predicted[0], abs=1e-5)}]


def test_reward_of_a_conversation_is_that_of_its_last_answer(trained):
    model = lmtrain.load(trained[0])
    model = model._replace(template=open_template('plain', model.tokenizer, '', '2026-01-01'))
    turns = [{'role': 'user', 'content': 'word 3 '}, {'role': 'assistant', 'content': 'good'}]
    [last] = model.predict([{'messages': turns}])
    score = reward_scores.score_texts(model, ['word 3 '], ['good'])
    assert last['prediction'] == pytest.approx(float(score[0]), abs=1e-5)
    row = Row('row 0', {'messages': [*turns, turns[0], {'role': 'assistant', 'content': 'bad??'}]})
    ids = reward_scores._ids(model, reward_scores._dialogue(row, (), model), 'row 0')
    text = bytes(token for token in ids if token < 256).decode()
    assert text.count('word 3') == 2 and 'good' in text and text.rstrip().endswith('bad??')
    with pytest.raises(InputError, match='row 0: the last message must be of the assistant'):
        model.predict([{'messages': turns[:1]}])


def test_prompt_of_a_conversation_is_scored_as_its_messages(trained):
    """Not as the text that a template has written of them, which the template would write once more."""
    model = lmtrain.load(trained[0])
    messages = [{'role': 'user', 'content': 'word 3 '}]
    row = {'question': messages}
    for template in ('plain', 'none'):
        model = model._replace(template=open_template(template, model.tokenizer, '', '2026-01-01'))
        score = reward_scores.scorer(model, text=('question',))
        written = 'word 3 ' if template == 'plain' else 'user: word 3 '
        for completion in ('good', ''):
            expected = reward_scores.score_texts(model, [written], [completion])
            np.testing.assert_array_equal(score(['user: word 3 '], [completion], [row]), expected)


def test_completion_that_the_template_does_not_write_is_a_failure_and_ends_no_run(trained):
    model = lmtrain.load(trained[0])
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    model = model._replace(template=Template(source, 'own'))
    part = model_reward.reward('folder', reward_scores.scorer(model))
    prompts, completions = ['word 3 '] * 3, ['good', 'abc</think>', 'bad']
    scored = RewardFunction({'model': part}, {'model': 1.0})(prompts, completions, [{'prompt': 'word 3 '}] * 3)
    expected = reward_scores.score_texts(model, ['word 3 '] * 2, ['good', 'bad'])
    np.testing.assert_array_equal(scored.total, [expected[0], min(0.0, *expected), expected[1]])
    assert scored.failures == {'model: a completion: the template writes no token of the completion': 1}
    with pytest.raises(InputError, match='the template writes no token of the completion'):
        reward_scores.score_texts(model, ['word 3 '], ['abc</think>'])


def test_prompt_that_the_template_does_not_write_is_an_error(trained):
    model = lmtrain.load(trained[0])
    model = model._replace(template=Template("{{ raise_exception('no turns') }}", 'own'))
    with pytest.raises(InputError, match='the prompt: own fails on this row: no turns'):
        reward_scores.scorer(model)(['word 3 '], ['good'])


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (ROWS[0], 'row 0: a pair: one completion is scored'),
        ({'messages': [{'role': 'system', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]}, 'without a templ'),
        ({'text': 'a'}, "row 0: no format of conversations in the fields 'text': name those of prompt and"),
    ],
)
def test_rows_without_one_completion_are_refused(trained, row, message):
    with pytest.raises(InputError, match=message):
        lmtrain.load(trained[0]).predict([row])


@pytest.mark.parametrize('method', ['full', 'prompt', 'prefix'])
def test_texts_beyond_learned_positions_are_cut(method):
    """RoBERTa's positions begin at 2, and those of a text after virtual tokens: here 16, of which 14 or 11 are left."""
    model = get_config().model.to_dict() | {'num_layers': 2, 'width': 16, 'num_heads': 4, 'head_dim': 4}
    model |= {'vocab_size': 320, 'mlp_dim': 32, 'max_len': 16, 'positions': 'learned', 'position_offset': 2}
    model = Transformer(**model | {'causal': False, 'head': 'classify', 'num_labels': 1, 'unroll': 2})
    params = model.init(jax.random.key(0), {'tokens': np.zeros((1, 8), np.int32)})['params']
    if method == 'prompt':
        params['prompt'] = {'embedding': np.ones((3, 16), np.float32)}
    elif method == 'prefix':
        params['layers']['attention'] |= dict.fromkeys(
            ('prefix_key', 'prefix_value'), np.ones((2, 3, 4, 4), np.float32)
        )
    longest = 14 if method == 'full' else 11
    if method != 'prompt':  # a soft prompt precedes one of the segments that a reward model reads: it is refused
        loaded = LoadedModel(None, model, Bytes(), params, 0, [], None)
        rows = [Row('rows.jsonl:1', {'a': 'x', 'b': 'y' * size}) for size in (longest - 3, longest - 2, 20)]
        predicted, beyond = reward_scores.predict_rows(loaded, rows, ('a', 'b'))
        assert np.isfinite([each['prediction'] for each in predicted]).all()
        assert beyond == 2  # with the tokens that begin and end a text
    rows = [Row('rows.jsonl:1', {'a': 'y' * size}) for size in (longest - 2, 20)]
    predicted, beyond = heads.predict_rows(model, params, Bytes(), TASKS['regress'], rows, heads.Head(), text=['a'])
    assert np.isfinite([each['prediction'] for each in predicted]).all() and beyond == 1
    text = {'text': ['a'], 'label': 'b', 'too_long': 'cut'}
    rows = [Row('rows.jsonl:1', {'a': 'y' * 20, 'b': 1.0})] * 2
    results, _ = heads.score_rows(model, params, Bytes(), TASKS['regress'], rows, heads.Head(), **text)
    assert results['too_long'] == 2
