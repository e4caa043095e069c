"""Parsing HLO text, on lines written by hand, and the bytes that it moves from and to HBM."""
import pytest

from pallas_kernels.compiled.gpu import launches_by_kind
from pallas_kernels.compiled.hbm import hbm_bytes
from pallas_kernels.compiled.hlo import Module, shape_bytes, split_tuple

TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%take_rows (table: f32[1000,128], ids: s32[16,1]) -> f32[16,128] {
  %table = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %ids = s32[16,1]{1,0:T(8,128)} parameter(1)
  ROOT %rows = f32[16,128]{1,0:T(8,128)} gather(%table, %ids), offset_dims={1}
}

%put_rows (table.1: f32[1000,128], ids.1: s32[16,1], rows.1: f32[16,128]) -> f32[1000,128] {
  %table.1 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %ids.1 = s32[16,1]{1,0:T(8,128)} parameter(1)
  %rows.1 = f32[16,128]{1,0:T(8,128)} parameter(2)
  ROOT %new = f32[1000,128]{1,0:T(8,128)} scatter(%table.1, %ids.1, %rows.1), to_apply=%add
}

%body (state: (s32[], f32[64])) -> (s32[], f32[64]) {
  %state = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %v = f32[64]{0:T(128)} get-tuple-element(%state), index=1
  %w = f32[64]{0:T(128)} negate(%v)
  ROOT %next = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%i, %w)
}

