"""ModernBERT (arXiv 2412.13663): rotary, gated, without biases, a window in two of three layers; sizes and files."""

from lmtrain.errors import InputError
from lmtrain.models.hf import BUFFERS, Entry, Fields, layer_types, rope_of, size_fields, windows
from lmtrain.models.hf_heads import Heads
from lmtrain.models.settings import HEAD_KINDS

ARCHITECTURES = {'modernbert': 'ModernBertForMaskedLM'}
PREFIX = 'model.'
IGNORED = BUFFERS
MODERNBERT = {
    'vocab_size': 50_368,
    'max_len': 8192,
    'positions': 'rotary',
    'rope_theta': 160_000.0,
    'local_rope_theta': 10_000.0,
    'window': 65,
    'norm': 'layernorm',
    'norm_eps': 1e-5,
    'embed_norm': True,
    'first_norm': False,
    'activation': 'geglu_exact',
    'bias': False,
    'tied': True,
    'causal': False,
    'mlm_head': True,
}
SIZES = {
    name: MODERNBERT
    | dict(zip(('num_layers', 'width', 'num_heads', 'mlp_dim'), sizes, strict=True))
    | {'global_layers': tuple(range(0, sizes[0], 3))}
    for name, sizes in {'base': (22, 768, 12, 1152), 'large': (28, 1024, 16, 2624)}.items()
}
PREDICTION = {'head_activation': 'gelu_exact'}
POOLS = {'cls': 'first', 'mean': 'mean'}
HEADS = Heads({'none': {}, 'classify': PREDICTION, 'tag': PREDICTION, 'span': PREDICTION}, pools=POOLS)
BIASED = {
    'attention_bias': ('query', 'key', 'value', 'output'),
    'mlp_bias': ('mlp',),
    'norm_bias': ('norm',),
    'classifier_bias': ('head',),
}
# Fields of the published file that transformers ignores or that change no output.
UNREAD = """
    deterministic_flash_attn embedding_dropout initializer_cutoff_factor layer_norm_eps mlp_dropout
    position_embedding_type reference_compile repad_logits_with_grad sparse_pred_ignore_index sparse_prediction
""".split()


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    width, num_heads, num_layers = (
        fields.take(name) for name in ('hidden_size', 'num_attention_heads', 'num_hidden_layers')
    )
    max_len = fields.take('max_position_embeddings')
    for name in ('hidden_activation', 'classifier_activation'):
        fields.only(name, 'gelu')
    fields.only('decoder_bias', True)
    for name in UNREAD:
        fields.take(name, None)
    every = fields.take('global_attn_every_n_layers', 3)
    kinds = fields.take('layer_types', None) or [
        'sliding_attention' if i % every else 'full_attention' for i in range(num_layers)
    ]
    seen = windows(fields.take('local_attention', 128) // 2 + 1, kinds, num_layers)
    sizes = {
        'vocab_size': fields.take('vocab_size'),
        'max_len': max_len,
        'num_layers': num_layers,
        'width': width,
        'num_heads': num_heads,
        'num_kv_heads': num_heads,
        'head_dim': width // num_heads,
        'mlp_dim': fields.take('intermediate_size'),
        'norm_eps': fields.take('norm_eps', 1e-5),
        'biased': sum((ours for theirs, ours in BIASED.items() if fields.take(theirs, False)), ()),
        'head_pool': fields.choose('classifier_pooling', POOLS, 'cls'),
        'tied': fields.take('tie_word_embeddings', True),
    }
    return MODERNBERT | sizes | seen | _ropes(fields, width // num_heads, max_len, seen['window'])


def _ropes(fields: Fields, head_dim: int, max_len: int, window: int) -> dict:
    new = fields.take('rope_parameters', None) or {}
    if stray := new.keys() - {'full_attention', 'sliding_attention'}:
        raise InputError(
            f'config.json: rope_parameters of a modernbert has {min(stray)}, not one dict per kind of layer'
        )
    full, local = (
        rope_of(new.get(kind) or {}, head_dim, max_len, fields.take(name, theta))
        for kind, name, theta in (
            ('full_attention', 'global_rope_theta', 160_000.0),
            ('sliding_attention', 'local_rope_theta', 10_000.0),
        )
    )
    if full['rope_scaling'] or local['rope_scaling']:
        raise InputError('config.json: rope_parameters of a modernbert have a scaling, which is not supported')
    return full | {'local_rope_theta': local['rope_theta'] if window else 0.0}


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    return (
        size_fields(model)
        | {
            'norm_eps': model.norm_eps,
            'hidden_activation': 'gelu',
            'local_attention': 2 * (model.window - 1) if model.window else 128,
            'layer_types': layer_types(model),
            'global_rope_theta': model.rope_theta,
            'local_rope_theta': model.local_rope_theta or model.rope_theta,
            'classifier_pooling': {ours: theirs for theirs, ours in POOLS.items()}[model.head_pool],
            'tie_word_embeddings': model.tied,
        }
        | {theirs: ours[0] in model.biases for theirs, ours in BIASED.items()}
    )


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds; of a gated activation, the gate comes first."""
    layers = {
        'attn_norm': ('attention_norm',),
        'attn.Wqkv': ('attention/query', 'attention/key', 'attention/value'),
        'attn.Wo': ('attention/output',),
        'mlp_norm': ('mlp_norm',),
        'mlp.Wi': ('mlp/gate', 'mlp/up'),
        'mlp.Wo': ('mlp/down',),
    }
    names = {'model.embeddings.norm': ('embed_norm',), 'model.final_norm': ('final_norm',)}
    names |= {f'model.layers.{{layer}}.{k}': tuple(f'layers/{p}' for p in paths) for k, paths in layers.items()}
    if model.head != 'none':
        head = 'mlm_head' if model.head == 'lm' else 'task_head'
        names |= {'head.dense': (f'{head}/dense',), 'head.norm': (f'{head}/norm',)}
    if HEAD_KINDS[model.head].has_outputs:
        names['classifier'] = ('task_head/out',)
    tensors = [Entry(('embed/embedding',), 'model.embeddings.tok_embeddings.weight')]
    for theirs, ours in names.items():
        norm = ours[0].endswith('norm')
        kernels, biases = (tuple(f'{o}/{leaf}' for o in ours) for leaf in ('scale' if norm else 'kernel', 'bias'))
        first = int(theirs.endswith('attn_norm'))
        tensors.append(Entry(kernels, f'{theirs}.weight', not norm, first=first))
        if _biased(model, ours[0], norm):
            tensors.append(Entry(biases, f'{theirs}.bias', first=first))
    if model.head == 'lm':
        tensors.append(Entry(('mlm_head/bias',), 'decoder.bias'))
        if not model.tied:
            tensors.append(Entry(('head/kernel',), 'decoder.weight', linear=True))
    return tensors


def _biased(model, path: str, norm: bool) -> bool:
    if path == 'task_head/out':
        return True
    parent, _, name = path.removeprefix('layers/').partition('/')
    return ('norm' if norm else {'attention': name, 'mlp': 'mlp'}.get(parent, 'head')) in model.biases
