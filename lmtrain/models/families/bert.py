"""BERT (arXiv 1810.04805) and crammed BERT (arXiv 2212.14034): sizes, as updates of `model` in a config, and files."""

from lmtrain.errors import InputError
from lmtrain.models.hf import BUFFERS, UNGATED_NAMES, Entry, Fields, activation_name, size_fields
from lmtrain.models.hf_heads import Heads

ENCODER = {'norm': 'layernorm', 'norm_eps': 1e-12, 'embed_norm': True, 'tied': True, 'causal': False}
# Without the embedding of sentence types: for one sentence it is a constant that the positions can learn. Models from
# files have it (`token_types`).
BERT = ENCODER | {
    'vocab_size': 30_522,
    'max_len': 512,
    'positions': 'learned',
    'norm_place': 'post',
    'activation': 'gelu_exact',
    'bias': True,
    'mlm_head': True,
}
SIZES = {
    'base': BERT | {'num_layers': 12, 'width': 768, 'num_heads': 12},
    'large': BERT | {'num_layers': 24, 'width': 1024, 'num_heads': 16},
    'crammed': ENCODER
    | {
        'vocab_size': 32_768,
        'max_len': 128,
        'num_layers': 16,
        'width': 768,
        'num_heads': 12,
        'mlp_dim': 1536,
        'positions': 'sinusoidal',
        'norm_place': 'pre',
        'activation': 'geglu',
        'bias': False,
        'mlm_head': False,
    },
}

ARCHITECTURES = {'bert': 'BertForMaskedLM'}
PREFIX = 'bert.'
# Files of BERT's own pretraining have a pooler and a second head, whatever head they are opened with.
IGNORED = (
    rf'{BUFFERS}|pooler\.dense\.(weight|bias)|cls\.(seq_relationship\.(weight|bias)|predictions\.(decoder\.)?bias)'
)
# The first token through the pooler, or every token as it is.
HEADS = Heads(
    {'none': {'head_activation': 'tanh'}, 'classify': {'head_activation': 'tanh'}, 'tag': {}, 'span': {}},
    aliases={'BertForPreTraining': 'lm'},
)


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    width, num_heads = fields.take('hidden_size'), fields.take('num_attention_heads')
    fields.only('position_embedding_type', 'absolute')
    for name in ('is_decoder', 'add_cross_attention'):
        fields.only(name, False)
    if (token_types := fields.take('type_vocab_size', 2)) < 1:  # transformers opens such a file but cannot compute it
        raise InputError(f'config.json: type_vocab_size={token_types} of a {fields.family} must be at least 1')
    return BERT | {
        'vocab_size': fields.take('vocab_size'),
        'max_len': fields.take('max_position_embeddings'),
        'token_types': token_types,
        'num_layers': fields.take('num_hidden_layers'),
        'width': width,
        'num_heads': num_heads,
        'num_kv_heads': num_heads,
        'head_dim': width // num_heads,
        'mlp_dim': fields.take('intermediate_size'),
        'norm_eps': fields.take('layer_norm_eps', 1e-12),
        'activation': fields.choose('hidden_act', UNGATED_NAMES, 'gelu'),
        'tied': fields.take('tie_word_embeddings', True),
    }


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    return size_fields(model) | {
        'type_vocab_size': model.token_types or 2,  # hf.with_token_types
        'layer_norm_eps': model.norm_eps,
        'hidden_act': activation_name(model.activation, UNGATED_NAMES),
        'tie_word_embeddings': model.tied,
    }


LAYER = {
    'attention.self.query': 'attention/query',
    'attention.self.key': 'attention/key',
    'attention.self.value': 'attention/value',
    'attention.output.dense': 'attention/output',
    'attention.output.LayerNorm': 'attention_norm',
    'intermediate.dense': 'mlp/up',
    'output.dense': 'mlp/down',
    'output.LayerNorm': 'mlp_norm',
}
HEAD_NAMES = {  # by head
    'lm': {'cls.predictions.transform.dense': 'mlm_head/dense', 'cls.predictions.transform.LayerNorm': 'mlm_head/norm'},
    'none': {'bert.pooler.dense': 'task_head/dense'},
    'classify': {'bert.pooler.dense': 'task_head/dense', 'classifier': 'task_head/out'},
    'tag': {'classifier': 'task_head/out'},
    'span': {'qa_outputs': 'task_head/out'},
}


def entries(model, prefix=PREFIX, head_names=HEAD_NAMES, predictions='cls.predictions') -> list[Entry]:
    """The tensors in the files and the leaves that each holds; the arguments are the names that RoBERTa changes."""
    names = {f'{prefix}embeddings.LayerNorm': 'embed_norm'}
    names |= {f'{prefix}encoder.layer.{{layer}}.{theirs}': f'layers/{ours}' for theirs, ours in LAYER.items()}
    names |= head_names[model.head]
    tensors = [
        Entry((f'{ours}/embedding',), f'{prefix}embeddings.{theirs}_embeddings.weight')
        for ours, theirs in (('embed', 'word'), ('positions', 'position'), ('token_types', 'token_type'))
    ]
    for theirs, ours in names.items():
        norm = ours.endswith('norm')
        kernel, bias = (f'{ours}/{leaf}' for leaf in ('scale' if norm else 'kernel', 'bias'))
        # The oldest files have TensorFlow's names of the parameters of norms.
        also = [(f'{theirs}.{name}',) if norm else () for name in ('gamma', 'beta')]
        tensors += [Entry((kernel,), f'{theirs}.weight', not norm, also=also[0])]
        tensors += [Entry((bias,), f'{theirs}.bias', also=also[1])]
    if model.head == 'lm':
        biases = [f'{predictions}.bias', f'{predictions}.decoder.bias']  # one, unless the weights are untied
        key, other = biases if model.tied else reversed(biases)
        tensors.append(Entry(('mlm_head/bias',), key, also=(other,)))
        if not model.tied:
            tensors.append(Entry(('head/kernel',), f'{predictions}.decoder.weight', linear=True))
    return tensors
