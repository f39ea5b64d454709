"""Does lmtrain compute the same as transformers and PEFT, on tiny random models of every family?

    bash launch/parity.sh [--only NAME] [--dry]

Logits of a ragged batch past the original rotary length, gradients of GPT-2 and LLaMA, and logits after an export that
transformers opens again; the heads of tasks; adapters in and out of PEFT's directories; ids of texts full of
added tokens and of conversations written by chat templates; what transformers writes on with an exported model that was
trained from scratch; and what is published of stories260K. Writes results.json, and the goldens of the default tests.
"""

import argparse
import functools
import json
import os
import sys
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from experiments import record
from experiments.parity import (
    adapters,
    cases,
    chat_ids,
    fields,
    heads,
    new_heads,
    recipes,
    scratch,
    stories,
    token_ids,
)
from lmtrain import tree
from lmtrain.models import hf, load_pretrained, pretrained, save_pretrained

LOGITS, GRADIENTS = 2e-5, 1e-4


def theirs(config: dict):
    """The model of a config in transformers, every parameter re-randomised."""
    config = dict(config)
    config = transformers.AutoConfig.for_model(config.pop('model_type'), **config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(cases.weights(key, tuple(parameter.shape))))
    return model


def tensors(batch):
    return {
        'input_ids': torch.from_numpy(batch['tokens'].astype(np.int64)),
        'attention_mask': torch.from_numpy(batch['segment_ids'].astype(np.int64)),
    }


def their_logits(model, batch) -> np.ndarray:
    """[B, T, V], 0 at padding. Rows go alone, the shortest first: the angles of 'dynamic' and 'longrope' would be those
    of the longest row of a batch, and of the longest that the model has seen."""
    lengths = batch['segment_ids'].sum(axis=1)
    logits = np.zeros((*batch['tokens'].shape, cases.VOCAB), np.float32)
    for row in np.argsort(lengths):
        alone = {name: column[row : row + 1, : lengths[row]] for name, column in batch.items()}
        with torch.no_grad():
            logits[row, : lengths[row]] = model(**tensors(alone)).logits[0].float().numpy()
    return logits


@functools.partial(jax.jit, static_argnames='model')
def our_logits(model, params, batch):
    return model.apply({'params': params}, batch)['logits']


def difference(ours, theirs, batch) -> float:
    """The largest, over the real tokens."""
    return float(np.max(np.abs(np.asarray(ours) - theirs)[batch['segment_ids'] > 0]))


def gradients(model, params, their_model, batch) -> float:
    """The largest difference of the gradients of the mean loss of the next token."""
    inputs = tensors(batch)
    labels = inputs['input_ids'].masked_fill(inputs['attention_mask'] == 0, -100)
    their_model.zero_grad()
    their_model(**inputs, labels=labels).loss.backward()
    grads = {key: p.grad.numpy() for key, p in their_model.named_parameters()}

    def loss(params):
        outputs = model.apply({'params': params}, batch | {'targets': np.roll(batch['tokens'], -1, axis=1)})
        weight = batch['segment_ids'] * np.roll(batch['segment_ids'], -1, axis=1)
        weight[:, -1] = 0
        return -jnp.sum(outputs['logprob'] * weight) / weight.sum()

    ours = tree.flatten(jax.jit(jax.grad(loss))(params))
    worst = 0.0
    for entry in pretrained.FAMILIES[model.family].entries(model):
        widths = [ours[path].shape[-1] for path in entry.paths]
        layers = range(model.num_layers) if '{layer}' in entry.key else [None]
        for layer in layers:
            parts = hf.split(entry, grads[entry.key.format(layer=layer)], widths)
            for path, part in zip(entry.paths, parts, strict=True):
                mine = ours[path] if layer is None else ours[path][layer]
                worst = max(worst, float(np.max(np.abs(mine - part))))
    return worst


def decoder(name: str, config: dict) -> tuple[dict, dict]:
    """(trial, golden) of one case."""
    batch, model = cases.batch(), theirs(config)
    trial = {'case': name, 'family': config['model_type']}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f'{folder}/theirs')
        ours, params = load_pretrained(f'{folder}/theirs')
        expected = their_logits(model, batch)
        logits = our_logits(ours, params, batch)
        trial |= {'logits': difference(logits, expected, batch), 'largest_logit': float(np.abs(expected).max())}
        save_pretrained(f'{folder}/ours', ours, params, like=pretrained.read_config(f'{folder}/theirs'))
        again, info = transformers.AutoModelForCausalLM.from_pretrained(
            f'{folder}/ours', attn_implementation='eager', output_loading_info=True
        )
        assert not info['missing_keys'] and not info['unexpected_keys'], (name, info)
        trial['exported'] = difference(logits, their_logits(again.eval(), batch), batch)
    if name in ('gpt2', 'llama'):
        trial['gradients'] = gradients(ours, params, model, batch)
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    return trial, {'shapes': shapes, 'logits': [float(f'{x:.7g}') for x in cases.sampled(expected).ravel()]}


