"""What compile_gpu reads out of a compiled program and ptxas' report, and how it holds figures to limits."""
import tomllib
from pathlib import Path

import pytest

from pallas_kernels import compile_gpu
from pallas_kernels.compiled import gpu
from pallas_kernels.compiled.hlo import Module

TEXT = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_dot (a: bf16[8,4], b: bf16[4,2]) -> f32[8,2] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,2]{1,0} parameter(1)
  ROOT %dot = f32[8,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%gemm (c: bf16[8,4], d: bf16[4,2]) -> f32[8,2] {
  %c = bf16[8,4]{1,0} parameter(0)
  %d = bf16[4,2]{1,0} parameter(1)
  ROOT %fused = f32[8,2]{1,0} fusion(%c, %d), kind=kCustom, calls=%inner_dot
}

%padded (e: f32[8,2]) -> f32[10,2] {
  %e = f32[8,2]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %pad = f32[10,2]{1,0} pad(%e, %zero), padding=0_2x0_0
}

%summed (f: f32[10,2]) -> f32[2] {
  %f = f32[10,2]{1,0} parameter(0)
  %zero.1 = f32[] constant(0)
  ROOT %reduce = f32[2]{0} reduce(%f, %zero.1), dimensions={0}, to_apply=%add
}

%body (state: (s32[], f32[2])) -> (s32[], f32[2]) {
  %state = (s32[], f32[2]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %v = f32[2]{0} get-tuple-element(%state), index=1
  %w = f32[2]{0} negate(%v)
  ROOT %next = (s32[], f32[2]{0}) tuple(%i, %w)
}

%test (state.1: (s32[], f32[2])) -> pred[] {
  %state.1 = (s32[], f32[2]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (p: bf16[8,4], q: bf16[4,2]) -> (s32[], f32[2]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[4,2]{1,0} parameter(1)
  %scan = bf16[8,4]{1,0} custom-call(%p), custom_call_target="mosaic_gpu_v2", api_version=API_VERSION_TYPED_FFI
  %product = f32[8,2]{1,0} fusion(%scan, %q), kind=kCustom, calls=%gemm
  %more = f32[10,2]{1,0} fusion(%product), kind=kLoop, calls=%padded
  %total = f32[2]{0} fusion(%more), kind=kInput, calls=%summed
  %zero.2 = s32[] constant(0)
  %init = (s32[], f32[2]{0}) tuple(%zero.2, %total)
  ROOT %loop = (s32[], f32[2]{0}) while(%init), condition=%test, body=%body, backend_config={"known_trip_count":{"n":3}}
}
"""
REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'chunk_states_mosaic_gpu_kernel' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 58 registers, used 2 barriers, 1 bytes smem
some other line
ptxas info    : Compiling entry function 'chunk_gradients_mosaic_gpu_kernel' for 'sm_90a'
    8 bytes stack frame, 80 bytes spill stores, 72 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 1 bytes smem
ptxas info    : Compiling entry function 'chunk_states_mosaic_gpu_kernel' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 60 registers, used 2 barriers, 1 bytes smem
"""


def program(**changes):
    made = gpu.Program('step', 1.0, 7, gpu.launches_by_kind(Module.parse(TEXT)), [3], 10 * 2**20, 20 * 2**20, [], TEXT)
    return made._replace(**changes)


def test_launches_are_counted_by_kind_with_the_rounds_of_loops():
    """By hand: 64 + 64 B for the kernel, 64 + 16 + 64 for the product, 64 + 80 to pad, 80 + 8 to sum, 3 x (8 + 8)."""
    assert gpu.launches_by_kind(Module.parse(TEXT)) == {
        'matmul': (1, 144), 'copy': (1, 144), 'Mosaic kernels': (1, 128), 'reduction': (1, 88), 'elementwise': (3, 48),
    }


def test_a_program_is_described_in_words():
    said = str(program(mosaic=gpu.mosaic_kernels(REPORT, {'chunk_states': 51200})))
    assert said.splitlines()[0] == (
        'step: compiled in 1 s; 7 kernels, 0.00 GB; loops of 3 rounds; '
        'memory 10 MiB of arguments, 20 MiB of temporaries'
    )
    assert '    chunk_states 60 registers, 0 B spilled, 50 KB shared' in said


def test_of_several_kernels_of_one_name_the_largest_figures_are_told():
    assert gpu.mosaic_kernels(REPORT, {'chunk_states': 51200}) == [
        gpu.MosaicKernel('chunk_gradients', 255, 80, 0), gpu.MosaicKernel('chunk_states', 60, 0, 51200),
    ]
    assert gpu.mosaic_kernels('no kernel here', {}) == []


def test_figures_above_their_limits_are_named():
    limits = {'step': {'kernels': 6, 'gigabytes': 1, 'loops': 1, 'registers': 0, 'spilled': 0}}
    assert program().above(limits) == ['step: kernels 7 is above the limit of 6']
    assert program(kernels=6).above(limits) == []
    assert program(name='new').above(limits) == [
        "new has no limits yet: add {'kernels': 7, 'gigabytes': 0.0, 'loops': 1, 'registers': 0, 'spilled': 0}"
    ]


@pytest.fixture
def compiler(monkeypatch):
    """Instead of XLA's: programs of some names, each of which compiles to `program`."""
    monkeypatch.setattr(gpu, 'ready_to_compile', lambda: None)
    monkeypatch.setattr(gpu, 'gpu_devices', lambda target: [target])
    monkeypatch.setattr(gpu.Program, 'compile', lambda name, lower: program(name=name))
    return lambda *names: lambda device: iter([(name, None) for name in names])


@pytest.mark.parametrize('limit, code, said', [
    (7, 0, 'every figure is within its limit'), (6, 1, 'step: kernels 7 is above the limit of 6'),
])
def test_the_exit_code_tells_whether_the_limits_hold(monkeypatch, compiler, capsys, tmp_path, limit, code, said):
    path = tmp_path / 'limits.toml'
    path.write_text(f'[h200.step]\nkernels = {limit}\ngigabytes = 1\nloops = 1\nregisters = 0\nspilled = 0\n')
    monkeypatch.setattr('sys.argv', ['compile_gpu', '--target=h200'])
    assert compile_gpu.run(compiler('step'), path, '') == code
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_written_limits_hold_what_was_found_and_keep_the_others(monkeypatch, compiler, tmp_path):
    path, figures = tmp_path / 'limits.toml', program().figures()
    for target, only in (('h100', ''), ('h200', ''), ('h200', 'eval')):
        monkeypatch.setattr('sys.argv', ['compile_gpu', f'--target={target}', '--write_limits', f'--only={only}'])
        assert compile_gpu.run(compiler(*(['train', 'evaluate'] if only else ['train'])), path, '') == 0
    held = tomllib.loads(path.read_text())
    assert held == {'h100': {'train': figures}, 'h200': {'train': figures, 'evaluate': figures}}


def test_only_what_is_asked_for_is_compiled(monkeypatch, compiler, capsys, tmp_path):
    monkeypatch.setattr('sys.argv', ['compile_gpu', '--only=train'])
    assert compile_gpu.run(compiler('train a', 'evaluate', 'train b'), tmp_path / 'none.toml', '') == 1
    said = capsys.readouterr().out
    assert 'train a: compiled' in said and 'train b: compiled' in said and 'evaluate' not in said
    with pytest.raises(SystemExit):
        compile_gpu.run(compiler('evaluate'), tmp_path / 'none.toml', '')
    assert '--only=train: no program is named so' in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='error: compiling for a GPU needs Python 3.12 and the extra gpu-aot: pip'):
        gpu.ready_to_compile()


@pytest.mark.parametrize('command', ['pallas_kernels/compile_gpu.py', 'experiments/compile_gpu.py'])
def test_the_committed_limits_are_of_known_targets(command):
    held = tomllib.loads((Path(__file__).parents[2] / command).with_suffix('.toml').read_text())
    assert 'h100' in held and set(held) <= set(gpu.TARGETS)
    assert all(set(figures) == set(program().figures()) for of in held.values() for figures in of.values())
