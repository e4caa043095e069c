"""Collectives read from HLO lines written by hand, with bytes and groups worked out by hand."""
import pytest

from experiments.compiled.collectives import Collective, collectives, replica_groups, wire_bytes
from pallas_kernels.compiled.hbm import hbm_bytes
from pallas_kernels.compiled.hlo import Module


def module(*lines, before=''):
    body = '\n'.join(f'  {line}' for line in lines)
    head = (
        f'HloModule m\n\n{before}\nENTRY %main (p: f32[64,256], q: bf16[16]) -> f32[] {{\n'
        '  %p = f32[64,256]{1,0:T(8,128)} parameter(0)\n  %q = bf16[16]{0} parameter(1)\n'
    )
    return Module.parse(f'{head}{body}\n}}\n')


P = 64 * 256 * 4
ALL = tuple(range(256))


@pytest.mark.parametrize('line, expected', [
    # Over all 256 devices each chip sends 2 x 255/256 of the operand.
    ('%a = f32[64,256]{1,0} all-reduce(%p), channel_id=1, replica_groups={}, use_global_device_ids=true, to_apply=%add',
     Collective('all-reduce', ALL, 1, P, 2 * 255 / 256 * P)),
    # The operands are both parameters and the value is a tuple.
    ('%a = (f32[64,256]{1,0:T(8,128)S(1)}, /*index=5*/bf16[16]{0}) all-reduce(%p, %q), replica_groups=[1,256]<=[256]',
     Collective('all-reduce', ALL, 1, P + 32, 2 * 255 / 256 * (P + 32))),
    # Over 16 neighbours the result holds 16 operands, of which each chip sends all but one.
    ('%a = f32[1024,256]{1,0} all-gather(%p), channel_id=2, replica_groups=[16,16]<=[256], dimensions={0}',
     Collective('all-gather', tuple(range(16)), 1, 16 * P, 15 * P)),
    # The tuple of the asynchronous form repeats the operand.
    ('%a = (f32[64,256]{1,0}, f32[1024,256]{1,0}) all-gather-start(%p), replica_groups=[16,16]<=[256], dimensions={0}',
     Collective('all-gather', tuple(range(16)), 1, 16 * P, 15 * P)),
    # The group is every 16th device.
    ('%a = f32[4,256]{1,0} reduce-scatter(%p), replica_groups=[16,16]<=[16,16]T(1,0), dimensions={0}, to_apply=%add',
     Collective('reduce-scatter', tuple(range(0, 256, 16)), 1, P, 15 / 16 * P)),
    ('%a = f32[64,256]{1,0} all-to-all(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}',
     Collective('all-to-all', (0, 1, 2, 3), 1, P, 0.75 * P)),
    ('%a = (f32[64,256]{1,0}, f32[64,256]{1,0}, u32[], u32[]) collective-permute-start(%p), '
     'source_target_pairs={{0,1},{1,0}}', Collective('collective-permute', (0, 1), 1, P, P)),
    ('%a = f32[64,256]{1,0} all-reduce-start(%p), replica_groups={{0,1}}, to_apply=%add',
     Collective('all-reduce', (0, 1), 1, P, P)),
])
def test_one_collective(line, expected):
    assert collectives(module(line), 256) == [expected]


def test_done_forms_fusions_and_groups_of_one_do_not_count():
    found = collectives(module(
        '%s = f32[64,256]{1,0} all-reduce-start(%p), replica_groups={{0,1}}, to_apply=%add',
        '%d = f32[64,256]{1,0} all-reduce-done(%s)',
        '%alone = f32[64,256]{1,0} all-reduce(%d), replica_groups={{0},{1}}, to_apply=%add',
        '%get = f32[64,256]{1,0} copy(%alone), metadata={op_name="all-reduce(x)"}',
    ), 2)
    assert [(c.kind, c.count) for c in found] == [('all-reduce', 1)]


def test_those_of_one_kind_and_group_are_added_and_the_largest_comes_first():
    found = collectives(module(
        '%a = bf16[16]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%add',
        '%b = bf16[16]{0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add',
        '%c = f32[128,256]{1,0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}',
    ), 2)
    assert found == [Collective('all-gather', (0, 1), 1, 2 * P, P), Collective('all-reduce', (0, 1), 2, 64, 64.0)]


LOOP = """%body (s: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %s = (s32[], bf16[16]{0}) parameter(0)
  %v = bf16[16]{0} get-tuple-element(%s), index=1
  %r = bf16[16]{0} all-reduce(%v), replica_groups={{0,1}}, to_apply=%add
}
"""


