import numpy as np
import pytest

from lmtrain.cost import hlo, traffic
from lmtrain.parallel import sharding

HLO = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %x = f32[4] get-tuple-element(%p), index=1
  %gathered = f32[16] all-gather(%x), GROUPS, dimensions={0}
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[4]) tuple(%i, %x)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[4])) -> f32[4] {
  %x = (s32[], f32[4]) parameter(0)
  %loop = (s32[], f32[4]) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[4] get-tuple-element(%loop), index=1
  ROOT %summed = f32[4] all-reduce(%y), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
}
"""
FORMS = (
    'replica_groups={{0,1,2,3},{4,5,6,7}}',
    'replica_groups=[2,4]<=[8]',
    "replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=1,'sequence'=1] {'fsdp'}",
    "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}",
)


@pytest.mark.parametrize('form', FORMS)
def test_collectives_count_once_per_iteration_and_by_mesh_axis(form):
    received = traffic.audit(HLO.replace('GROUPS', form), sharding.mesh(2, 4, 1, 1))
    # A ring gathers 3 of 4 parts of 64 bytes, three times; it sums 16 bytes over two devices.
    assert received == {('all-gather', 'fsdp'): 3 * 64 * 3 / 4, ('all-reduce', 'data'): 16 * 2 * 1 / 2}


def test_transposed_groups_are_along_the_outer_axis():
    received = traffic.audit(HLO.replace('GROUPS', 'replica_groups=[4,2]<=[2,4]T(1,0)'), sharding.mesh(2, 4, 1, 1))
    assert received['all-gather', 'data'] == 3 * 64 / 2


@pytest.mark.parametrize(
    ('form', 'message'),
    [
        ('replica_groups={{0,3},{1,2},{4,7},{5,6}}', 'along no axes'),
        ('replica_groups=unheard_of', 'cannot be read'),
    ],
)
def test_unreadable_groups_are_refused(form, message):
    with pytest.raises(ValueError, match=message):
        traffic.audit(HLO.replace('GROUPS', form), sharding.mesh(2, 4, 1, 1))


def test_loop_of_unknown_trip_count_is_refused():
    with pytest.raises(ValueError, match='trip count of the loop loop is unknown'):
        list(hlo.executed(HLO.replace('known_trip_count', 'other')))


def test_permutation_is_along_the_axis_of_its_pairs():
    text = HLO.replace(
        'all-gather(%x), GROUPS, dimensions={0}',
        'collective-permute(%x), source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}',
    )
    received = traffic.audit(text, sharding.mesh(2, 4, 1, 1))
    np.testing.assert_equal(received['collective-permute', 'fsdp'], 3 * 64)