def their_outputs(model, batch) -> np.ndarray:
    inputs = tensors(batch)
    if 'token_types' in batch:
        inputs['token_type_ids'] = torch.from_numpy(batch['token_types'].astype(np.int64))
    with torch.no_grad():
        out = model(**inputs)
    if 'start_logits' in out:
        return torch.stack([out.start_logits, out.end_logits], -1).numpy()
    return (out.logits if 'logits' in out else out.last_hidden_state).float().numpy()


def distance(ours, theirs, batch) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return difference(ours, theirs, batch) if ours.ndim == 3 else float(np.max(np.abs(ours - theirs)))


def replaced(name: str, config: dict, task: str) -> tuple[dict, dict]:
    """(trial, golden) of a base whose head is replaced by that of a task, and of what is exported of it."""
    batch, count = heads.batch(config), new_heads.outputs_of(task)
    whole = transformers.AutoConfig.for_model(**config)
    model = getattr(transformers, config['architectures'][0])._from_config(whole, attn_implementation='eager').eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(cases.weights(key, tuple(parameter.shape))))
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f'{folder}/theirs')
        ours = pretrained.with_task_head(pretrained.model_of(pretrained.read_config(f'{folder}/theirs')), task, count)
        kind = getattr(transformers, pretrained.config_of(ours)['architectures'][0])
        other, info = kind.from_pretrained(
            f'{folder}/theirs',
            attn_implementation='eager',
            output_loading_info=True,
            num_labels=count,
            ignore_mismatched_sizes=True,
        )
        missing = sorted({*info['missing_keys'], *(key for key, *_ in info['mismatched_keys'])})
        with torch.no_grad():
            for key, parameter in other.named_parameters():
                if key in missing:
                    parameter.copy_(torch.from_numpy(cases.weights(key, tuple(parameter.shape))))
        expected = their_outputs(other.eval(), batch)
        _, params = load_pretrained(f'{folder}/theirs', model=ours)
        params, drawn = new_heads.filled(ours, params)
        assert drawn == missing, (name, drawn, missing)
        logits = jax.jit(ours.apply)({'params': params}, batch)['logits']
        trial = {'case': name, 'family': f'{ours.family}, new head', 'logits': distance(logits, expected, batch)}
        labels = new_heads.NAMES if task != 'span' else ()
        like = pretrained.read_config(f'{folder}/theirs')
        save_pretrained(f'{folder}/ours', ours, params, like=like, labels=labels)
        again, info = kind.from_pretrained(f'{folder}/ours', attn_implementation='eager', output_loading_info=True)
        assert not any(info.values()), (name, info)
        assert task == 'span' or again.config.id2label == dict(enumerate(labels)), again.config.id2label
        trial['exported'] = distance(logits, their_outputs(again.eval(), batch), batch)
    sampled = [float(f'{x:.7g}') for x in heads.sampled(expected)]
    return trial, {'shapes': shapes, 'missing': missing, 'logits': sampled}


def headed(name: str, config: dict) -> tuple[dict, dict]:
    """(trial, golden) of an encoder, or of a checkpoint with the head of a task."""
    config = dict(config)
    kind, batch = getattr(transformers, config['architectures'][0]), heads.batch(config)
    settings = transformers.AutoConfig.for_model(config.pop('model_type'), **config)
    model = kind._from_config(settings, attn_implementation='eager').eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(cases.weights(key, tuple(parameter.shape))))

    theirs, gap = functools.partial(their_outputs, batch=batch), functools.partial(distance, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f'{folder}/theirs')
        ours, params = load_pretrained(f'{folder}/theirs')
        expected, outputs = theirs(model), jax.jit(ours.apply)({'params': params}, batch)
        logits = outputs['hidden' if ours.head == 'none' else 'logits']
        trial = {'case': name, 'family': settings.model_type, 'head': ours.head, 'logits': gap(logits, expected)}
        trial['largest_logit'] = float(np.abs(expected).max())
        save_pretrained(f'{folder}/ours', ours, params, like=pretrained.read_config(f'{folder}/theirs'))
        again, info = kind.from_pretrained(f'{folder}/ours', attn_implementation='eager', output_loading_info=True)
        # A head that is not tied has a bias of its own; transformers then does not read the other one.
        unread = set() if ours.tied else {'cls.predictions.bias', 'lm_head.bias'}
        assert not any(set(keys) - unread for keys in info.values()), (name, info)
        trial['exported'] = gap(logits, theirs(again.eval()))
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    return trial, {'shapes': shapes, 'logits': [float(f'{x:.7g}') for x in heads.sampled(expected)]}


