"""The object that `lmtrain.load` returns."""

import lmtrain
from lmtrain.api.model import Model
from lmtrain.training.load import LoadedModel


def test_the_object_is_small_on_a_screen_and_keeps_its_kind(computes):
    model, params, tokenizer = computes
    loaded = Model(None, model, tokenizer, params, 0, [256], None)
    assert isinstance(loaded, LoadedModel) and isinstance(loaded._replace(step=3), Model)
    text = repr(loaded)
    assert (
        text.startswith('Model(2 layers, width 16, ')
        and text.endswith(' parameters)')
        and '\n' not in text
        and len(text) < 80
    )
    assert len(loaded.generate(['a'], max_tokens=3, temperature=0)[0].ids) == 3
    assert lmtrain.generate(loaded, ['a'], max_tokens=3) == loaded.generate(['a'], max_tokens=3)


def test_every_method_is_described():
    for name in ('generate', 'stream', 'chat', 'logprobs', 'predict', 'evaluate'):
        assert getattr(Model, name).__doc__.strip(), name
