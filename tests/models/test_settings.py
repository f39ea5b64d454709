"""The settings of a model and the checks of their consistency; no model is built."""

import dataclasses

import pytest

from configs.base import get_config
from lmtrain.models import Transformer
from lmtrain.models.settings import tuples


def settings(**changed):
    config = get_config()
    config.model.update(
        vocab_size=64, num_layers=4, width=32, num_heads=2, head_dim=16, mlp_dim=64, max_len=48, unroll=1
    )
    return Transformer(**config.model.to_dict() | changed)


def test_all_layers_but_global_ones_have_a_window():
    model = settings(window=8, global_layers=[1, 3])
    assert [model.local(layer) for layer in range(4)] == [True, False, True, False]
    assert not any(settings().local(layer) for layer in range(4))
    assert dataclasses.replace(model, window=5).window == 5 and model.global_layers == (1, 3)


@pytest.mark.parametrize(('offset', 'longest'), [(0, 48), (2, 46)])
def test_rows_longer_than_the_table_of_positions_are_rejected(offset, longest):
    model = settings(positions='learned', position_offset=offset)
    model.check_length(longest, 'a row of')
    with pytest.raises(ValueError, match=f'a row of {longest + 1} tokens is longer than model.max_len=48'):
        model.check_length(longest + 1, 'a row of')
    settings(positions='rotary').check_length(1000, 'a row of')


@pytest.mark.parametrize(
    ('changed', 'error'),
    [
        ({'rotary_dim': 7}, "model.rotary_dim=7 is odd, but positions='rotary' rotates pairs"),
        ({'head_dim': 15}, "model.head_dim=15 is odd, but positions='rotary' rotates pairs"),
        ({'rotary_dim': 18}, 'model.rotary_dim=18 is more than model.head_dim=16'),
        ({'dropout': 1.0}, r'model.dropout=1.0 must lie in \[0, 1\)'),
        ({'dropout': -0.1}, 'model.dropout=-0.1 must lie in'),
        ({'global_layers': (4,), 'window': 8}, r'model.global_layers=\(4,\) are not all of 4 layers'),
        ({'global_layers': (1,)}, 'model.global_layers=.* has no effect if model.window is 0'),
        ({'unroll': 5}, 'model.unroll=5 is more than model.num_layers=4'),
        ({'norm': 'rmsnrm'}, "model.norm = 'rmsnrm' is none of .*, did you mean 'rmsnorm'"),
        ({'rope_theta': 0.0}, 'model.rope_theta=0.0 must be above 0'),
    ],
)
def test_contradictory_settings_are_named(changed, error):
    with pytest.raises(ValueError, match=error):
        settings(**changed)


def test_an_odd_head_may_rotate_an_even_part():
    assert settings(head_dim=15, rotary_dim=6).rotary_dim == 6 and settings(dropout=0.99).dropout == 0.99


def test_a_kernel_needs_the_window_of_a_layer_at_compile_time():
    """In a scan over layers of both kinds the window is unknown at compile time; unrolled it is known."""
    some = {'window': 8, 'global_layers': (1,), 'dtype': 'bfloat16'}
    reasons = [settings(**some | {'unroll': unroll}).unsupported_reason('splash', 128) for unroll in (1, 2, 4)]
    assert 'set model.unroll to model.num_layers' in reasons[0] and reasons == [reasons[0], reasons[0], '']
    assert settings(window=8, dtype='bfloat16').unsupported_reason('splash', 128) == ''


def test_lists_become_tuples():
    assert tuples([1, [2, [3]], 'a']) == (1, (2, (3,)), 'a')
