"""The flags that name a model and its prompts."""

import pytest
from absl import flags

from launch import folder
from lmtrain import trained
from lmtrain.data.template import PLAIN, Template
from lmtrain.data.text import Bytes


def parsed(*words):
    values = flags.FlagValues()
    folder.define(values, base=True)
    folder.define_prompts(values, 'template')
    values(['lmtrain', *words])
    return values


@pytest.mark.parametrize(('text', 'step'), [('last', 'last'), ('best', 'best'), ('30', 30), ('0', 0)])
def test_a_checkpoint_is_a_word_or_a_number(text, step):
    assert folder.from_flags(parsed('--workdir=w', f'--checkpoint={text}'))[1] == step
    with pytest.raises(ValueError, match='--checkpoint=latest is neither'):
        folder.from_flags(parsed('--workdir=w', '--checkpoint=latest'))


def test_one_model_is_named(monkeypatch):
    monkeypatch.setattr(trained, 'pretrained', lambda *words: words)
    monkeypatch.setattr(trained, 'restore', lambda *words: words)
    assert folder.model(parsed('--base=b', '--adapter=a', '--ignore=x,y')) == ('b', 'a', ['x', 'y'])
    assert [str(word) for word in folder.model(parsed('--workdir=w', '--checkpoint=3'))] == ['w', '3']
    with pytest.raises(ValueError, match='--workdir and --base at once'):
        folder.model(parsed('--workdir=w', '--base=b'))
    with pytest.raises(ValueError, match='--adapter without --base'):
        folder.model(parsed('--workdir=w', '--adapter=a'))
    with pytest.raises(ValueError, match='--workdir is missing'):
        folder.model(parsed())


def test_remarks_go_to_standard_error(capsys):
    folder.note('a remark')
    assert capsys.readouterr() == ('', 'a remark\n')


def run(template=None):
    return trained.Trained(None, None, Bytes(), {}, 0, [256], template)


def test_names_of_special_tokens_are_told_wherever_they_stand(capsys):
    chats = Template(PLAIN, 'plain')
    for prompts, system in ((['a<|endoftext|>'], ''), (['a'], 'b <|endoftext|>')):
        assert folder.prompted(run(chats), parsed(f'--system={system}'), 'template', prompts).template == chats
        assert "a prompt contains '<|endoftext|>', the name of a special token" in capsys.readouterr().err
    folder.prompted(run(chats), parsed(), 'template', ['a'])
    assert 'special' not in capsys.readouterr().err


def test_a_system_text_needs_a_template(capsys):
    with pytest.raises(ValueError, match='--system with --template=none: leave --template out'):
        folder.prompted(run(Template(PLAIN, 'plain')), parsed('--system=b', '--template=none'), 'template', ['a'])
    with pytest.raises(ValueError, match='neither the run nor its tokenizer has a chat template'):
        folder.prompted(run(), parsed('--system=b'), 'template', ['a'])
    assert folder.prompted(run(), parsed(), 'template', ['a']).template is None
