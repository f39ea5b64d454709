"""The flags that name a model and its prompts."""

import pytest
from absl import flags

from launch import model_flags
from lmtrain.data.chat.template import PLAIN, Template
from lmtrain.data.tokenizers.base import Bytes
from lmtrain.training import load


def parsed(*words):
    values = flags.FlagValues()
    model_flags.define(values, base=True)
    model_flags.define_prompts(values, 'template')
    values(['lmtrain', *words])
    return values


@pytest.mark.parametrize(('text', 'step'), [('last', 'last'), ('best', 'best'), ('30', 30), ('0', 0)])
def test_step_is_last_best_or_a_number(text, step):
    for flag in ('step', 'checkpoint'):
        assert model_flags.from_flags(parsed('--workdir=w', f'--{flag}={text}'))[1:] == (step, 0)
    with pytest.raises(ValueError, match='--step=latest is neither'):
        model_flags.from_flags(parsed('--workdir=w', '--step=latest'))


def test_exactly_one_model_is_named(monkeypatch):
    calls = []
    monkeypatch.setattr(load, 'load_directory', lambda *words: calls.append(words) or run())
    monkeypatch.setattr(load, 'load_run', lambda *words: calls.append(words) or run())
    assert model_flags.model(parsed('--base=b', '--adapter=a', '--ignore=x,y')).end_ids == [256]
    model_flags.model(parsed('--workdir=w', '--step=3'))
    assert [[str(word) for word in words] for words in calls] == [['b', 'a', "['x', 'y']"], ['w', '3', '0']]
    with pytest.raises(ValueError, match='--workdir and --base at once'):
        model_flags.model(parsed('--workdir=w', '--base=b'))
    with pytest.raises(ValueError, match='--step with --base'):
        model_flags.model(parsed('--base=b', '--step=3'))
    with pytest.raises(ValueError, match='--member with --base'):
        model_flags.model(parsed('--base=b', '--member=0'))
    with pytest.raises(ValueError, match='--adapter without --base'):
        model_flags.model(parsed('--workdir=w', '--adapter=a'))
    with pytest.raises(ValueError, match='--workdir is missing: .*, or --base=DIR, a pretrained model'):
        model_flags.model(parsed())


def test_errors_name_the_flag_and_not_the_field_of_a_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'^--base: .*nomodel is neither the folder of a run nor'):
        model_flags.model(parsed(f'--base={tmp_path}/nomodel'))


def test_notes_go_to_stderr(capsys):
    model_flags.note('a remark')
    assert capsys.readouterr() == ('', 'a remark\n')


def run(template=None):
    return load.LoadedModel(None, None, Bytes(), {}, 0, [256], template)


def test_special_token_names_are_noted(capsys):
    chats = Template(PLAIN, 'plain')
    for prompts, system in ((['a<|endoftext|>'], ''), (['a'], 'b <|endoftext|>')):
        assert model_flags.prompted(run(chats), parsed(f'--system={system}'), 'template', prompts).template == chats
        assert "a prompt contains '<|endoftext|>', the name of a special token" in capsys.readouterr().err
    model_flags.prompted(run(chats), parsed(), 'template', ['a'])
    assert 'special' not in capsys.readouterr().err


def test_system_message_needs_a_template(capsys):
    with pytest.raises(ValueError, match='--system with --template=none: leave --template out'):
        model_flags.prompted(run(Template(PLAIN, 'plain')), parsed('--system=b', '--template=none'), 'template', ['a'])
    with pytest.raises(ValueError, match='neither the run nor its tokenizer has a chat template'):
        model_flags.prompted(run(), parsed('--system=b'), 'template', ['a'])
    assert model_flags.prompted(run(), parsed(), 'template', ['a']).template is None
