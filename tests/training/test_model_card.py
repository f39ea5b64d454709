"""The model card of an export."""

import json
import pathlib
import re
import types

import numpy as np
import pytest

from configs import base
from lmtrain.files import write_json
from lmtrain.training import model_card

MODEL = types.SimpleNamespace(family='llama', max_len=64, causal=True)
PARAMS = {'embed': {'embedding': np.zeros((3, 4))}}


@pytest.fixture
def card(tmp_path):
    """card(task, licence, form, on_run, **results) -> the text for a run in the folder `mine`."""

    def of(task='text', licence='', form='hf', on_run=False, **results):
        run = tmp_path / 'mine'
        run.mkdir(exist_ok=True)
        write_json(run / 'results.json', {'cost': {'steps': 20}} | results)
        home = pathlib.Path.home()
        start = {'command': f'lmtrain train --config.data.source={home}/notes.txt'}
        (run / 'lineage.jsonl').write_text(json.dumps(start) + '\n', encoding='utf-8')
        config = base.get_config()
        config.task.update(name=task, train=('/data/rows.csv',), text=('text',), label='label')
        config.init.base = '/models/small' if task == 'classify' else ''
        config.data.source = str(home / 'notes.txt')
        opened = types.SimpleNamespace(config=config, step=10, on_run=on_run)
        model_card.write(tmp_path, 'exported', run, opened, MODEL, PARAMS, form=form, licence=licence)
        return (tmp_path / 'README.md').read_text(encoding='utf-8')

    return of


VALIDATION = {'loss': 1.0, 'perplexity': 2.7, 'bits_per_token': 1.44, 'bits_per_byte': 1.2}


def test_a_language_model(card):
    text = card(validation=VALIDATION, baselines={'bigram': 2.5})
    assert text.startswith('---\nlicense: "unknown"\nlibrary_name: "transformers"\npipeline_tag: "text-generation"\n')
    assert '# mine' in text and 'A llama model of 12 parameters with a context of 64 tokens' in text
    assert 'validation: loss 1.0000' in text and '1.200 bits/byte (bigram 2.50)' in text
    assert 'of step 20, the last one; this is step 10' in text
    assert '| base | none' in text and 'Unknown. Those of the base and of the data may apply.' in text
    assert "pipeline('text-generation', 'exported')" in text
    assert 'lmtrain train --config.data.source=~/notes.txt' in text and '`~/notes.txt`' in text
    assert str(pathlib.Path.home()) not in text or str(pathlib.Path.home()) == '/'


def test_a_classifier_with_a_licence(card):
    text = card('classify', 'apache-2.0', validation={'loss': 0.5, 'accuracy': 0.75, 'targets': 8.0}, unit='row')
    assert re.search(r'^license: "apache-2.0"$', text, re.MULTILINE) and text.endswith('## Licence\n\napache-2.0\n')
    assert '`small`' in text and '`rows.csv`, fields `text`, `label`' in text and '/models' not in text
    assert "pipeline('text-classification', 'exported')" in text and 'accuracy 0.7500 (8 rows)' in text


def test_an_adapter(card):
    text = card('classify', form='peft')
    assert 'library_name: "peft"' in text and "lmtrain.load('small', adapter='exported')" in text
    assert "# or PEFT's PeftModel" in text


def test_an_adapter_of_a_run_which_peft_cannot_open(card):
    assert 'PeftModel' not in card('classify', form='peft', on_run=True)