@pytest.mark.parametrize('note, count, unknown', [
    ('backend_config={"known_trip_count":{"n":"9"}}', 9, False), ('backend_config={}', 1, True),
])
def test_a_loop_repeats_its_collectives(note, count, unknown):
    line = f'%w = (s32[], bf16[16]{{0}}) while(%p), condition=%test, body=%body, {note}'
    assert collectives(module(line, before=LOOP), 2) == [
        Collective('all-reduce', (0, 1), count, 32 * count, 32.0 * count, unknown)
    ]


def test_an_all_reduce_that_is_sliced_inside_a_fusion_is_a_reduce_scatter():
    before = """%all-reduce-scatter.1 (x: f32[64,256]) -> f32[32,256] {
  %x = f32[64,256]{1,0} parameter(0)
  %r = f32[64,256]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %part = f32[32,256]{1,0} dynamic-slice(%r, %r, %r), dynamic_slice_sizes={32,256}
}
"""
    line = '%f = f32[32,256]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1'
    assert collectives(module(line, before=before), 2) == [Collective('reduce-scatter', (0, 1), 1, P, P / 2)]


# An all-gather that runs at the same time as another fusion; each fusion repeats it.
SPREAD = ''.join(f"""%{name} (x: f32[64,256], y: f32[128,256]) -> f32[128,256] {{
  %x.{number} = f32[64,256]{{1,0}} parameter(0)
  %y.{number} = f32[128,256]{{1,0}} parameter(1)
  %all-gather.{number} = f32[128,256]{{1,0}} all-gather(%x.{number}), channel_id=1, replica_groups={{{{0,1}}}}, \
dimensions={{0}}, frontend_attributes={{chain_id="0"}}, backend_config={{"async_collective_fusion_config":{{}}}}
  ROOT {root}
}}

""" for number, (name, root) in enumerate([
    ('start', '%c.0 = (f32[64,256]{1,0}, f32[128,256]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.0), '
              'custom_call_target="AsyncCollectiveStart"'),
    ('meanwhile', '%t.1 = (f32[64,256]{1,0}, f32[128,256]{1,0}) tuple(%x.1, %all-gather.1)'),
    ('done', '%c.2 = f32[128,256]{1,0} custom-call(%x.2, %y.2, %all-gather.2), '
             'custom_call_target="AsyncCollectiveDone"'),
]))


def test_an_asynchronous_one_spread_over_fusions_counts_once():
    m = module(
        '%s = (f32[64,256]{1,0}, f32[128,256]{1,0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start',
        '%x = f32[64,256]{1,0} get-tuple-element(%s), index=0', '%y = f32[128,256]{1,0} get-tuple-element(%s), index=1',
        '%f = (f32[64,256]{1,0}, f32[128,256]{1,0}) fusion(%x, %y), kind=kOutput, calls=%meanwhile',
        '%d = f32[128,256]{1,0} fusion(%x, %y), kind=kCustom, calls=%done', before=SPREAD,
    )
    assert collectives(m, 2) == [Collective('all-gather', (0, 1), 1, 2 * P, P)]
    assert hbm_bytes(m) == P + 2 * P  # It is read and written where it starts.


@pytest.mark.parametrize('attributes, expected', [
    ('replica_groups={{0,2},{1,3}}, dimensions={0}', [(0, 2), (1, 3)]),
    ('replica_groups=[2,2]<=[4]', [(0, 1), (2, 3)]),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', [(0, 2), (1, 3)]),
    ('replica_groups=[4,2]<=[2,2,2]T(1,2,0)', [(0, 4), (1, 5), (2, 6), (3, 7)]),
    ('replica_groups={}', [(0, 1, 2, 3)]),
    ('to_apply=%add', [(0, 1, 2, 3)]),
    ('source_target_pairs={{0,1},{1,2},{2,0}}', [(0, 1, 2)]),
    ("replica_groups=mesh['axis_0'=4] {'axis_0'}, use_global_device_ids=true", [(0, 1, 2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [(0, 1), (2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}", [(0, 2, 1, 3)]),
])
def test_replica_groups(attributes, expected):
    assert replica_groups(attributes, 4) == expected


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match='not known here'):
        replica_groups("replica_groups=mesh['a'=2], device_ids=([2]) {'a'}", 4)


def test_wire_bytes():
    assert [wire_bytes(kind, 800, 4) for kind in ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all')] == [
        1200, 600, 600, 600,
    ]
    assert wire_bytes('collective-permute', 800, 4) == 800
