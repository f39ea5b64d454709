"""Requests of lm-eval become the tokens of its own adapter; a stand-in replaces lm-eval if it is not installed."""

import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmtrain.data.tokenizers.base import Bytes, SpecialTokenLayout
from lmtrain.errors import InputError, MissingPackage
from lmtrain.inference import sample
from lmtrain.training.load import LoadedModel

MODULE = 'lmtrain.evaluation.lm_eval'


class NoPrefix(Bytes):
    """A tokenizer whose model has read texts without a begin token."""

    layout = SpecialTokenLayout((), (256,), ())


class Instance:
    """A request of lm-eval."""

    def __init__(self, *args):
        self.args = args


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module, on lm-eval if it is installed."""
    if not importlib.util.find_spec('lm_eval'):

        class LM:
            def __init__(self):
                self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: None)

        for name in ('lm_eval', 'lm_eval.api', 'lm_eval.api.model'):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules['lm_eval.api.model'].LM = LM
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return importlib.import_module(MODULE)


@pytest.fixture
def model(adapter, computes):
    small, params, tokenizer = computes
    return adapter.LMTrain(LoadedModel(None, small, tokenizer, params, 0, [256], None), batch_size=4)


def logp(computes, ids):
    model, params, _ = computes
    batch = {'tokens': jnp.asarray([ids[:-1]], jnp.int32)}
    return np.asarray(jax.nn.log_softmax(jax.jit(model.apply)({'params': params}, batch)['logits'][0]))


def test_log_likelihoods_and_greedy_continuations(computes, model):
    pairs = [('one two', ' three'), ('', 'one'), ('one two', ' 3'), ('one ', 'two'), ('x' * 70, 'yz')]
    encoded = model.encode_pairs(pairs)
    assert [(bytes(own[1:].tolist()), bytes(ids.tolist())) for own, ids in encoded[:4]] == [
        (b'one two', b' three'), (b'', b'one'), (b'one two', b' 3'), (b'one', b' two')
    ]  # fmt: skip
    assert [len(own) + len(ids) - 1 for own, ids in encoded][4] == 64 and encoded[4][0][0] == ord('x')
    answers = model.loglikelihood([Instance(*pair) for pair in pairs])
    for (nats, top), (own, ids) in zip(answers, encoded, strict=True):
        rows = logp(computes, [*own, *ids])[len(own) - 1 :]
        assert nats == pytest.approx(sum(rows[at, token] for at, token in enumerate(ids)), rel=1e-4)
        assert top == (rows.argmax(axis=1).tolist() == ids.tolist())


def test_a_begin_token_is_added_as_the_model_is_used_to(adapter, computes):
    small, params, _ = computes
    plain = LoadedModel(None, small, NoPrefix(), params, 0, [256], None)
    pairs = [('ab', 'c'), ('', 'c')]
    for settings, expected in (({}, [[*b'ab'], [256]]), ({'add_bos_token': True}, [[256, *b'ab'], [256]])):
        encoded = adapter.LMTrain(plain, **settings).encode_pairs(pairs)
        assert [own.tolist() for own, _ in encoded] == expected
    with pytest.raises(InputError, match='revision: unknown arguments'):
        adapter.LMTrain(plain, revision='main', device='cuda:0')
    with pytest.raises(InputError, match='adds no token'):
        adapter.LMTrain(plain).encode_pairs([('ab', '')])


@pytest.mark.parametrize(('given', 'batch'), [(8, 8), ('8', 8), ('auto', 32), ('auto:4', 32)])
def test_batch_sizes_of_the_command_line(adapter, computes, given, batch):
    small, params, tokenizer = computes
    loaded = LoadedModel(None, small, tokenizer, params, 0, [256], None)
    assert adapter.LMTrain(loaded, batch_size=given).batch == batch


@pytest.mark.parametrize('given', [0, '0', -1, 'all', '2.5', ''])
def test_other_batch_sizes_are_refused(adapter, computes, given):
    small, params, tokenizer = computes
    loaded = LoadedModel(None, small, tokenizer, params, 0, [256], None)
    with pytest.raises(InputError, match=f"batch_size={given!r}: a whole number of at least 1, or 'auto'"):
        adapter.LMTrain(loaded, batch_size=given)


def test_rolling_log_likelihoods_cover_every_token_once(computes, model):
    texts = ['a short text', 'a longer text, ' * 9]
    sums = model.loglikelihood_rolling([Instance(text) for text in texts])
    ids = [256, *texts[0].encode()]
    assert sums[0] == pytest.approx(logp(computes, ids)[np.arange(len(ids) - 1), ids[1:]].sum(), rel=1e-4)
    whole = [256, *texts[1].encode()]
    assert len(whole) == 136
    expected = logp(computes, whole[:65])[np.arange(64), whole[1:65]].sum()
    expected += logp(computes, whole[64:129])[np.arange(64), whole[65:129]].sum()
    expected += logp(computes, whole[71:136])[np.arange(57, 64), whole[129:136]].sum()
    assert sums[1] == pytest.approx(expected, rel=1e-4)


def test_generations_are_decoded_in_batches_of_that_size(model, monkeypatch):
    shapes = []

    def record(*arguments, original=sample.states):
        shapes.append(arguments[2].tokens.shape)
        return original(*arguments)

    monkeypatch.setattr(sample, 'states', record)
    texts = ['one', 'x' * 50, 'two', 'three', 'four', 'five']
    model.generate_until([Instance(text, {'until': [], 'max_gen_toks': 3}) for text in texts])
    assert shapes == [(4, 64), (4, 16)]


def test_generations_end_before_a_stop_text(computes, model):
    prompt = [256, *b'one two']
    options = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'end_ids': [256], 'vocab_size': 257}
    (whole,) = sample.generate(*computes[:2], [prompt], max_tokens=9, **options)
    text = bytes(whole.ids).decode('utf-8', 'replace')
    stop = text[3]
    requests = [
        Instance('one two', {'until': [], 'max_gen_toks': 9}),
        Instance('one two', {'until': [stop], 'do_sample': False, 'max_new_tokens': 9}),
        Instance('x' * 90, {'until': 'q', 'max_gen_toks': 9, 'temperature': 0.0}),
    ]
    first, second, third = model.generate_until(requests)
    assert first == text and second == text.split(stop)[0]
    (cut,) = sample.generate(*computes[:2], [[ord('x')] * 55], max_tokens=9, **options)
    assert third == bytes(cut.ids).decode('utf-8', 'replace').split('q')[0]


@pytest.mark.parametrize(
    ('settings', 'until', 'expected'),
    [
        ({}, [], (256, 0.0, 0, 1.0)),
        ({'until': '\n', 'do_sample': False, 'max_gen_toks': 8, 'temperature': 0.7}, ['\n'], (8, 0.0, 0, 1.0)),
        ({'until': ['a', 'b'], 'do_sample': True, 'top_k': 5, 'top_p': 0.9}, ['a', 'b'], (256, 1.0, 5, 0.9)),
        ({'max_new_tokens': 3, 'temperature': 0.5}, [], (3, 0.5, 0, 1.0)),
        ({'until': ['', 'b']}, ['b'], (256, 0.0, 0, 1.0)),
        ({'until': ''}, [], (256, 0.0, 0, 1.0)),
    ],
)
def test_settings_of_a_generation(adapter, settings, until, expected):
    names = 'max_tokens', 'temperature', 'top_k', 'top_p'
    assert adapter.generation_settings(settings) == (until, dict(zip(names, expected, strict=True)))


def test_settings_that_are_not_supported_are_named(adapter):
    with pytest.raises(InputError, match='num_beams'):
        adapter.generation_settings({'num_beams': 3})


def test_without_lm_eval_one_line_says_how_to_install_it(monkeypatch, computes):
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for name in ('lm_eval', 'lm_eval.api', 'lm_eval.api.model'):
        monkeypatch.setitem(sys.modules, name, None)
    small, params, tokenizer = computes
    with pytest.raises(MissingPackage, match=r'pip install -e "\.\[lm-eval\]"'):
        importlib.import_module(MODULE).LMTrain(LoadedModel(None, small, tokenizer, params, 0, [256], None))


@pytest.mark.skipif(not importlib.util.find_spec('lm_eval'), reason='lm-eval is not installed')
def test_a_task_of_lm_eval_on_our_model(model, tmp_path):
    import lm_eval

    (tmp_path / 'rows.jsonl').write_text('{"q": "a", "c": ["b", "c"], "a": 0}\n' * 3, encoding='utf-8')
    task = {'task': 'own', 'dataset_path': 'json', 'test_split': 'test', 'output_type': 'multiple_choice'}
    task |= {'dataset_kwargs': {'data_files': {'test': str(tmp_path / 'rows.jsonl')}}, 'doc_to_text': '{{q}}'}
    task |= {'doc_to_choice': '{{c}}', 'doc_to_target': '{{a}}'}
    results = lm_eval.simple_evaluate(model, tasks=[task], bootstrap_iters=0)
    assert 'acc,none' in results['results']['own']
