"""Rotary position embeddings with their scalings for longer contexts, and fixed sinusoidal embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lmtrain.errors import InputError, wrong_choice

# Required and optional fields of each scaling, with the names in Hugging Face's rope_scaling.
SCALINGS = {
    'linear': ({'factor'}, set()),  # arXiv 2306.15595
    'dynamic': ({'factor', 'original_max_position_embeddings'}, set()),  # NTK-aware, by the length of the document
    'llama3': ({'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'}, set()),
    'yarn': (  # arXiv 2309.00071
        {'factor', 'original_max_position_embeddings'},
        {'attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate'},
    ),
    'longrope': (  # arXiv 2402.13753
        {'factor', 'short_factor', 'long_factor', 'original_max_position_embeddings'},
        {'attention_factor'},
    ),
}


def by_length(scaling) -> bool:
    """Whether the angles of a position depend on the length of its document."""
    return dict(scaling).get('rope_type') in ('dynamic', 'longrope')


def angles_change_after(scaling) -> int:
    """Number of positions after which the angles of all positions of a text change at once; 0: never."""
    fields = dict(scaling)
    return fields['original_max_position_embeddings'] if fields.get('rope_type') == 'longrope' else 0


def check_scaling(scaling, rotary_dim: int) -> None:
    """InputError: `scaling`, pairs of names and values, is none of SCALINGS."""
    fields = dict(scaling)
    kind = fields.pop('rope_type', None)
    if kind not in SCALINGS:
        raise wrong_choice('model.rope_scaling: rope_type', kind, SCALINGS)
    needed, optional = SCALINGS[kind]
    if fields.keys() - needed - optional or needed - fields.keys():
        raise InputError(
            f"model.rope_scaling of rope_type='{kind}' has the fields {sorted(fields)}; it must have {sorted(needed)}"
            + (f' and may have {sorted(optional)}' if optional else '')
        )
    for name, value in fields.items():
        values = value if isinstance(value, tuple) else (value,)
        if name in ('short_factor', 'long_factor') and len(values) != rotary_dim // 2:
            raise InputError(f'model.rope_scaling: {name} has {len(values)} numbers for {rotary_dim // 2} frequencies')
        if any(isinstance(v, str) or not v > 0 for v in values if name != 'truncate'):
            raise InputError(f'model.rope_scaling: {name}={value!r} must be above 0')


def rotary_angles(positions_BT, rotary_dim: int, theta: float, scaling=(), length=None):
    """(cos, sin), float32 [B, T, R/2], of position / theta^(2i/R) (RoFormer, arXiv 2104.09864), R = rotary_dim.

    `scaling` changes the angles (SCALINGS). 'dynamic' and 'longrope' depend on the length of the document of each
    position, `length` int32 [B, T] or [B, 1]. So padding, the rest of a batch or of a packed row, micro-batches and
    devices change nothing. transformers uses the longest row of a batch instead; both agree for a single row.

    With a cache, `length` is the current length, and cached keys keep the angles of the length at which they were
    computed. For 'longrope' the angles change once, after `angles_change_after` positions; then inference.sample
    prefills the whole text again, same as transformers for Phi-3, so that generation agrees with training. For
    'dynamic' they change with every token beyond the original length: cached keys then differ from those that training
    on the whole text computes, same as transformers.

    >>> cos, sin = rotary_angles(jnp.arange(3)[None], rotary_dim=4, theta=10_000.0)
    >>> cos.shape, bool(jnp.allclose(sin[0, :, 0], jnp.sin(jnp.arange(3))))
    ((1, 3, 2), True)
    """
    frequencies, factor = scaled_frequencies(rotary_dim, theta, dict(scaling), length)
    frequencies = jnp.expand_dims(frequencies, range(3 - frequencies.ndim))
    angles = positions_BT.astype(jnp.float32)[..., None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def lengths(segments_BT, all_positions_BS, all_segments_BS):
    """int32 [B, T], or [B, 1] without segments: the length of each token's document, 1 + the largest position in it.

    The last two arguments are those of whole rows, of which `segments_BT` may be a part.
    """
    if segments_BT is None:
        return 1 + jnp.max(all_positions_BS, axis=1, keepdims=True)

    def of_row(segments_T, positions_S, all_segments_S):
        # Ids may be any numbers: the index of an id's first occurrence in the sorted ids is its slot.
        sorted_S = jnp.sort(all_segments_S)
        longest_S = jnp.zeros_like(positions_S).at[jnp.searchsorted(sorted_S, all_segments_S)].max(positions_S)
        return 1 + longest_S[jnp.searchsorted(sorted_S, segments_T)]

    return jax.vmap(of_row)(segments_BT, all_positions_BS, all_segments_BS)


def scaled_frequencies(rotary_dim: int, theta: float, scaling: dict, length=None):
    """(frequencies float32, [R/2] or [B, T, R/2], the factor of cos and sin); `length` as in rotary_angles."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    plain = 1 / np.float32(theta) ** exponents
    if not scaling:
        return plain, 1
    kind, factor = scaling['rope_type'], scaling['factor']
    original = scaling.get('original_max_position_embeddings')
    if kind == 'linear':
        return plain / np.float32(factor), 1
    if kind == 'dynamic':
        length = jnp.maximum(length, original)[..., None].astype(jnp.float32)
        base = theta * (factor * length / original - (factor - 1)) ** (rotary_dim / (rotary_dim - 2))
        return 1 / base ** exponents[None, None], 1
    if kind == 'llama3':
        low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
        turns = original * plain / (2 * math.pi)  # rotations within the original length
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32), 1
    if kind == 'longrope':
        attention_factor = scaling.get('attention_factor') or (
            math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1
        )
        short, long = (np.asarray(scaling[name], np.float32) for name in ('short_factor', 'long_factor'))
        short, long = (jnp.asarray(plain / factors)[None, None] for factors in (short, long))
        return jnp.where(length[..., None] > original, long, short), attention_factor
    return yarn(plain, theta, **{name: value for name, value in scaling.items() if name != 'rope_type'})


def yarn(
    plain,
    theta,
    *,
    factor,
    original_max_position_embeddings,
    attention_factor=None,
    beta_fast=32,
    beta_slow=1,
    mscale=None,
    mscale_all_dim=None,
    truncate=True,
):
    """(frequencies, factor of cos and sin) of YaRN (arXiv 2309.00071, sections 3.2 to 3.4)."""

    def of(scale):
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    def dimension(turns):
        """The dimension with this number of rotations within the original length."""
        return len(plain) * math.log(original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(plain) - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 0.001), 0, 1)
    if attention_factor is None:
        attention_factor = of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1)
    return (plain / factor * ramp + plain * (1 - ramp)).astype(np.float32), attention_factor


def rotate(x_BTHK, cos, sin):
    """Rotates the pairs (x[i], x[i + R/2]) of the first R of K dimensions by their angles (LLaMA's layout)."""
    half = cos.shape[-1]
    x = x_BTHK.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x_BTHK.dtype)


def sinusoids(positions_BT, width: int):
    """Fixed embeddings float32 [B, T, D] (arXiv 1706.03762, section 3.5), divided by sqrt(D), the scale of tokens."""
    cos, sin = rotary_angles(positions_BT, width, 10_000.0)
    return jnp.concatenate([sin, cos], axis=-1)[..., :width] * width**-0.5
