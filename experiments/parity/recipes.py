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
            models[path.stem] = init_from.with_hf_family(Transformer(**config.model.to_dict() | sizes))
    return models


def trial(name: str, model: Transformer) -> dict:
    """The largest difference of a logit between the model and what transformers makes of its directory."""
    leaves = {path: cases.weights(path, leaf.shape) for path, leaf in tree.flatten(pretrained.shapes_of(model)).items()}
    params, batch = tree.unflatten(leaves), cases.batch()
    ours = np.asarray(jax.jit(model.apply)({'params': params}, batch)['logits'])
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, model, params)
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation='eager', output_loading_info=True
        )
        assert not info['missing_keys'] and not info['unexpected_keys'], (name, info)
        inputs = {key: torch.from_numpy(batch[column].astype(np.int64)) for key, column in COLUMNS.items()}
        with torch.no_grad():
            logits = theirs.eval()(**inputs).logits.float().numpy()
    gap = float(np.max(np.abs(ours - logits)[batch['segment_ids'] > 0]))
    return {
        'case': f'recipe {name}',
        'family': model.family,
        'exported': gap,
        'largest_logit': float(np.abs(ours).max()),
    }


COLUMNS = {'input_ids': 'tokens', 'attention_mask': 'segment_ids'}


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