def published(directory: str) -> dict:
    """The trial of a real encoder: hidden states of a ragged batch, and after an export."""
    batch = cases.batch()
    batch['tokens'] = 1996 + 450 * batch['tokens']  # words and not the entries that no text has

    def theirs(folder):
        model = transformers.AutoModel.from_pretrained(folder, attn_implementation='eager').eval()
        with torch.no_grad():
            return model(**tensors(batch)).last_hidden_state.numpy()

    expected, (model, params) = theirs(directory), load_pretrained(directory)
    logits = jax.jit(model.apply)({'params': params}, batch)['hidden']
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, model, params, like=pretrained.read_config(directory))
        exported = difference(logits, theirs(folder), batch)
    name = f'{model.family}, published'
    return {'case': name, 'family': name, 'logits': difference(logits, expected, batch), 'exported': exported}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--only', default='', help='cases whose name has this in it; nothing is written')
    parser.add_argument('--dry', action='store_true', help='write nothing')
    parser.add_argument('--encoder', help='directory of a published encoder, compared as well')
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    trials, goldens, of_heads, of_new_heads, of_fields = [], {}, {}, {}, {}
    for name, config in cases.DECODERS.items():
        if arguments.only in name:
            trial, goldens[name] = decoder(name, config)
            trials.append(trial)
            print(json.dumps(trial), flush=True)
    for name, config in heads.CASES.items():
        if arguments.only in name:
            trial, golden = headed(name, config)
            of_heads |= {name: golden} if name in heads.KEPT else {}
            trials.append(trial)
            print(json.dumps(trial), flush=True)
    for configs, compare in ((fields.DECODERS, decoder), (fields.ENCODERS, headed)):
        for name, config in configs.items():
            if arguments.only in name:
                trial, of_fields[name] = compare(name, config)
                trials.append(trial)
                print(json.dumps(trial), flush=True)
    for name, (config, task) in new_heads.CASES.items():
        if arguments.only in name:
            trial, golden = replaced(name, config, task)
            of_new_heads |= {name: golden} if name in new_heads.KEPT else {}
            trials.append(trial)
            print(json.dumps(trial), flush=True)
    if arguments.encoder:
        trials.append(published(arguments.encoder))
        print(json.dumps(trials[-1]), flush=True)
    figures = []
    for what, key, bound in (
        ('logits', 'logits', LOGITS),
        ('logits, exported and opened again', 'exported', LOGITS),
        ('gradients', 'gradients', GRADIENTS),
    ):
        for family in dict.fromkeys(trial['family'] for trial in trials):
            gaps = [trial[key] for trial in trials if trial['family'] == family and key in trial]
            if gaps:
                row = {'what': f'{family}: {what}, {len(gaps)} models', 'figure': f'{max(gaps):.1e}'}
                figures.append(row | {'target': f'<= {bound:.0e}', 'reached': max(gaps) <= bound})
    more, rows, of_adapters = adapters.compare(arguments.only)
    trials, figures = trials + more, figures + rows
    more, rows, of_tokens = token_ids.compare(arguments.only)
    trials, figures = trials + more, figures + rows
    more, rows, of_chats = chat_ids.compare(arguments.only)
    trials, figures = trials + more, figures + rows
    more, rows = recipes.compare(arguments.only)
    trials, figures = trials + more, figures + rows
    more, rows = scratch.compare(arguments.only)
    trials, figures = trials + more, figures + rows
    if arguments.only in 'stories260K' and (trial := stories.trial()):
        print(json.dumps(trial), flush=True)
        trials, figures = [*trials, trial], figures + stories.figures(trial)
    if not (arguments.only or arguments.dry):
        adapters.write(of_adapters)
        token_ids.write(of_tokens)
        chat_ids.write(of_chats)
        more = {'goldens_heads': of_heads, 'goldens_new_heads': of_new_heads, 'goldens_fields': of_fields}
        for file, content in ({'goldens': goldens} | more).items():
            text = json.dumps(content, separators=(',', ':')).replace('},"', '},\n"') + '\n'
            (record.ROOT / 'tests' / 'models' / f'{file}.json').write_text(text, encoding='utf-8')
        record.write(
            'parity',
            command='bash launch/parity.sh',
            figures=figures,
            trials=trials,
            not_shown=['other dtypes than float32, other devices than a CPU, and models of published size.'],
        )
    if missed := [row['what'] for row in figures if not row['reached']]:
        sys.exit(f'beyond the bound: {", ".join(missed)}')


if __name__ == '__main__':
    main()
