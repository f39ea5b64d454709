"""A trained model handed back in the formats that everyone reads: a Hugging Face directory, or PEFT's adapter."""

import json
from pathlib import Path

import jax
import numpy as np

from lmtrain import adapt, base, data, paths, tree
from lmtrain.data.to_transformers import tokenizer_files
from lmtrain.models import Transformer, generation, pretrained

FORMATS = ('hf', 'peft')
TASKS = {'classify': 'SEQ_CLS', 'regress': 'SEQ_CLS', 'tag': 'TOKEN_CLS', 'span': 'QUESTION_ANS'}  # PEFT's names


def export(workdir, to, form: str, merge: bool = False, step: int | str = 'last', member: int = 0) -> list[str]:
    """Writes the model of a run's folder into the directory `to`; lines that say what was written.

    Args:
      form: 'hf' (config.json, generation_config.json, model.safetensors, tokenizer files) or 'peft' (the adapter and
        added heads alone).
      merge: an adapter is folded into the weights before; the largest change of an output is among the lines.

    Raises ValueError where the model has no such form, naming the leaf or setting and the way out; what
    `base.open_run` raises; FileExistsError where `to` holds something else already.
    """
    to = Path(to)
    if to.is_dir() and any(to.iterdir()):
        raise FileExistsError(f'{to} is not empty: export into a new directory')
    found = base.open_run(Path(workdir), step, member)
    model = base.of_a_family(found.model)
    tokenizer = data.load_tokenizer(found.tokenizer)
    params = found.load(lambda path, array: jax.device_put(array))
    source = found.config.init.base
    lines = [f'step {found.step:,} of {workdir}']
    if form == 'peft':
        if merge:
            raise ValueError('--merge with --format=peft: a merged adapter is no adapter; take --format=hf')
        if not source:
            raise ValueError(f'{workdir} was trained from scratch: without a base there is no adapter to export')
        kind = TASKS.get(found.config.task.name, 'CAUSAL_LM' if model.causal else 'FEATURE_EXTRACTION')
        adapt.save_adapter(to, model, params, base=source, task_type=kind)
    else:
        params, said = _plain(model, params, merge)
        lines += said
        below = paths.local(source, 'init.base') / 'config.json'
        like = json.loads(below.read_bytes()) if source and below.is_file() else None
        like = like if like and 'model_type' in like else None  # a run's own config.json is none of theirs
        ends = {'bos_token_id': tokenizer.begin_id, 'eos_token_id': tokenizer.end_id}
        ends = {name: token for name, token in ends.items() if token < model.vocab_size}
        like = ends | {name: value for name, value in (like or {}).items() if value is not None}
        pretrained.save_pretrained(to, model, params, like=like)
        if model.causal and model.head == 'lm':
            generation.write(to, generation.fields_of(found.generation, tokenizer, model.vocab_size))
    lines += _tokenizer(tokenizer, to, framed=found.config.task.name in TASKS)
    return [*lines, f'written: {to}']


def _plain(model: Transformer, params: tree.Params, merge: bool) -> tuple[tree.Params, list[str]]:
    """(the parameters without adapters, what was folded)."""
    _, added = adapt.separate(params)
    added = {path for path in tree.flatten(added) if not path.startswith('heads/')}
    if not added:
        return params, []
    if not merge:
        raise ValueError(
            f'the model has the leaves of an adapter ({sorted(added)[0]}, ...): fold them in with --merge, or write '
            'them as they are with --format=peft'
        )
    folded = adapt.fold(params)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (4, min(64, model.max_len)), np.int32)
    change = adapt.largest_change(model, params, folded, {'tokens': tokens})
    return folded, [f'merged: {len(added)} leaves; the largest change of an output over 256 tokens is {change:.2g}']


def _tokenizer(tokenizer: data.Tokenizer, to: Path, framed: bool) -> list[str]:
    """Writes what transformers reads of the tokenizer (`tokenizer_files`); a line if its form needs saying."""
    files = tokenizer_files(tokenizer, framed)
    if files:
        for name, content in files.items():
            (to / name).write_bytes(content)
        return []
    (to / tokenizer.file).write_bytes(tokenizer.content)
    told = json.loads(tokenizer.about or b'{}')
    told.pop('tokenizer_class', None)  # that of config.json's model_type reads a .model
    if told:
        (to / 'tokenizer_config.json').write_text(json.dumps(told, indent=2), encoding='utf-8')
    return [f'the tokenizer is a SentencePiece model, {tokenizer.file}, which transformers converts when it opens it']
