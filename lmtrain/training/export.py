"""Exports the model of a run as a Hugging Face directory or as a PEFT adapter."""

import shutil
from pathlib import Path

import jax
import numpy as np

from lmtrain import adapt, data, tree
from lmtrain.adapt.leaves import kind_of
from lmtrain.data.chat.load import with_template
from lmtrain.data.tokenizers.to_transformers import tokenizer_files
from lmtrain.errors import InputError
from lmtrain.files import local_path, read_json, write_json
from lmtrain.models import Transformer, generation, pretrained
from lmtrain.models.settings import HEAD_KINDS
from lmtrain.tasks import TASKS
from lmtrain.training import choose, init_from, model_card

FORMATS = ('hf', 'peft')
PARTIAL = '.partial'  # directory in which an export is written


def export(
    workdir,
    to,
    form: str,
    merge: bool = False,
    step: int | str = choose.AUTO,
    member: int | None = None,
    licence: str = '',
) -> list[str]:
    """Writes the model of the run in `workdir` into the directory `to`; returns lines that describe the export.

    Args:
      form: 'hf' (config.json, generation_config.json, model.safetensors, tokenizer files) or 'peft' (only the adapter
        and added heads); README.md is the model card of both.
      merge: merge the adapter into the weights first; the largest change of an output is among the lines.
      licence: an identifier for the model card, such as 'apache-2.0'; '' is unknown.
      step, member: as in `choose.choose`, whose notes are among the lines.

    Raises InputError if the format cannot hold the model, naming the leaf or setting and the way out; what
    `init_from.open_run` raises; FileExistsError if `to` is not empty.
    """
    to = Path(to)
    # Files move into `to` once all are written: an export that is killed leaves nothing that looks like a model.
    partial = to / PARTIAL
    if to.is_dir() and any(entry != partial for entry in to.iterdir()):
        raise FileExistsError(f'{to} is not empty: export into a new directory')
    shutil.rmtree(partial, ignore_errors=True)
    choice = choose.choose(workdir, step, member)
    lines = [*_write(workdir, partial, form, merge, choice.step, choice.member, licence), *choice.notes]
    for file in partial.iterdir():
        file.replace(to / file.name)
    partial.rmdir()
    return [*lines, f'written: {to}']


def _write(workdir, to: Path, form: str, merge: bool, step: int | str, member: int, licence: str) -> list[str]:
    """Writes the files of an export into the directory `to`; returns lines that describe it."""
    opened = init_from.open_run(Path(workdir), step, member)
    model = init_from.with_hf_family(opened.model)
    tokenizer = data.load_tokenizer(opened.tokenizer)
    params, omitted = _without_other_heads(opened.config, opened.load(lambda path, array: jax.device_put(array)))
    source, task = opened.config.init.base, TASKS[opened.config.task.name]
    labels = opened.config.task.labels or ((task.output_name,) if task.output_name else ())
    if task.output_name and opened.config.task.template == 'none' and 'chat_template' in tokenizer.config:
        tokenizer = with_template(tokenizer, None)  # that of the base, by which no row was written
    lines = [f'step {opened.step:,} of {workdir}', *omitted]
    if form == 'peft':
        if merge:
            raise InputError('--merge with --format=peft: a merged adapter is no adapter; use --format=hf')
        if not source:
            raise InputError(f'{workdir} was trained from scratch: without a base there is no adapter to export')
        if not _added(params):
            raise InputError(
                f'{workdir} has no adapter, since adapt.method={opened.config.adapt.method!r} changes the model '
                'itself: take --format=hf'
            )
        _check_changed(opened, workdir)
        kind = task.peft_type if model.causal or not task.predicts_tokens else 'FEATURE_EXTRACTION'
        _as_class(opened.config, model, params)
        adapt.save_adapter(to, model, params, base=source, task_type=kind, labels=labels)
        if opened.on_run:
            lines.append(
                f'PEFT cannot open the base {source}, a run: export it with --format=hf and put that directory into '
                'base_model_name_or_path of adapter_config.json'
            )
    else:
        params, notes = _without_adapter(model, params, merge)
        lines += notes
        below = local_path(source, 'init.base') / 'config.json'
        like = read_json(below) if source and below.is_file() else None
        like = like if like and 'model_type' in like else None  # a run has a config.json of another kind
        model, params = _as_class(opened.config, model, params)
        ends = {'bos_token_id': tokenizer.begin_id, 'eos_token_id': tokenizer.end_id}
        ends = {name: token for name, token in ends.items() if token < model.vocab_size}
        like = ends | {name: value for name, value in (like or {}).items() if value is not None}
        if HEAD_KINDS[model.head].per_row and model.causal:
            like['pad_token_id'] = _padding(tokenizer, like)
            if like['pad_token_id'] is None:
                lines.append('no token is left for padding: transformers takes one row at a time of this classifier')
        pretrained.save_pretrained(to, model, params, like=like, labels=labels)
        if model.causal and model.head == 'lm':
            generation.write(to, generation.fields_of(opened.generation, tokenizer, model.vocab_size))
    model_card.write(to, to.parent.resolve().name, workdir, opened, model, params, form=form, licence=licence)
    return lines + _tokenizer(tokenizer, to, framed=not task.predicts_tokens)


