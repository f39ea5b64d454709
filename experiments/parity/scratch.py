"""Models that were trained from scratch, exported, and opened by transformers: ids of prompts, and greedy texts."""

import json
import pathlib
import tempfile

import torch
import transformers

from configs import tiny
from lmtrain.inference import sample
from lmtrain.training import export, load, train

KINDS = ('bpe', 'bytes', 'chars', 'whitespace')
NAMES = ('Tom', 'Sue', 'Ann', 'Bob', 'Kim', 'Lee', 'Max', 'Zoë')
PROMPTS = ('', 'Story 1: Tom', 'Story 40: Zoë has')
LENGTH = 64


def recipe(folder: pathlib.Path, kind: str):
    """A model that learns short stories, one a paragraph, by heart: it must end each of them."""
    text = '\n\n'.join(f'Story {i}: {NAMES[i % 8]} has {i % 5} red balls.\nThe end.' for i in range(60))
    (folder / 'text.txt').write_text(text, encoding='utf-8')
    config = tiny.get_config()
    config.data.update(source=str(folder / 'text.txt'), cache=str(folder / 'cache'), document='paragraph')
    config.data.update(tokenizer=kind, vocab_size=300, batch_size=8, validation=0.1, seq_len=LENGTH)
    config.model.family = 'llama'
    config.optimizer.learning_rate = 1e-2
    config.budget.steps = config.checkpoint.every_steps = config.evaluate.every_steps = 120
    config.log.update(tensorboard=False)
    config.sample.prompts = ()
    return config


def trial(kind: str) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train.train(recipe(folder, kind), folder / 'run')
        export.export(folder / 'run', folder / 'hf', 'hf')
        loaded = load.load_run(folder / 'run')
        end = loaded.tokenizer.end_id
        prompts = [[end, *loaded.tokenizer.encode(prompt)] for prompt in PROMPTS]  # as in every row of training
        greedy = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'seed': 0, 'max_tokens': LENGTH // 2}
        greedy |= {'end_ids': (end,), 'vocab_size': loaded.tokenizer.vocab_size}
        mine = [list(each.ids) for each in sample.generate(loaded.model, loaded.params, prompts, **greedy)]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'hf')
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / 'hf', attn_implementation='eager').eval()
        theirs, ended = [], 0
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)['input_ids']])
            with torch.no_grad():
                generated = model.generate(ids, do_sample=False, max_new_tokens=LENGTH // 2, pad_token_id=0)
            new = generated[0, ids.shape[1] :].tolist()
            ended += tokenizer.eos_token_id in new
            theirs.append(new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new)
        same = [tokenizer(prompt)['input_ids'] for prompt in PROMPTS] == prompts
        texts = [tokenizer.decode(ids) for ids in theirs] == [loaded.tokenizer.decode(ids) for ids in mine]
        row = {'case': f'from scratch, {kind}', 'same_ids': same, 'same_continuations': mine == theirs}
        return row | {
            'same_texts': texts,
            'ended': ended,
            'prompts': len(PROMPTS),
            'first': tokenizer.decode(theirs[0]),
        }


def compare(only: str) -> tuple[list[dict], list[dict]]:
    """(trials, figures) of the kinds whose name has `only` in it."""
    trials = []
    for kind in KINDS:
        if only in f'from scratch, {kind}':
            trials.append(trial(kind))
            print(json.dumps(trials[-1]), flush=True)
    figures = []
    for each in trials:
        same = each['same_ids'] and each['same_continuations'] and each['same_texts'] and each['ended'] > 0
        figure = {'what': f'{each["case"]}: ids, greedy texts and their ends in transformers', 'target': 'the same'}
        figures.append(figure | {'figure': 'the same' if same else 'others', 'reached': same})
    return trials, figures
