"""Forgetting: bits per byte and divergence on the text of the base, against numpy."""

import dataclasses
import json
import math
import re

import jax
import ml_collections
import numpy as np
import pytest

import lmtrain
from configs import compare, tiny
from lmtrain import tree
from lmtrain.compare import forgetting
from lmtrain.compare.trials import Comparison
from lmtrain.errors import InputError
from lmtrain.models import lm_head
from lmtrain.training.init_from import open_base


@pytest.fixture(scope='module')
def comparison(text):
    config = tiny.get_config()
    config.data.source, config.data.cache = str(text), str(text.parent / 'cache')
    config.data.validation = config.data.test = 0.2
    lmtrain.train(config, text.parent / 'base')
    settings = compare.get_config()
    settings.data.cache = str(text.parent / 'cache')
    base = text.parent / 'base'
    own = Comparison(settings, text.parent, None, open_base(str(base)), lmtrain.load(base), [])
    found = forgetting.own_text(own)
    assert found.batches and not found.reason and not found.digest
    return own._replace(own_text=found.batches)


def of_text(comparison, path):
    """The comparison on a base from elsewhere, with config.compare.base_text."""
    config = comparison.config.copy_and_resolve_references()
    config.compare.base_text = str(path)
    return comparison._replace(config=config, model=comparison.model._replace(config=None), own_text=[])


def test_a_named_text_is_that_of_a_base_from_elsewhere(comparison, tmp_path):
    unknown = of_text(comparison, '')
    assert forgetting.own_text(unknown).reason.endswith('is not known; set config.compare.base_text')
    texts = [f'{i} cats sat on {i * i} mats. ' * 3 for i in range(9)]  # fewer than ROWS rows
    (tmp_path / 'folder').mkdir()
    for i, text in enumerate(texts):
        (tmp_path / 'folder' / f'{i}.txt').write_text(text, encoding='utf-8')
    (tmp_path / 'one.txt').write_text(texts[0], encoding='utf-8')
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts), encoding='utf-8')
    digests = set()
    for name, documents in (('folder', 9), ('one.txt', 1), ('rows.jsonl', 9)):
        own = of_text(comparison, tmp_path / name)
        found = forgetting.own_text(own)
        num_bytes = sum(batch['bytes'].sum() for batch in found.batches)
        assert num_bytes == sum(len(text) for text in texts[:documents]) and not found.reason  # every document
        measured = forgetting.measure(own._replace(own_text=found.batches), own.model)
        assert measured['kl'] == 0 and measured['bits_per_byte_before'] > 0
        digests.add(found.digest)
    assert len(digests) == 2 and '' not in digests  # the folder and the rows are one text


def test_a_named_text_that_is_missing_or_short_is_refused(comparison, tmp_path):
    (tmp_path / 'short.txt').write_text('cats', encoding='utf-8')
    with pytest.raises(
        InputError, match=r"config.compare.base_text='.*absent.txt', which is read as data.source: .*no "
    ):
        forgetting.own_text(of_text(comparison, tmp_path / 'absent.txt'))
    with pytest.raises(
        InputError, match=r"config.compare.base_text='.*short.txt' has [56] tokens of the base, and a row"
    ):
        forgetting.own_text(of_text(comparison, tmp_path / 'short.txt'))


def test_the_base_has_forgotten_nothing(comparison):
    measured = forgetting.measure(comparison, comparison.model)
    assert measured['kl'] == 0 and measured['bits_per_byte_before'] == measured['bits_per_byte_after']


@pytest.mark.slow
def test_bits_and_divergence_are_those_of_numpy(comparison):
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(x.dtype), comparison.model.params)
    headed = trained | {'task_head': {'output': {'kernel': np.zeros((32, 3), np.float32)}}}
    measured = forgetting.measure(comparison, comparison.model._replace(params=headed))

    nats, kl, count, num_bytes = np.zeros(2), 0.0, 0, 0
    for batch in comparison.own_text:
        columns = {name: batch[name] for name in ('tokens', 'segment_ids', 'positions')}
        logits = [
            comparison.model.model.apply({'params': p}, columns)['logits'] for p in (comparison.model.params, trained)
        ]
        before, after = (np.asarray(jax.nn.log_softmax(x, axis=-1), np.float64) for x in logits)
        for row, at in zip(*np.nonzero(batch['loss_mask'])):
            target = batch['targets'][row, at]
            nats += -np.array([before[row, at, target], after[row, at, target]])
            kl += np.sum(np.exp(before[row, at]) * (before[row, at] - after[row, at]))
            count, num_bytes = count + 1, num_bytes + batch['bytes'][row, at]
    bits = nats / math.log(2) / num_bytes
    assert [measured['bits_per_byte_before'], measured['bits_per_byte_after']] == pytest.approx(bits.tolist(), rel=1e-5)
    assert measured['kl'] == pytest.approx(kl / count, rel=1e-3) and measured['kl'] > 1e-3


def test_segments_of_layers_replace_the_layers_of_the_base(comparison):
    cut = tree.cut(comparison.model.params, (1, 1))
    head = {'heads': {'classify': {'kernel': np.zeros((32, 3), np.float32)}}}
    params = forgetting.language_model(comparison.model, comparison.model._replace(params=cut | head))
    assert tree.flatten(params).keys() == tree.flatten(cut).keys()


@pytest.mark.parametrize(('task', 'trained'), [('text', 1), ('chat', 1), ('classify', 0)])
def test_an_untied_head_is_kept_by_tasks_that_train_it(comparison, task, trained):
    base = comparison.model._replace(model=dataclasses.replace(comparison.model.model, tied=False))
    kernel = np.array(comparison.model.params['embed']['embedding']).T
    base = base._replace(params=comparison.model.params | {'head': {'kernel': kernel}})
    config = ml_collections.ConfigDict({'task': {'name': task}})
    own = base._replace(config=config, params=base.params | {'head': {'kernel': 2 * kernel}})
    params = forgetting.language_model(base, own)
    assert np.array_equal(params['head']['kernel'], (1 + trained) * kernel)
    measured = forgetting.measure(comparison._replace(model=base), own)
    assert (measured['kl'] > 1e-3) == bool(trained)


def test_logits_of_all_positions_are_never_there_at_once(comparison, monkeypatch):
    base = comparison.model
    batch = {name: np.concatenate([column] * 8) for name, column in comparison.own_text[0].items()}
    whole = jax.device_get(forgetting._sums(base.model, base.params, base.params, batch))
    monkeypatch.setattr(lm_head, 'MAX_SAVED_LOGITS', 2**10)
    sums = jax.jit(lambda *arguments: forgetting._sums.__wrapped__(base.model, *arguments))  # traced again
    program = sums.lower(base.params, base.params, batch).compile().as_text()
    largest = max(math.prod(map(int, shape.split(','))) for shape in re.findall(r'f32\[([\d,]+)\]', program))
    assert largest < batch['targets'].size * base.model.vocab_size / 2
    np.testing.assert_allclose(sums(base.params, base.params, batch), whole, rtol=1e-5)
