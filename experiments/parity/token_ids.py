"""Ids and decoded text of content beside those of transformers, for the tokenizers of token_cases.py."""

import json
import pathlib
import tempfile

import transformers

from experiments.parity import token_cases
from experiments.record import ROOT
from lmtrain.data.tokenizers.load import open_tokenizer

TEXTS, KEPT = 4000, 60  # compared here, and in the default tests


def compare(only: str) -> tuple[list[dict], list[dict], dict]:
    """(trials, figures, goldens) of the cases whose name has `only` in it."""
    trials, goldens = [], {}
    for name in token_cases.CASES:
        if only not in name:
            continue
        texts = token_cases.texts(name, TEXTS)
        with tempfile.TemporaryDirectory() as folder:
            directory = pathlib.Path(folder) / 'tokenizer'
            token_cases.write(name, directory)
            ours = open_tokenizer(directory, False)
            theirs = transformers.AutoTokenizer.from_pretrained(directory)
            ids = theirs(texts, add_special_tokens=False, split_special_tokens=True)['input_ids']
            mine = ours.encode_batch(texts)
        differ = [text for text, a, b in zip(texts, mine, ids, strict=True) if a.tolist() != b]
        trials.append(
            {'case': name, 'tokenizer': name, 'texts': len(texts), 'other_ids': len(differ), 'first': differ[:3]}
        )
        print(json.dumps(trials[-1]), flush=True)
        goldens[name] = [{'text': text, 'ids': b} for text, b in zip(texts[:KEPT], ids)]
    figures = [
        {
            'what': f'{trial["case"]}: texts full of added tokens with other ids than those of transformers',
            'figure': f'{trial["other_ids"]} of {trial["texts"]}',
            'target': '0',
            'reached': not trial['other_ids'],
        }
        for trial in trials
    ]
    return trials, figures, goldens


def write(goldens: dict) -> None:
    lines = json.dumps(goldens, separators=(',', ':')).replace('},{', '},\n{') + '\n'
    (ROOT / 'tests' / 'data' / 'tokenizers' / 'goldens_tokens.json').write_text(lines, encoding='utf-8')
