"""The settings of a transformer, and what contradicts what among them."""

import dataclasses
import difflib

from lmtrain.models.attention import BACKENDS
from lmtrain.models.layers import GATED, PLAIN

CHOICES = {
    'positions': ('rotary', 'learned', 'sinusoidal', 'none'),
    'norm': ('rmsnorm', 'layernorm'),
    'norm_place': ('pre', 'post'),
    'activation': (*GATED, *PLAIN),
    'dtype': ('float32', 'bfloat16'),
    'remat': ('none', 'dots', 'full'),
    'attention': ('auto', *BACKENDS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a model; configs/base.py says what each means.

    Raises ValueError, naming the field, where settings contradict each other.
    """

    vocab_size: int
    max_len: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    positions: str
    rope_theta: float
    norm: str
    norm_eps: float
    norm_place: str
    embed_norm: bool
    activation: str
    bias: bool
    tied: bool
    causal: bool
    mlm_head: bool
    qk_norm: bool
    logit_softcap: float
    attention_softcap: float
    window: int
    dropout: float
    dtype: str
    remat: str
    unroll: int
    attention: str

    def __post_init__(self):
        self.check()

    def check(self):
        """Raises ValueError where a setting is unknown, out of range or at odds with another."""
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0)
                raise ValueError(f'model.{name}={value!r} is none of {", ".join(choices)}; the nearest is {near[0]!r}')
        for name in 'vocab_size max_len num_layers width num_heads num_kv_heads head_dim mlp_dim unroll'.split():
            if getattr(self, name) < 1:
                raise ValueError(f'model.{name}={getattr(self, name)} must be at least 1')
        for name in 'window logit_softcap attention_softcap'.split():
            if getattr(self, name) < 0:
                raise ValueError(f'model.{name}={getattr(self, name)} must be 0 (off) or more')
        for name in 'rope_theta norm_eps'.split():
            if not getattr(self, name) > 0:
                raise ValueError(f'model.{name}={getattr(self, name)} must be above 0')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'model.dropout={self.dropout} must lie in [0, 1)')
        for whole, part in (('width', 'num_heads'), ('num_heads', 'num_kv_heads')):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f'model.{part}={getattr(self, part)} does not divide model.{whole}={getattr(self, whole)}'
                )
        if self.positions == 'rotary' and self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} is odd, but positions='rotary' turns pairs")
        if self.positions == 'sinusoidal' and self.width % 2:
            raise ValueError(f"model.width={self.width} is odd, but positions='sinusoidal' are pairs")
        if self.unroll > self.num_layers:
            raise ValueError(f'model.unroll={self.unroll} is more than model.num_layers={self.num_layers}')

    def check_length(self, length: int, what: str):
        if self.positions == 'learned' and length > self.max_len:
            raise ValueError(f'{what} {length} tokens is longer than model.max_len={self.max_len} learned positions')
