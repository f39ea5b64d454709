"""The settings of a transformer, and the checks of their consistency."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from lmtrain.errors import InputError, wrong_choice
from lmtrain.models.attention_kernels import KERNELS, unsupported_reason
from lmtrain.models.layers import GATED, UNGATED
from lmtrain.models.rotary import check_scaling


class HeadKind(NamedTuple):
    """The outputs of a head for a task: for each row or for each token (neither: no such head), and what they mean.

    classes: the outputs are classes, whose names are in config.json.
    """

    per_row: bool = False
    per_token: bool = False
    classes: bool = False

    @property
    def has_outputs(self) -> bool:
        """Whether there are model.num_labels outputs."""
        return self.per_row or self.per_token


# Values of model.head: the language-model head, those of transformers' classes for tasks, and the body alone.
HEAD_KINDS = {
    'lm': HeadKind(),
    'classify': HeadKind(per_row=True, classes=True),
    'tag': HeadKind(per_token=True, classes=True),
    'span': HeadKind(per_token=True),
    'none': HeadKind(),
}
BIASED = ('query', 'key', 'value', 'output', 'mlp', 'norm', 'head')  # what may have biases; 'mlp': its projections
CHOICES = {
    'positions': ('rotary', 'learned', 'sinusoidal', 'none'),
    'norm': ('rmsnorm', 'layernorm', 'rmsnorm1p'),
    'norm_place': ('pre', 'post', 'branch', 'sandwich'),
    'qk_norm_over': ('head', 'projection'),
    'activation': (*GATED, *UNGATED),
    'dtype': ('float32', 'bfloat16'),
    'remat': ('none', 'dots', 'full'),
    'attention': ('auto', 'xla', *KERNELS),
    'head': tuple(HEAD_KINDS),
    'head_pool': ('first', 'last', 'mean'),
    'head_activation': ('', 'tanh', *UNGATED),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a model; configs/base.py describes each.

    InputError, with the field: a setting is out of range or contradicts another.
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
    # Options of single families, all off by default.
    family: str = ''
    biased: tuple[str, ...] = ()
    parallel: bool = False
    qk_norm_over: str = 'head'
    embed_scale: float = 1.0
    attention_scale: float = 0.0
    rotary_dim: int = 0
    rope_scaling: tuple[tuple[str, Any], ...] = ()
    global_layers: tuple[int, ...] = ()
    local_rope_theta: float = 0.0
    first_norm: bool = True
    token_types: int = 0
    position_offset: int = 0
    vocab_fill: int = 0  # padding rows of the tables (lmtrain.parallel.vocab_padding)
    # The head of a checkpoint that was trained for a task (task_head.py).
    head: str = 'lm'
    num_labels: int = 0
    head_pool: str = 'first'
    head_activation: str = ''
    head_bias: bool = True

    def __post_init__(self):
        for name in ('biased', 'rope_scaling', 'global_layers'):
            object.__setattr__(self, name, tuples(getattr(self, name)))  # JSON has lists
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise wrong_choice(f'model.{name}', value, choices)
        for name in 'vocab_size max_len num_layers width num_heads num_kv_heads head_dim mlp_dim unroll'.split():
            if getattr(self, name) < 1:
                raise InputError(f'model.{name}={getattr(self, name)} must be at least 1')
        off = 'window logit_softcap attention_softcap attention_scale rotary_dim local_rope_theta'
        for name in f'{off} num_labels token_types position_offset vocab_fill'.split():
            if getattr(self, name) < 0:
                raise InputError(f'model.{name}={getattr(self, name)} must be 0 (off) or more')
        for name in 'rope_theta norm_eps embed_scale'.split():
            if not getattr(self, name) > 0:
                raise InputError(f'model.{name}={getattr(self, name)} must be above 0')
        if not 0 <= self.dropout < 1:
            raise InputError(f'model.dropout={self.dropout} must lie in [0, 1)')
        for whole, part in (('width', 'num_heads'), ('num_heads', 'num_kv_heads')):
            size, count = getattr(self, whole), getattr(self, part)
            if size % count:
                divisors = [number for number in range(1, size + 1) if size % number == 0]
                near = [n for n in divisors if n < count][-1:] + [n for n in divisors if n > count][:1]
                way_out = (
                    f'set model.{part} to {" or ".join(map(str, near))}, or model.{whole} to a multiple of {count}'
                )
                raise InputError(f'model.{part}={count} does not divide model.{whole}={size}: {way_out}')
        dimension = 'rotary_dim' if self.rotary_dim else 'head_dim'
        if self.positions == 'rotary' and getattr(self, dimension) % 2:
            raise InputError(
                f"model.{dimension}={getattr(self, dimension)} is odd, but positions='rotary' rotates pairs"
            )
        if self.rotary_dim > self.head_dim:
            raise InputError(f'model.rotary_dim={self.rotary_dim} is more than model.head_dim={self.head_dim}')
        if self.rope_scaling:
            check_scaling(self.rope_scaling, self.rotary_dim or self.head_dim)
        if unknown := set(self.biased) - set(BIASED):
            raise InputError(f'model.biased has {sorted(unknown)}: it may have {", ".join(BIASED)}')
        if any(not 0 <= layer < self.num_layers for layer in self.global_layers):
            raise InputError(f'model.global_layers={self.global_layers} are not all of {self.num_layers} layers')
        if not self.window and (self.global_layers or self.local_rope_theta):
            name = 'global_layers' if self.global_layers else 'local_rope_theta'
            raise InputError(f'model.{name}={getattr(self, name)} has no effect if model.window is 0')
        if not self.first_norm and (self.norm_place != 'pre' or self.num_layers < 2):
            raise InputError("model.first_norm=False needs norm_place='pre' and two layers or more")
        if HEAD_KINDS[self.head].has_outputs and self.num_labels < 1:
            raise InputError(f'model.head={self.head!r} needs model.num_labels, not {self.num_labels}')
        if self.parallel and self.norm_place != 'pre':
            raise InputError(f"model.parallel needs norm_place='pre', not {self.norm_place!r}")
        if self.positions == 'sinusoidal' and self.width % 2:
            raise InputError(f"model.width={self.width} is odd, but positions='sinusoidal' are pairs")
        if self.unroll > self.num_layers:
            raise InputError(f'model.unroll={self.unroll} is more than model.num_layers={self.num_layers}')

    @functools.cached_property
    def biases(self) -> frozenset[str]:
        """Those of BIASED that have a bias."""
        return frozenset(BIASED if self.bias else self.biased)

    def local(self, layer: int) -> bool:
        """Whether a layer has a sliding window."""
        return bool(self.window) and layer not in self.global_layers

    def unsupported_reason(self, kernel: str, length: int, capability: tuple[int, ...] = ()) -> str:
        """The reason that an attention kernel does not support rows of `length` positions, or ''."""
        window = None if self.global_layers and self.unroll != self.num_layers else self.window
        properties = {'head_dim': self.head_dim, 'window': window, 'softcap': self.attention_softcap}
        properties |= {'dtype': jnp.dtype(self.dtype), 'capability': capability}
        return unsupported_reason(kernel, length, **properties)

    def check_cache(self, length: int):
        """InputError: the model has no cache, or none of so many tokens a row."""
        if not self.causal:
            raise InputError('model.causal is False: an encoder has no cache')
        self.check_length(length, 'a cache of')

    def check_length(self, length: int, what: str):
        if self.positions == 'learned' and length > self.max_len - self.position_offset:
            raise InputError(f'{what} {length} tokens is longer than model.max_len={self.max_len} learned positions')


def tuples(value):
    """Nested lists as nested tuples: settings are static arguments of compiled programs, so they must be hashable."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value