def _as_class(config, model: Transformer, params: tree.Params) -> tuple[Transformer, tree.Params]:
    """(model, params) with an added head turned into the head of transformers' class for the task.

    Raises InputError if that class computes something else.
    """
    task, pool = TASKS[config.task.name], config.objective.pool
    if task.name not in params.get('heads', {}):
        return model, params
    leaves = dict(params['heads'][task.name])
    headed = pretrained.with_linear_head(model, task.head, leaves['kernel'].shape[1], pool)
    if headed is None or ('bias' in leaves and not headed.head_bias):
        raise InputError(
            f'{init_from.no_form(pool)}; {task.peft_type} of a {model.family} reads '
            + ("a decoder's last token" if model.causal else 'rows through layers of its own')
        )
    if headed.head_bias:
        leaves.setdefault('bias', np.zeros(leaves['kernel'].shape[1], np.float32))
    body = {name: part for name, part in params.items() if name not in init_from.OF_HEADS}
    return headed, body | {'task_head': {'out': leaves}}


def _padding(tokenizer: data.Tokenizer, like: dict | None) -> int | None:
    """The id that pads rows of a classifier, of which transformers reads the last token that is another one."""
    named = tokenizer.special_ids.get(tokenizer.config.get('pad_token'))
    known = ((like or {}).get('pad_token_id'), named, tokenizer.end_id)
    inside = (*tokenizer.layout.prefix, *tokenizer.layout.suffix)
    return next((token for token in known if token is not None and token not in inside), None)


def _without_other_heads(config, params: tree.Params) -> tuple[tree.Params, list[str]]:
    """(the parameters, with no added head but that of the run's task, a line on each head that is left out).

    A run on a base with an added head of another task carries it along.
    """
    others = sorted(params.get('heads', {}).keys() - {config.task.name})
    if not others:
        return params, []
    remaining = {name: head for name, head in params['heads'].items() if name not in others}
    params = {name: part for name, part in params.items() if name != 'heads'} | (
        {'heads': remaining} if remaining else {}
    )
    return params, [f'left out: the head {name!r} of the base, which is of another task' for name in others]


def _added(params: tree.Params) -> set[str]:
    """The paths of an adapter's leaves, without those of added heads."""
    _, added = adapt.split_adapter(params)
    return {path for path in tree.flatten(added) if not path.startswith('heads/')}


def _check_changed(opened: init_from.Base, workdir) -> None:
    """Raises InputError if the run differs from its base in leaves that a directory of PEFT would not hold."""
    others = sorted(p for p in opened.changed if not kind_of(p) and not p.startswith('task_head/'))
    if others:
        count = f' and {len(others) - 1} others' if len(others) > 1 else ''
        raise InputError(
            f'{workdir} changed {others[0]}{count} of its base (adapt.method={opened.config.adapt.method!r}, '
            f'init.adapter={opened.config.init.adapter!r}), which an adapter of {opened.config.init.base} does not '
            'hold: take --format=hf --merge'
        )


def _without_adapter(model: Transformer, params: tree.Params, merge: bool) -> tuple[tree.Params, list[str]]:
    """(the parameters without adapters, what was folded)."""
    added = _added(params)
    if not added:
        return params, []
    if not merge:
        raise InputError(
            f'the model has the leaves of an adapter ({sorted(added)[0]}, ...): fold them in with --merge, or write '
            'them as they are with --format=peft'
        )
    folded = adapt.fold(params)
    if left := sorted(_added(folded)):
        raise InputError(
            f'{left[0]} is virtual tokens or keys, which --merge cannot fold into the weights: take --format=peft'
        )
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
    config = tokenizer.config
    config.pop('tokenizer_class', None)  # that of config.json's model_type reads a .model
    if config:
        write_json(to / 'tokenizer_config.json', config, indent=2)
    return [f'the tokenizer is a SentencePiece model, {tokenizer.file}, which transformers converts when it opens it']
