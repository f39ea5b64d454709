"""RoBERTa (arXiv 1907.11692): BERT with byte-pair encoding, positions after that of padding, and its own heads."""

from lmtrain.errors import InputError
from lmtrain.models.families import bert
from lmtrain.models.hf import BUFFERS, Entry, Fields

ARCHITECTURES = {'roberta': 'RobertaForMaskedLM'}
PREFIX = 'roberta.'
HEADS = bert.HEADS._replace(aliases={})
IGNORED = rf'{BUFFERS}|pooler\.dense\.(weight|bias)|lm_head\.(decoder\.)?bias'
ROBERTA = bert.BERT | {'vocab_size': 50_265, 'max_len': 514, 'norm_eps': 1e-5, 'token_types': 1, 'position_offset': 2}
SIZES = {
    'base': ROBERTA | {'num_layers': 12, 'width': 768, 'num_heads': 12},
    'large': ROBERTA | {'num_layers': 24, 'width': 1024, 'num_heads': 16},
}
HEAD_NAMES = {  # by head
    'lm': {'lm_head.dense': 'mlm_head/dense', 'lm_head.layer_norm': 'mlm_head/norm'},
    'none': {'roberta.pooler.dense': 'task_head/dense'},
    'classify': {'classifier.dense': 'task_head/dense', 'classifier.out_proj': 'task_head/out'},
    'tag': {'classifier': 'task_head/out'},
    'span': {'qa_outputs': 'task_head/out'},
}


def settings(fields: Fields) -> dict:
    """The settings of a config.json. InputError: a field that this family does not support."""
    padding = fields.take('pad_token_id', 1)
    sizes = bert.settings(fields)
    if sizes['activation'] != 'gelu_exact':
        raise InputError("config.json: hidden_act of a roberta must be 'gelu', which its masked-LM head always has")
    return sizes | {'position_offset': padding + 1}


def fields(model) -> dict:
    """The fields of config.json that a model's settings decide; the inverse of `settings`."""
    return bert.fields(model) | {'pad_token_id': model.position_offset - 1}


def entries(model) -> list[Entry]:
    """The tensors in the files and the leaves that each holds."""
    return bert.entries(model, PREFIX, HEAD_NAMES, 'lm_head')
