"""Compares lmtrain with PEFT: adapters of every kind on tiny random models, in and out of PEFT's directories.

    python -m experiments.parity.adapters [--only NAME] [--dry]

For each: outputs after `load_adapter`, outputs of PEFT after it opened what `save_adapter` wrote, and ours after
folding. Writes the goldens of the default tests (tests/adapt/peft/goldens.json).
"""

import argparse
import functools
import json
import os
import pathlib
import sys
import tempfile
import warnings

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'

import jax
import numpy as np
import peft
import torch
import transformers

from experiments.parity import adapter_weights, cases, heads
from experiments.record import ROOT
from lmtrain import adapt
from lmtrain.models import load_pretrained, safetensors, save_pretrained

OUTPUTS, MERGED = 2e-5, 1e-4

ATTENTION = ['q_proj', 'v_proj']
PATTERNS = {
    'target_modules': ['q_proj', 'o_proj', 'up_proj'],
    'rank_pattern': {'up_proj': 2, r'model\.layers\.1\.self_attn\.q_proj': 6},
    'alpha_pattern': {'o_proj': 3},
}
PROMPT = {'num_virtual_tokens': 5}
# name: (base, kind, task, settings); the base is one of cases.DECODERS (or of the encoders), the task PEFT's.
CASES = {
    'lora of llama': ('llama', 'LORA', 'CAUSAL_LM', {'target_modules': ATTENTION}),
    'rslora with patterns of llama': ('llama', 'LORA', 'CAUSAL_LM', PATTERNS | {'use_rslora': True}),
    'dora of llama': ('llama', 'LORA', 'CAUSAL_LM', {'target_modules': 'all-linear', 'use_dora': True}),
    'lora of one layer of llama': (
        'llama',
        'LORA',
        'CAUSAL_LM',
        {'target_modules': ATTENTION, 'layers_to_transform': [1]},
    ),
    'dora of one layer of llama': (
        'llama',
        'LORA',
        'CAUSAL_LM',
        {'target_modules': ATTENTION, 'layers_to_transform': [1], 'use_dora': True},
    ),
    'lora of embeddings of llama': ('llama', 'LORA', 'CAUSAL_LM', {'target_modules': ['embed_tokens', 'v_proj']}),
    'lora of llama with its head': (
        'llama',
        'LORA',
        'CAUSAL_LM',
        {'target_modules': ATTENTION, 'modules_to_save': ['lm_head']},
    ),
    'lora of gpt2': ('gpt2', 'LORA', 'CAUSAL_LM', {'target_modules': ['c_attn'], 'fan_in_fan_out': True}),
    'dora of gpt2': (
        'gpt2',
        'LORA',
        'CAUSAL_LM',
        {'target_modules': ['c_attn', 'c_proj', 'c_fc'], 'fan_in_fan_out': True, 'use_dora': True},
    ),
    'lora of embeddings of gpt2': ('gpt2', 'LORA', 'CAUSAL_LM', {'target_modules': ['wte', 'attn.c_proj']}),
    'lora of gpt_neox': ('gpt_neox', 'LORA', 'CAUSAL_LM', {'target_modules': ['query_key_value', 'dense_h_to_4h']}),
    'dora of gpt_neox': ('gpt_neox', 'LORA', 'CAUSAL_LM', {'target_modules': ['query_key_value'], 'use_dora': True}),
    'dora of phi3': (
        'phi3',
        'LORA',
        'CAUSAL_LM',
        {'target_modules': ['qkv_proj', 'gate_up_proj', 'down_proj'], 'use_dora': True},
    ),
    'lora of mistral': ('mistral', 'LORA', 'CAUSAL_LM', {'target_modules': 'all-linear'}),
    'lora of qwen2': ('qwen2', 'LORA', 'CAUSAL_LM', {'target_modules': ATTENTION}),
    'lora of qwen3': ('qwen3', 'LORA', 'CAUSAL_LM', {'target_modules': 'all-linear'}),
    'lora of gemma': ('gemma', 'LORA', 'CAUSAL_LM', {'target_modules': ATTENTION}),
    'lora of gemma2': ('gemma2', 'LORA', 'CAUSAL_LM', {'target_modules': 'all-linear'}),
    'lora of gemma3': ('gemma3', 'LORA', 'CAUSAL_LM', {'target_modules': ATTENTION, 'use_rslora': True}),
    'lora of olmo2': ('olmo2', 'LORA', 'CAUSAL_LM', {'target_modules': 'all-linear'}),
    'ia3 of llama': (
        'llama',
        'IA3',
        'CAUSAL_LM',
        {'target_modules': ['k_proj', 'v_proj', 'down_proj'], 'feedforward_modules': ['down_proj']},
    ),
    'ia3 of gpt2': (
        'gpt2',
        'IA3',
        'CAUSAL_LM',
        {'target_modules': ['c_attn', 'mlp.c_proj'], 'feedforward_modules': ['mlp.c_proj'], 'fan_in_fan_out': True},
    ),
    'ia3 of gpt_neox': (
        'gpt_neox',
        'IA3',
        'CAUSAL_LM',
        {'target_modules': ['query_key_value', 'dense_4h_to_h'], 'feedforward_modules': ['dense_4h_to_h']},
    ),
    'ia3 of phi3': (
        'phi3',
        'IA3',
        'CAUSAL_LM',
        {'target_modules': ['qkv_proj', 'gate_up_proj'], 'feedforward_modules': ['gate_up_proj']},
    ),
    'prompt of gpt2': ('gpt2', 'PROMPT_TUNING', 'CAUSAL_LM', PROMPT),
    'prompt of llama': ('llama', 'PROMPT_TUNING', 'CAUSAL_LM', PROMPT),
    'prompt of gemma': ('gemma', 'PROMPT_TUNING', 'CAUSAL_LM', PROMPT),
    'prompt of gpt_neox': ('gpt_neox', 'PROMPT_TUNING', 'CAUSAL_LM', PROMPT),
    'p-tuning of llama': ('llama', 'P_TUNING', 'CAUSAL_LM', PROMPT | {'encoder_hidden_size': 24}),
    'prefix of gpt2': ('gpt2', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix of llama': ('llama', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix by a network of llama': (
        'llama',
        'PREFIX_TUNING',
        'CAUSAL_LM',
        PROMPT | {'prefix_projection': True, 'encoder_hidden_size': 24},
    ),
    'prefix of qwen3': ('qwen3', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix of gpt_neox': ('gpt_neox', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'lora of llama, classes': ('llama', 'LORA', 'SEQ_CLS', {'target_modules': ATTENTION}),
    'lora of llama, tags': ('llama', 'LORA', 'TOKEN_CLS', {'target_modules': ATTENTION}),
    'lora of llama, spans': ('llama', 'LORA', 'QUESTION_ANS', {'target_modules': ATTENTION}),
    'ia3 of gpt2, classes': (
        'gpt2',
        'IA3',
        'SEQ_CLS',
        {'target_modules': ['c_attn'], 'feedforward_modules': [], 'fan_in_fan_out': True},
    ),
    'prompt of llama, tags': ('llama', 'PROMPT_TUNING', 'TOKEN_CLS', PROMPT),
    'prefix of llama, tags': ('llama', 'PREFIX_TUNING', 'TOKEN_CLS', PROMPT),
}
BERT = ['query', 'value']
CASES |= {
    'lora of bert, masked': ('bert, lm', 'LORA', None, {'target_modules': BERT}),
    'dora of bert, every layer': ('bert, lm', 'LORA', None, {'target_modules': [*BERT, 'dense'], 'use_dora': True}),
    'ia3 of bert, masked': (
        'bert, lm',
        'IA3',
        None,
        {'target_modules': ['key', 'value', 'intermediate.dense'], 'feedforward_modules': ['intermediate.dense']},
    ),
    'lora of roberta, masked': ('roberta, lm', 'LORA', None, {'target_modules': BERT, 'use_rslora': True}),
    'lora of modernbert, masked': ('modernbert, lm', 'LORA', None, {'target_modules': ['Wqkv', 'Wi']}),
    'dora of modernbert, one layer': (
        'modernbert, lm',
        'LORA',
        None,
        {'target_modules': ['attn.Wqkv', 'attn.Wo'], 'layers_to_transform': [3], 'use_dora': True},
    ),
    'lora of bare bert': ('bert, none', 'LORA', 'FEATURE_EXTRACTION', {'target_modules': BERT}),
    'prompt of bare bert': ('bert, none', 'PROMPT_TUNING', 'FEATURE_EXTRACTION', PROMPT),
    'prompt of bare roberta': ('roberta, none', 'PROMPT_TUNING', 'FEATURE_EXTRACTION', PROMPT),
    'prefix of bare bert': ('bert, none', 'PREFIX_TUNING', 'FEATURE_EXTRACTION', PROMPT),
    'lora of bert, classes': ('bert, classify', 'LORA', 'SEQ_CLS', {'target_modules': BERT}),
    'lora of roberta, classes': ('roberta, classify', 'LORA', 'SEQ_CLS', {'target_modules': BERT}),
    'lora of modernbert, classes': ('modernbert, classify', 'LORA', 'SEQ_CLS', {'target_modules': ['Wqkv']}),
    'prefix of bert, classes': ('bert, classify', 'PREFIX_TUNING', 'SEQ_CLS', PROMPT),
    'lora of bert, tags': ('bert, tag', 'LORA', 'TOKEN_CLS', {'target_modules': BERT}),
    'lora of bert, tags, head added': ('bert, none', 'LORA', 'TOKEN_CLS', {'target_modules': BERT}),
    'prompt of bert, tags': ('bert, tag', 'PROMPT_TUNING', 'TOKEN_CLS', PROMPT),
    'prefix of roberta, tags': ('roberta, tag', 'PREFIX_TUNING', 'TOKEN_CLS', PROMPT),
    'prompt of modernbert, tags': ('modernbert, tag', 'PROMPT_TUNING', 'TOKEN_CLS', PROMPT),
    'prompt of bert, classes': ('bert, classify', 'PROMPT_TUNING', 'SEQ_CLS', PROMPT),
    'p-tuning of roberta, classes': (
        'roberta, classify',
        'P_TUNING',
        'SEQ_CLS',
        PROMPT | {'encoder_hidden_size': 24},
    ),
    'prompt of modernbert, classes': ('modernbert, classify', 'PROMPT_TUNING', 'SEQ_CLS', PROMPT),
    'prompt of modernbert, classes by the mean': (
        'modernbert with biases, mean, classify',
        'PROMPT_TUNING',
        'SEQ_CLS',
        PROMPT,
    ),
    'prefix of gemma2': ('gemma2, narrow window', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix of gemma3': ('gemma3', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix of mistral': ('mistral', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix of phi3': ('phi3', 'PREFIX_TUNING', 'CAUSAL_LM', PROMPT),
    'prefix longer than the window of gemma2': (
        'gemma2, narrow window',
        'PREFIX_TUNING',
        'CAUSAL_LM',
        {'num_virtual_tokens': 11},
    ),
    'ia3 of bert, spans': (
        'bert, span',
        'IA3',
        'QUESTION_ANS',
        {'target_modules': ['key'], 'feedforward_modules': []},
    ),
    'lora of qwen2, classes, own head': ('qwen2, classify', 'LORA', 'SEQ_CLS', {'target_modules': ATTENTION}),
}
KEPT = (
    'rslora with patterns of llama',
    'lora of embeddings of llama',
    'dora of one layer of llama',
    'dora of gpt2',
    'lora of gpt_neox',
    'ia3 of phi3',
    'prompt of gemma',
    'prefix of llama',
    'lora of llama, spans',
    'lora of modernbert, masked',
    'prompt of bert, tags',
    'lora of roberta, classes',
    'prompt of bert, classes',
    'prompt of modernbert, classes by the mean',
    'prefix of gemma2',
    'prefix longer than the window of gemma2',
    'prefix of mistral',
)
KINDS = {
    'LORA': functools.partial(peft.LoraConfig, r=4, lora_alpha=6),
    'IA3': peft.IA3Config,
    'PROMPT_TUNING': peft.PromptTuningConfig,
    'P_TUNING': peft.PromptEncoderConfig,
    'PREFIX_TUNING': peft.PrefixTuningConfig,
}
AUTO = {
    'CAUSAL_LM': transformers.AutoModelForCausalLM,
    'SEQ_CLS': transformers.AutoModelForSequenceClassification,
    'TOKEN_CLS': transformers.AutoModelForTokenClassification,
    'QUESTION_ANS': transformers.AutoModelForQuestionAnswering,
    'FEATURE_EXTRACTION': transformers.AutoModel,
    None: transformers.AutoModelForMaskedLM,
}
HEADED = {'SEQ_CLS': 'classify', 'TOKEN_CLS': 'tag', 'QUESTION_ANS': 'span', 'FEATURE_EXTRACTION': 'none'}
HEADS = ('score', 'classifier', 'qa_outputs')


def randomise(model):
    """Gives every parameter the value that its name decides."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(cases.weights(key, tuple(parameter.shape))))


def randomise_adapter(folder: str, base: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """The same for the tensors of an adapter's file; {key: shape}."""
    path = pathlib.Path(folder) / 'adapter_model.safetensors'
    tensors = {
        key: adapter_weights.weights(key, tensor.shape, base) for key, tensor in safetensors.header(path).items()
    }
    shapes = {key: (x.shape, x.dtype) for key, x in tensors.items()}
    safetensors.write_file(path, shapes, tensors.__getitem__)
    return {key: list(x.shape) for key, x in tensors.items()}


def base_model(name: str, folder: str):
    """Writes the base of a case; the shapes of its parameters by name."""
    config = dict((cases.DECODERS | heads.CASES)[name])
    kind = getattr(transformers, config['architectures'][0])
    config = transformers.AutoConfig.for_model(config.pop('model_type'), **config)
    model = kind._from_config(config, attn_implementation='eager').eval()
    randomise(model)
    model.save_pretrained(folder)
    return {key: list(parameter.shape) for key, parameter in model.named_parameters()}


def open_base(folder: str, task: str):
    options = {'num_labels': heads.LABELS} if task in ('SEQ_CLS', 'TOKEN_CLS') else {}
    model = AUTO[task].from_pretrained(folder, attn_implementation='eager', **options).eval()
    if task == 'QUESTION_ANS' and model.base_model_prefix == 'transformer':  # it does not find the weights of `model`
        plain = transformers.AutoModel.from_pretrained(folder, attn_implementation='eager')
        model.base_model.load_state_dict(plain.state_dict())
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0
    return model


def outputs_of(model, task: str, batch) -> np.ndarray:
    """[B, T, C] of the real tokens, [B, C] where rows are pooled."""
    inputs = {
        'input_ids': torch.from_numpy(batch['tokens'].astype(np.int64)),
        'attention_mask': torch.from_numpy(batch['segment_ids'].astype(np.int64)),
    }
    with torch.no_grad():
        out = model(**inputs)
    if task == 'QUESTION_ANS':
        x = torch.stack([out.start_logits, out.end_logits], -1)
    else:
        x = out.last_hidden_state if task == 'FEATURE_EXTRACTION' else out.logits
    x = x.float().numpy()
    return x[:, -batch['tokens'].shape[1] :] if x.ndim == 3 else x  # PEFT's outputs have the prompt's before them


@functools.partial(jax.jit, static_argnames=('model', 'task'))
def ours_of(model, params, batch, task: str):
    outputs = model.apply({'params': params}, batch)
    name = next((name for name in HEADS if name in outputs), 'logits')
    x = outputs['hidden' if task == 'FEATURE_EXTRACTION' else name]
    if task == 'SEQ_CLS' and x.ndim == 3:  # the last real token
        x = x[np.arange(len(cases.LENGTHS)), np.array(cases.LENGTHS) - 1]
    return x


def difference(ours, theirs, batch) -> float:
    gap = np.abs(np.asarray(ours) - theirs)
    return float(np.max(gap[batch['segment_ids'] > 0] if gap.ndim == 3 else gap))


def batch_of(base: str):
    """No row of a classifier holds the padding's id, by which transformers finds the last token."""
    batch = cases.batch()
    padding = 1 if base.startswith('roberta') else 0
    tokens = np.where(batch['segment_ids'] > 0, np.maximum(batch['tokens'], 2), padding)
    return batch | {'tokens': tokens.astype(np.int32)}


def trial(name: str) -> tuple[dict, dict]:
    """(trial, golden) of one case."""
    base, kind, task, settings = CASES[name]
    batch = batch_of(base)
    with tempfile.TemporaryDirectory() as folder:
        directory = f'{folder}/base'
        base_shapes = base_model(base, directory)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            theirs = peft.get_peft_model(open_base(directory, task), KINDS[kind](task_type=task, **settings)).eval()
            theirs.save_pretrained(f'{folder}/adapter')
            base_tensors = {key: x.read() for key, x in safetensors.find(pathlib.Path(directory)).items()}
            shapes = randomise_adapter(f'{folder}/adapter', base_tensors)
            theirs = peft.PeftModel.from_pretrained(open_base(directory, task), f'{folder}/adapter').eval()
        expected = outputs_of(theirs, task, batch)
        model, params = load_pretrained(directory)
        unadapted = None if HEADED.get(task, 'lm') != model.head else ours_of(model, params, batch, task)
        params = adapt.load_adapter(model, params, f'{folder}/adapter')
        got = ours_of(model, params, batch, task)
        row = {'case': name, 'base': base, 'kind': kind, 'task': task, 'imported': difference(got, expected, batch)}
        if unadapted is not None:
            row['moved'] = difference(unadapted, expected, batch)

        saved = settings.get('modules_to_save', ())
        adapt.save_adapter(f'{folder}/ours', model, params, base=directory, task_type=task, modules_to_save=saved)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            again = peft.PeftModel.from_pretrained(open_base(directory, task), f'{folder}/ours').eval()
        lost = [str(w.message) for w in caught if 'missing' in str(w.message) or 'unexpected' in str(w.message)]
        assert not lost, (name, lost)
        row['exported'] = difference(got, outputs_of(again, task, batch), batch)
        if kind in ('LORA', 'IA3') and not (model.tied and 'embeddings' in name):
            folded = adapt.fold(params)
            row['merged'] = difference(ours_of(model, folded, batch, task), expected, batch)
            if task in ('CAUSAL_LM', None):
                save_pretrained(f'{folder}/merged', model, folded)
                whole = outputs_of(open_base(f'{folder}/merged', task), task, batch)
                row['merged'] = max(row['merged'], difference(expected, whole, batch))
        config = json.loads(pathlib.Path(f'{folder}/adapter/adapter_config.json').read_text(encoding='utf-8'))
    golden = {'base': base, 'task': task, 'config': config | {'base_model_name_or_path': base}, 'shapes': shapes}
    golden['base_shapes'] = base_shapes
    return row, golden | {'outputs': [float(f'{x:.7g}') for x in heads.sampled(expected).ravel()]}


def compare(only: str = '') -> tuple[list[dict], list[dict], dict]:
    """(trials, figures, goldens) of the cases whose name has `only` in it."""
    trials, goldens = [], {}
    for name in CASES:
        if only in name:
            row, goldens[name] = trial(name)
            trials.append(row)
            print(json.dumps(row), flush=True)
    figures = []
    for what, key, bound in (
        ('read', 'imported', OUTPUTS),
        ('written and opened by peft', 'exported', OUTPUTS),
        ('folded', 'merged', MERGED),
    ):
        for kind in dict.fromkeys(trial['kind'] for trial in trials):
            gaps = [trial[key] for trial in trials if trial['kind'] == kind and key in trial]
            if gaps:
                row = {'what': f'PEFT {kind}: {what}, {len(gaps)} adapters', 'figure': f'{max(gaps):.1e}'}
                figures.append(row | {'target': f'<= {bound:.0e}', 'reached': max(gaps) <= bound})
    return trials, figures, goldens


def write(goldens: dict) -> None:
    """The goldens of the default tests: some cases, that each way of lying in a file is among them."""
    selected = {name: goldens[name] for name in KEPT}
    path = ROOT / 'tests' / 'adapt' / 'peft' / 'goldens.json'
    path.write_text(json.dumps(selected, separators=(',', ':')).replace('},"', '},\n"') + '\n', encoding='utf-8')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--only', default='', help='cases whose name has this in it; nothing is written')
    parser.add_argument('--dry', action='store_true', help='write nothing')
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    _, figures, goldens = compare(arguments.only)
    if not (arguments.only or arguments.dry):
        write(goldens)
    if missed := [row['what'] for row in figures if not row['reached']]:
        sys.exit(f'beyond the bound: {", ".join(missed)}')


if __name__ == '__main__':
    main()
