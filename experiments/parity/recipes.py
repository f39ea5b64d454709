"""Every recipe whose model `lmtrain show` calls exportable, in a small size, written and opened by transformers."""

import importlib
import json
import tempfile

import jax
import numpy as np
import torch
import transformers

from experiments.parity import cases
from launch import recipe
from lmtrain import tree
from lmtrain.models import Transformer, pretrained, save_pretrained
from lmtrain.tasks import TASKS
from lmtrain.training import init_from

SMALL = {'vocab_size': cases.VOCAB, 'max_len': 96, 'num_layers': 2, 'width': 64, 'num_heads': 4, 'mlp_dim': 80}
SMALL |= {'num_kv_heads': 2, 'head_dim': 16, 'dtype': 'float32', 'unroll': 2}
BOUND = 2e-5


def exportable() -> dict[str, Transformer]:
    """{name: small model} of the recipes that begin from scratch and can be exported."""
    models = {}
    for path in recipe.files():
        config = importlib.import_module(f'configs.{path.stem}').get_config()
        if init_from.exportable(config).startswith('yes') and config.data.tokenizer != 'base':
            sizes = SMALL | ({'num_kv_heads': 4} if config.model.family == 'gpt2' else {})
            model, task = Transformer(**config.model.to_dict() | sizes), TASKS[config.task.name]
            if not task.predicts_tokens:
                model = pretrained.with_task_head(model, task.head, task.num_outputs)
            models[path.stem] = init_from.with_hf_family(model)
    return models


def trial(name: str, model: Transformer) -> dict:
    """The largest difference of a logit between the model and what transformers makes of its directory."""
    leaves = {path: cases.weights(path, leaf.shape) for path, leaf in tree.flatten(pretrained.shapes_of(model)).items()}
    params, batch = tree.unflatten(leaves), cases.batch()
    ours = np.asarray(jax.jit(model.apply)({'params': params}, batch)['logits'])
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, model, params)
        kind = getattr(transformers, pretrained.config_of(model)['architectures'][0])
        theirs, info = kind.from_pretrained(folder, attn_implementation='eager', output_loading_info=True)
        assert not info['missing_keys'] and not info['unexpected_keys'], (name, info)
        rows = [tokens[:length] for tokens, length in zip(batch['tokens'], cases.LENGTHS, strict=True)]
        gap = max(_difference(each, theirs.eval(), row) for each, row in zip(ours, rows, strict=True))
    return {
        'case': f'recipe {name}',
        'family': model.family,
        'exported': gap,
        'largest_logit': float(np.abs(ours).max()),
    }


def _difference(ours: np.ndarray, theirs, tokens: np.ndarray) -> float:
    """The largest, over the tokens of one row: `ours` is [T, V] with padding, or [C] of a head for the row."""
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(tokens[None].astype(np.int64))).logits[0].float().numpy()
    return float(np.max(np.abs((ours[: len(tokens)] if ours.ndim == 2 else ours) - logits)))


def compare(only: str = '') -> tuple[list[dict], list[dict]]:
    """(trials, figures) of the recipes whose name has `only` in it."""
    trials = []
    for name, model in exportable().items():
        if only in f'recipe {name}':
            trials.append(trial(name, model))
            print(json.dumps(trials[-1]), flush=True)
    if not trials:
        return [], []
    worst = max(each['exported'] for each in trials)
    names = ', '.join(f'{each["case"].removeprefix("recipe ")} ({each["family"]})' for each in trials)
    figure = {'what': f'recipes, exported and opened: {names}', 'figure': f'{worst:.1e}'}
    return trials, [figure | {'target': f'<= {BOUND:.0e}', 'reached': worst <= BOUND}]
