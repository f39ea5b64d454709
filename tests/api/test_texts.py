"""Log-probabilities of tokens against a softmax of the logits, and conversations through the public object."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

from lmtrain.api.model import Model
from lmtrain.errors import InputError
from lmtrain.inference import likelihood

TURNS = [{'role': 'user', 'content': 'a'}]


@pytest.fixture
def loaded(computes):
    model, params, tokenizer = computes
    return Model(None, model, tokenizer, params, 0, [256], None)


def reference(loaded, ids, start):
    """float64 [len(ids) - start]: log p of ids[start:], one row."""
    tokens = np.array([[*ids[:-1], *[0] * (40 - len(ids))]], np.int32)  # padding is behind what is read
    logits = jax.jit(loaded.model.apply)({'params': loaded.params}, {'tokens': tokens})['logits']
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64)[0, :, :], axis=-1)
    return log_p[np.arange(start - 1, len(ids) - 1), ids[start:]]


def test_logprobs_are_those_of_a_softmax(loaded):
    texts = ['cats', 'é', 'a much longer text than these']
    scored = loaded.logprobs(texts, after='two ', batch_size=2)
    for text, each in zip(texts, scored, strict=True):
        assert each.ids == list(text.encode())
        ids = [256, *b'two ', *text.encode()]
        np.testing.assert_allclose(each.logprobs, reference(loaded, ids, 5), atol=1e-4)
        assert each.total == pytest.approx(float(each.logprobs.sum()))
    assert scored[0].tokens == list('cats') and scored[1].tokens == ['\ufffd', '\ufffd']
    prompt = likelihood.TokenPrompt(np.array([256], np.int32), (np.frombuffer(b'cats', np.uint8).astype(np.int32),))
    whole = likelihood.log_likelihoods(loaded.model, loaded.params, [prompt], 1).nats[0][0]
    assert loaded.logprobs(['cats'])[0].total == pytest.approx(whole, abs=1e-4)


def test_logprobs_after_messages(loaded):
    (scored,) = loaded.logprobs(['b'], after=TURNS, chat_template='plain')
    np.testing.assert_allclose(scored.logprobs, reference(loaded, [256, *b'a\nb'], 3), atol=1e-4)
    with pytest.raises(InputError, match='neither the run nor its tokenizer has a chat template'):
        loaded.logprobs(['b'], after=TURNS)


def test_one_text_in_place_of_a_list_is_refused(loaded):
    for call in (loaded.generate, loaded.stream, loaded.logprobs):
        with pytest.raises(InputError, match=r"(prompts|texts) is one text, and a list is expected: \['cats'\]"):
            call('cats')


@pytest.mark.parametrize(
    ('texts', 'message'),
    [(['a', ''], 'text 1 has 0 tokens, so that nothing is scored'), (['x' * 70], 'text 0 has 70 tokens, and 64 fit')],
)
def test_texts_that_cannot_be_scored_are_named(loaded, texts, message):
    with pytest.raises(InputError, match=message):
        loaded.logprobs(texts)


def test_encoders_and_classifiers_have_no_text(loaded):
    classifier = {'head': 'classify', 'num_labels': 2}
    changes = [({'causal': False}, 'a masked language model'), (classifier, 'text: `lmtrain predict` gives')]
    for change, message in changes:
        other = loaded._replace(model=dataclasses.replace(loaded.model, **change))
        with pytest.raises(InputError, match='only a causal language model'):
            other.logprobs(['a'])
        with pytest.raises(InputError, match=message):
            other.chat(chat_template='plain')


def test_a_conversation_has_the_settings_of_the_run(loaded):
    talk = loaded.chat(chat_template='plain', max_tokens=3, temperature=0)
    assert len(talk.ask('a')) <= 3 and len(talk.messages) == 2
    with pytest.raises(InputError, match="chat_template='none': a conversation needs a template"):
        loaded.chat(chat_template='none')
    with pytest.raises(InputError, match='neither the run nor its tokenizer has a chat template'):
        loaded.chat()
