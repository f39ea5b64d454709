"""Ids of conversations beside those of transformers' apply_chat_template, for the templates of chat_cases.py."""

import datetime
import json
import pathlib
import tempfile
from unittest import mock

import transformers

from experiments.parity import chat_cases
from experiments.record import ROOT
from lmtrain.data.chat import answers
from lmtrain.data.chat.conversation import Conversation
from lmtrain.data.chat.template import Template, encode
from lmtrain.data.tokenizers.load import open_tokenizer


class Day(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(chat_cases.DATE)


def compare(only: str) -> tuple[list[dict], list[dict], dict]:
    """(trials, figures, goldens) of the templates whose name has `only` in it."""
    trials, goldens = [], {}
    with tempfile.TemporaryDirectory() as folder:
        chat_cases.write_tokenizer(pathlib.Path(folder))
        ours = open_tokenizer(pathlib.Path(folder), False)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for name, source in chat_cases.TEMPLATES.items():
        if only not in f'chat {name}':
            continue
        goldens[name] = {}
        for talk in chat_cases.TALKS:
            for cue in (False, True):
                goldens[name][f'{talk}{" and the cue" * cue}'] = reference(theirs, source, talk, cue)
        differ = [key for key, golden in goldens[name].items() if ids(ours, source, key) != golden['ids']]
        trials.append({'case': f'chat {name}', 'conversations': len(goldens[name]), 'other_ids': differ})
        print(json.dumps(trials[-1]), flush=True)
    figures = [
        {
            'what': f'{trial["case"]}: conversations with other ids than those of apply_chat_template',
            'figure': f'{len(trial["other_ids"])} of {trial["conversations"]}',
            'target': '0',
            'reached': not trial['other_ids'],
        }
        for trial in trials
    ]
    return trials, figures, goldens


def reference(tokenizer, source: str, talk: str, cue: bool) -> dict:
    """{'ids'} of transformers, and 'mask' where the template marks what the assistant says."""
    marks = {'return_assistant_tokens_mask': True} if 'endgeneration' in source else {}
    with mock.patch('transformers.utils.chat_template_utils.datetime', Day):
        encoded = tokenizer.apply_chat_template(
            chat_cases.TALKS[talk],
            tools=chat_cases.tools_of(talk),
            chat_template=source,
            add_generation_prompt=cue,
            tokenize=True,
            return_dict=True,
            **marks,
        )
    return {'ids': encoded['input_ids']} | ({'mask': encoded['assistant_masks']} if marks else {})


def ids(tokenizer, source: str, key: str) -> list[int]:
    """Those of lmtrain for one golden, without the borders between what is learned and what is not."""
    talk, cue = key.removesuffix(' and the cue'), key.endswith(' and the cue')
    dialogue = Conversation(chat_cases.TALKS[talk], (), tools=chat_cases.tools_of(talk))
    text = answers.render(dialogue, tokenizer, Template(source, '', chat_cases.DATE), '', cue)
    return encode(text, [], tokenizer)[0]


def write(goldens: dict) -> None:
    lines = json.dumps(goldens, separators=(',', ':')).replace('},"', '},\n"') + '\n'
    (ROOT / 'tests' / 'data' / 'chat' / 'goldens_chat.json').write_text(lines, encoding='utf-8')
