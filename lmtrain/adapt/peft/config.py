"""adapter_config.json of PEFT since 0.2: the fields of every kind of adapter, and their supported values.

A field that a later version of PEFT added gets its default if it is absent (DEFAULTS).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.errors import InputError, did_you_mean
from lmtrain.files import read_json
from lmtrain.models.hf import how_to_skip

PEFT_VERSION = '0.21.2'  # written into adapter_config.json
CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
TASK_TYPES = ('CAUSAL_LM', 'SEQ_CLS', 'TOKEN_CLS', 'QUESTION_ANS', 'FEATURE_EXTRACTION')
# modules_to_save that PEFT adds for classification, whether the model has them or not.
AUTOMATIC = ('classifier', 'score')
# Modules that PEFT's ensure_weight_tying finds; it has no effect on an embedding with another name (GPT-2's wte).
TIED = ('embed_tokens', 'lm_head')

# Fields that every kind must have.
COMMON = ('peft_type', 'base_model_name_or_path')
REQUIRED = {
    'LORA': ('r', 'lora_alpha', 'target_modules'),
    'IA3': ('target_modules',),
    'PROMPT_TUNING': ('num_virtual_tokens', 'token_dim'),
    'P_TUNING': ('num_virtual_tokens', 'token_dim'),
    'PREFIX_TUNING': ('num_virtual_tokens', 'token_dim', 'num_attention_heads', 'num_layers'),
}
OFF = (None, False, {}, [], '', 'none')  # values that turn a feature off
# Fields that are read, and that PEFT 0.2 (feedforward_modules: 0.3) did not have yet.
DEFAULTS = {
    'LORA': {
        **{'bias': 'none', 'use_rslora': False, 'use_dora': False, 'rank_pattern': {}, 'alpha_pattern': {}},
        'ensure_weight_tying': False,
    },
    'IA3': {'feedforward_modules': []},
}
# Fields that do not change the adapter's function: names, versions, the training, and initial values.
HARMLESS = {
    'auto_mapping', 'inference_mode', 'modules_to_save', 'peft_version', 'revision', 'task_type', 'lora_dropout',
    'fan_in_fan_out', 'init_ia3_weights', 'init_weights', 'prompt_tuning_init', 'prompt_tuning_init_text',
    'prompt_tuning_init_state_dict_path', 'tokenizer_kwargs', 'tokenizer_name_or_path', 'encoder_hidden_size',
    'encoder_dropout', 'encoder_num_layers', 'encoder_reparameterization_type', 'prefix_projection',
    'num_attention_heads', 'num_layers', 'megatron_core', 'qalora_group_size', 'loftq_config', 'layers_pattern',
    'layers_to_transform', 'exclude_modules', 'merge_weights',
}  # fmt: skip
# Features that are not implemented: refused unless they are off.
FOREIGN = {
    'alora_invocation_tokens', 'arrow_config', 'corda_config', 'eva_config', 'kasa_config', 'layer_replication',
    'lora_bias', 'lora_ga_config', 'megatron_config', 'monteclora_config', 'target_parameters',
    'trainable_token_indices', 'use_bdlora', 'use_qalora', 'velora_config',
}  # fmt: skip
# Supported values of init_lora_weights. The others (pissa, olora, ...) change the base's weights, which the adapter's
# files do not contain.
INITS = (None, True, False, 'gaussian', 'orthogonal', 'eva')


def read(directory: Path, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of adapter_config.json, with defaults for those that its version of PEFT did not have.

    Unknown fields are skipped if they are off (null, false, empty) or in `ignore`.

    Raises FileNotFoundError, or InputError naming a field that is unknown, missing or has an unsupported value.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f'{directory} is not an adapter: it holds no {CONFIG}')
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.get('peft_type') not in REQUIRED:
        kind = fields.get('peft_type') if isinstance(fields, dict) else fields
        raise InputError(f'{path}: peft_type={kind!r} is none of {", ".join(REQUIRED)}')
    required = COMMON + REQUIRED[fields['peft_type']]
    defaults = DEFAULTS.get(fields['peft_type'], {})
    known = {*required, *defaults} | HARMLESS | FOREIGN | {'init_lora_weights', 'num_transformer_submodules'}
    for name, value in fields.items():
        if name not in known and name not in ignore and value not in OFF:
            raise InputError(
                f'{path}: the field {name!r} is unknown; if it does not change the function, {how_to_skip(name)}'
                f'{did_you_mean(name, known)}'
            )
        if name in FOREIGN and value not in OFF:
            raise InputError(f'{path}: {name}={value!r} is not implemented')
    for name in required:
        if name not in fields:
            raise InputError(f'{path} lacks the field {name!r}, without which the adapter is not determined')
    fields = defaults | {name: value for name, value in fields.items() if value is not None or name not in defaults}
    _check(path, fields)
    return fields


def _check(path: Path, fields: Mapping[str, Any]) -> None:
    """Raises InputError if a field that is read has an unsupported value or a wrong type."""
    supported = {'bias': OFF, 'num_transformer_submodules': (None, 1), 'init_lora_weights': INITS}
    for name, values in supported.items():
        if name in fields and fields[name] not in values:
            raise InputError(f'{path}: {name}={fields[name]!r} is not implemented, only {", ".join(map(repr, values))}')
    kinds = {'r': int, 'lora_alpha': (int, float), 'rank_pattern': dict, 'alpha_pattern': dict}
    kinds |= {
        'use_rslora': bool,
        'use_dora': bool,
        'ensure_weight_tying': bool,
        'num_virtual_tokens': int,
        'token_dim': int,
    }
    for name, kind in kinds.items():
        if name in fields and not isinstance(fields[name], kind):
            raise InputError(f'{path}: {name}={fields[name]!r} is of the wrong type')
    if fields.get('r', 1) < 1:
        raise InputError(f'{path}: r={fields["r"]} must be at least 1')


def common(kind: str, base: str, task_type: str | None, saved: list[str]) -> dict[str, Any]:
    """Fields that every kind of adapter writes. Raises InputError for a task type that PEFT does not have."""
    if task_type not in (*TASK_TYPES, None):
        raise InputError(f'task_type={task_type!r} is none of {", ".join(TASK_TYPES)} and None')
    return {
        'auto_mapping': None,
        'base_model_name_or_path': base,
        'inference_mode': True,
        'modules_to_save': saved or None,
        'peft_type': kind,
        'peft_version': PEFT_VERSION,
        'revision': None,
        'task_type': task_type,
    }
