"""A base with the head of another task equals transformers' from_pretrained (experiments/parity/new_heads.py)."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments.parity import cases, heads, new_heads
from lmtrain import tree
from lmtrain.models import load_pretrained, pretrained, safetensors, save_pretrained

PATH = pathlib.Path(__file__).parent / 'goldens_new_heads.json'
GOLDENS = json.loads(PATH.read_text(encoding='utf-8'))
QUICK = {'xla_backend_optimization_level': 0}


def directory(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The Hugging Face directory of a case's base."""
    folder.mkdir()
    (folder / 'config.json').write_text(
        json.dumps({k: v for k, v in new_heads.CASES[name][0].items() if v is not None})
    )
    tensors = {key: cases.weights(key, tuple(shape)) for key, shape in GOLDENS[name]['shapes'].items()}
    safetensors.write(folder, {key: (x.shape, x.dtype) for key, x in tensors.items()}, tensors.__getitem__)
    return folder


@pytest.mark.parametrize('name', new_heads.KEPT)
def test_a_base_with_a_new_head_equals_transformers(tmp_path, name):
    config, task = new_heads.CASES[name]
    source = directory(tmp_path / 'base', name)
    own = pretrained.model_of(pretrained.read_config(source))
    model = pretrained.with_task_head(own, task, new_heads.outputs_of(task))
    _, params = load_pretrained(source, model=model)
    shapes = pretrained.shapes_in(source, model)
    assert {p: x.shape for p, x in tree.flatten(params).items()} == {
        p: x.shape for p, x in tree.flatten(shapes).items()
    }
    params, drawn = new_heads.filled(model, params)
    assert drawn == GOLDENS[name]['missing']
    apply = jax.jit(dataclasses.replace(model, unroll=1).apply, compiler_options=QUICK)
    actual = heads.sampled(apply({'params': params}, heads.batch(config))['logits'])
    np.testing.assert_allclose(actual, np.array(GOLDENS[name]['logits'], np.float32), atol=2e-5)

    labels = new_heads.NAMES if task == 'classify' else ()
    like = {'id2label': {str(i): 'stale' for i in range(heads.LABELS)}}
    save_pretrained(tmp_path / 'out', model, params, like=like, labels=labels)
    written = pretrained.read_config(tmp_path / 'out')
    again, _ = load_pretrained(tmp_path / 'out')
    assert again == model
    if labels:
        assert written['id2label'] == {str(i): name for i, name in enumerate(labels)}
        assert written['label2id'] == {name: i for i, name in enumerate(labels)}


def test_pooling_of_transformers_classes():
    def pools(name):
        config = new_heads.CASES[name][0]
        model = pretrained.model_of(config)
        actual = {
            pool: pretrained.with_task_head(model, 'classify', 3, pool) for pool in ('auto', 'first', 'last', 'mean')
        }
        return {pool: each.head_pool for pool, each in actual.items() if each}

    assert pools('bert with a pooler, classify') == {'auto': 'first', 'first': 'first'}
    assert pools('gpt2, classify') == {'auto': 'last', 'last': 'last'}
    assert pools('modernbert, classify') == {'auto': 'first', 'first': 'first', 'mean': 'mean'}
    assert pools('modernbert, mean, classify') == {'auto': 'mean', 'first': 'first', 'mean': 'mean'}


def test_a_head_without_a_class_of_transformers_is_named():
    model = pretrained.with_task_head(pretrained.model_of(new_heads.CASES['gemma2, classify'][0]), 'span', 2)
    assert "no class for 'span' of a gemma2" in pretrained.missing_class_note(model)[0]
    with pytest.raises(ValueError, match='transformers has no Gemma2ForQuestionAnswering'):
        pretrained.config_of(model)


def test_labels_with_other_numbers_than_0_1_2_are_rejected(tmp_path):
    from lmtrain.models import hf_heads

    assert hf_heads.labels({'id2label': {'1': 'b', '0': 'a'}}) == ('a', 'b')
    assert hf_heads.labels({'num_labels': 3}) == ('LABEL_0', 'LABEL_1', 'LABEL_2')
    with pytest.raises(ValueError, match=r'id2label has the numbers \[0, 2\], not 0 to 1'):
        hf_heads.labels({'id2label': {'0': 'a', '2': 'b'}})