%test (state.1: (s32[], f32[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: f32[1000,128], q: s32[16,1], r: (s32[], f32[64])) -> f32[1000,128] {
  %p = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %q = s32[16,1]{1,0:T(8,128)} parameter(1)
  %r = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(2)
  %got = f32[16,128]{1,0:T(8,128)S(1)} fusion(%p, %q), kind=kCustom, calls=%take_rows
  %twice = f32[16,128]{1,0:T(8,128)} add(%got, %got), metadata={op_name="jit(step)/add"}
  %loop = (s32[]{:T(128)}, f32[64]{0:T(128)}) while(%r), condition=%test, body=%body
  ROOT %put = f32[1000,128]{1,0:T(8,128)} fusion(%p, %q, %twice), kind=kCustom, calls=%put_rows
}
"""


@pytest.mark.parametrize('shape, expected', [
    ('f32[8,128]{1,0:T(8,128)S(1)}', 4096),
    ('bf16[3,5]', 30),
    ('pred[7]{0:T(512)}', 7),
    ('s4[3]', 2),
    ('f8e4m3fn[10]', 10),
    ('c64[2]', 16),
    ('f32[]{:T(128)}', 4),
    ('(f32[2], (s32[3], u8[1]), /*index=5*/bf16[1]{0})', 8 + 12 + 1 + 2),
    ('token[]', 0),
])
def test_shape_bytes(shape, expected):
    assert shape_bytes(shape) == expected


def test_a_tuple_is_split_outside_its_brackets():
    assert split_tuple('(f32[2,3]{1,0:T(8,128)}, (s32[1], u32[]), /*index=5*/pred[])') == [
        'f32[2,3]{1,0:T(8,128)}', '(s32[1], u32[])', 'pred[]',
    ]
    assert split_tuple('f32[2,3]{1,0}') == ['f32[2,3]{1,0}']


def test_computations_instructions_and_rounds():
    module = Module.parse(TEXT)
    assert module.entry == 'main' and module.fused == {'take_rows', 'put_rows'}
    put = module.computations['main'][-1]
    assert (put.name, put.opcode, put.operands, put.root) == ('put', 'fusion', ['p', 'q', 'twice'], True)
    assert module.loops() == [5]
    assert {name: rounds for i, name, rounds, _ in module.executed() if i.opcode != 'parameter'} == {
        'main': 1, 'take_rows': 1, 'put_rows': 1, 'body': 5,
    }


@pytest.mark.parametrize('loop, rounds', [
    ('backend_config={"known_trip_count":{"n":"12"}}', 12),
    ('backend_config={}', 5),
])
def test_the_compilers_own_count_of_rounds_comes_first(loop, rounds):
    text = TEXT.replace('condition=%test, body=%body', f'condition=%test, body=%body, {loop}')
    assert Module.parse(text).loops() == [rounds]


def test_rounds_are_unknown_where_the_condition_is_another():
    module = Module.parse(TEXT.replace('direction=LT', 'direction=NE'))
    assert module.loops() == [None]
    assert [unknown for i, _, _, unknown in module.executed() if i.name == 'w'] == [True]


def test_a_condition_on_an_array_tells_no_rounds():
    text = TEXT.replace('%less = pred[]{:T(512)} compare', '%less = pred[16]{0:T(512)} compare')
    assert Module.parse(text).loops() == [None]


def test_a_fusion_within_a_fusion_moves_what_it_moves_alone():
    wrapped = TEXT.replace('%put = f32[1000,128]{1,0:T(8,128)} fusion(%p, %q, %twice), kind=kCustom, calls=%put_rows',
                           '%put = f32[1000,128]{1,0:T(8,128)} fusion(%q, %twice, %p), kind=kCustom, calls=%outer')
    outer = '''%outer (ids.2: s32[16,1], rows.2: f32[16,128], table.2: f32[1000,128]) -> f32[1000,128] {
  %ids.2 = s32[16,1]{1,0:T(8,128)} parameter(0)
  %rows.2 = f32[16,128]{1,0:T(8,128)} parameter(1)
  %table.2 = f32[1000,128]{1,0:T(8,128)} parameter(2)
  ROOT %inner = f32[1000,128]{1,0:T(8,128)} fusion(%table.2, %ids.2, %rows.2), kind=kCustom, calls=%put_rows
}

%body (state'''
    wrapped = wrapped.replace('%body (state', outer, 1)
    assert 'calls=%outer' in wrapped
    assert hbm_bytes(Module.parse(wrapped)) == hbm_bytes(Module.parse(TEXT))


def test_bytes_moved_from_and_to_hbm():
    rows, ids, vector = 16 * 128 * 4, 16 * 4, 64 * 4
    gathered = rows + ids  # Both are read; the result goes to VMEM.
    added = rows  # The result is written; both operands lie in VMEM.
    loop = 5 * (vector + vector)
    put = ids + rows + rows  # Ids and new rows are read, and the rows that they replace are written.
    assert hbm_bytes(Module.parse(TEXT)) == gathered + added + loop + put


def test_copies_between_hbm_and_vmem_count_on_their_hbm_side():
    text = """HloModule m

ENTRY %main (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  %in = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%p)
  %here = f32[256]{0:S(1)} copy-done(%in)
  %part = ((f32[256]{0}), f32[64]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:64]}
  %got = f32[64]{0:S(1)} slice-done(%part)
  %out = (f32[256]{0}, f32[256]{0:S(1)}, u32[]{:S(2)}) copy-start(%here)
  ROOT %there = f32[256]{0} copy-done(%out)
}
"""
    assert hbm_bytes(Module.parse(text)) == 1024 + 256 + 1024


def test_all_results_of_a_kernel_in_a_fusion_count():
    text = """HloModule m

%sliced (p: f32[512], q: f32[256]) -> (f32[256], f32[128]) {
  %p = f32[512]{0} parameter(0)
  %part = f32[64]{0} slice(%p), slice={[64:128]}
  %q = f32[256]{0} parameter(1)
  ROOT %made = (f32[256]{0}, f32[128]{0}) custom-call(%part, %q), custom_call_target="mosaic_gpu_v2"
}

ENTRY %main (p: f32[512], q: f32[256]) -> (f32[256], f32[128]) {
  %p = f32[512]{0} parameter(0)
  %q = f32[256]{0} parameter(1)
  ROOT %fused = (f32[256]{0}, f32[128]{0}) fusion(%p, %q), kind=kCustom, calls=%sliced
}
"""
    assert hbm_bytes(Module.parse(text)) == 4 * (64 + 256 + 256 + 128)
    assert launches_by_kind(Module.parse(text)) == {'Mosaic kernels': (1, 4 * (64 + 256 + 256 + 128))}
