"""Language models. Shape letters in names such as `query_BTHK`:

B batch, T query position, S key position, D model width, H heads, G key-value heads, K per-head, F feed-forward,
V vocabulary, N layers, M selected positions, R rank, P prompt length, C chunk.
"""

from lmtrain.models.pretrained import load_pretrained, save_pretrained
from lmtrain.models.transformer import Transformer

__all__ = ['Transformer', 'load_pretrained', 'save_pretrained']
