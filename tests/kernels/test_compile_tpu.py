"""The TPU kernels compiled ahead of time for real topologies, by libtpu, on this machine without a TPU."""
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments.compile_tpu import compile_train_step
from pallas_kernels import ssd_scan, tracing_for
from pallas_kernels.bench.bundles import Schedule, take_schedules
from pallas_kernels.compile_tpu import MOST_BUNDLES, bundles_per_chunk, compile_scan, too_many, topology_devices
from pallas_kernels.ssd.tpu.tiling import VMEM_BUDGET, Tiling
from pallas_kernels.ssd.workloads import WORKLOADS, Workload

TOPOLOGIES = ('v5e:2x2', 'v6e:2x2', 'v5p:2x2x1')
SHAPES = {
    'kuairand': WORKLOADS['kuairand'],
    'mamba16k': WORKLOADS['mamba16k'],
    'headdim 128, state 256, odd length': Workload(2, 8000, 4, 128, 1, 256, 100),
    'headdim 32, 4 groups': Workload(2, 8000, 32, 32, 4, 16, 100),
    'a state of no multiple of 8': Workload(1, 1000, 8, 16, 1, 37, 100),
    'groups of few heads, a short row': Workload(2, 100, 6, 16, 2, 16, 10),
}


def planned_vmem(w: Workload, dtype) -> int:
    shapes = (w.batch, w.length, w.heads, w.headdim), dtype, (w.batch, w.length, w.groups, w.state)
    return Tiling.of(*shapes, None).vmem_bytes


def assert_as_planned(program, w: Workload, dtype):
    """One kernel a pass, within the VMEM that our own check plans for, and no [length, length] buffer."""
    assert [name.rstrip('_') for name, _ in program.kernels] == ['ssd_forward', 'ssd_backward']
    assert max(vmem for _, vmem in program.kernels) <= planned_vmem(w, dtype) <= VMEM_BUDGET
    if w.length > 1000:
        assert_no_square(program, w.length)


def assert_no_square(program, length: int):
    """No array of the compiled program has two neighbouring axes of this length."""
    assert f'{length}' in program.text and not re.search(rf'[\[,]{length},{length}[\],]', program.text)


@pytest.mark.parametrize('reverse', [False, True])
def test_scan_compiles_for_v5e(reverse):
    w = WORKLOADS['kuairand']._replace(batch=1)
    program = compile_scan(topology_devices('v5e:2x2')[0], w, jnp.bfloat16, reverse=reverse)
    assert_as_planned(program, w, jnp.bfloat16)
    forward, backward = (vmem / 2**20 for _, vmem in program.kernels)
    kernels = rf'ssd_forward\w* {forward:.1f} MiB of VMEM, ssd_backward\w* {backward:.1f} MiB of VMEM; '
    assert re.search(kernels + r'HBM [\d,.]+ MiB in and out, [\d,.]+ MiB of temporaries', str(program))


@pytest.mark.slow
def test_no_relayout_copies_at_64k_tokens():
    w = WORKLOADS['long64k']
    program = compile_scan(topology_devices('v5e:2x2')[0], w, jnp.bfloat16)
    assert_as_planned(program, w, jnp.bfloat16)
    assert program.hbm_temporaries <= 1.2 * program.hbm_in_out


@pytest.mark.slow
@pytest.mark.parametrize('topology,shape,dtype', [
    *(('v5e:2x2', shape, jnp.bfloat16) for shape in SHAPES),
    *zip(['v6e:2x2', 'v5p:2x2x1', 'v5e:2x2'] * 2, SHAPES, [jnp.bfloat16, jnp.bfloat16, jnp.float32] * 2, strict=True),
])
def test_scan_compiles_for_every_topology(topology, shape, dtype):
    """Every shape on the first topology in bfloat16, and on one of the others or in float32 in turn."""
    program = compile_scan(topology_devices(topology)[0], SHAPES[shape], dtype)
    assert_as_planned(program, SHAPES[shape], dtype)


@pytest.mark.slow
@pytest.mark.parametrize('workload', ['long64k', 'mamba64k'])
@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_temporaries_at_64k_tokens_on_every_topology(topology, workload):
    program = compile_scan(topology_devices(topology)[0], WORKLOADS[workload], jnp.bfloat16)
    assert program.hbm_temporaries <= 1.2 * program.hbm_in_out


@pytest.mark.slow
@pytest.mark.parametrize('w,dtype', [
    (WORKLOADS['long64k']._replace(batch=2), jnp.float32), (WORKLOADS['mamba64k']._replace(length=2**17), jnp.bfloat16),
])
def test_temporaries_beyond_64k_tokens(w, dtype):
    program = compile_scan(topology_devices('v5e:2x2')[0], w, dtype, reverse=True)
    assert_as_planned(program, w, dtype)
    assert program.hbm_temporaries <= 1.2 * program.hbm_in_out


@pytest.mark.slow
def test_the_train_step_compiles_and_uses_the_kernels():
    """Two layers: the first layer's two directions, forward and backward; the last one reads without a scan."""
    tokens = 1152  # no width of the model
    program = compile_train_step(topology_devices('v5p:2x2x1'), tokens=tokens)
    names = sorted(name.rstrip('_') for name, _ in program.kernels)
    assert names == ['ssd_backward'] * 2 + ['ssd_forward'] * 2
    assert_no_square(program, tokens)


UTILIZATION = """== CAPACTIY:
MXU, XLU, VALU
    4     3     4
== UTILIZATION:
4 0 1
0 3 1
"""
# Two inner loops of three bundles and of two, in the grid's loop.
SCHEDULE = """
= control target key start
LB: loop body
     0   :  { %1 = smov }
   0x1 LB: > { %2 = sphi }
   0x2 LB: >> { %3 = sphi }
   0x3   : >> { %4 = vadd }
   0x4   : > { %5 = vadd }
   0xb LB: >> { %6 = sphi }
   0xc   :  {}
   0xd   : >> { %7 = vadd }
   0xe PF: > { %8 = sld }
"""


def test_a_schedule_counts_bundles_loops_and_the_slots_that_they_fill():
    schedule = Schedule.read(SCHEDULE, UTILIZATION)
    assert schedule == (2, [3, 3], {'MXU': 0.5, 'XLU': 0.5, 'VALU': 0.25})
    assert str(schedule) == '2 bundles (MXU 50%, XLU 50%, VALU 25%)'
    # 16 chunks: states of 15, three at a time, then all of them, two at a time.
    assert bundles_per_chunk(schedule, 16) == (5 * 3 + 8 * 3) / 16
    assert bundles_per_chunk(schedule._replace(loops=[3]), 16) == 8 * 3 / 16


def test_schedules_are_taken_once_and_by_kernel(tmp_path):
    end = 'hlo-static-per-bundle-utilization.txt'
    for name in ('ssd_forward.1', 'ssd_backward', 'TLP'):
        (tmp_path / f'17-{name}-70-final_{end}').write_text(UTILIZATION)
        (tmp_path / f'17-{name}-71-schedule-analysis_final_bundles.txt').write_text('other')
        (tmp_path / f'17-{name}-72-final_bundles.txt').write_text(SCHEDULE)
        (tmp_path / f'17-{name}-68-pre-delay_{end}').write_text('other')
    taken = take_schedules(tmp_path)
    assert taken == {name: Schedule.read(SCHEDULE, UTILIZATION) for name in ('ssd_forward', 'ssd_backward')}
    assert take_schedules(tmp_path) == {}


def test_more_bundles_than_allowed_are_named():
    most = MOST_BUNDLES['TPU v5 lite', 'kuairand', 'bfloat16']
    bundles = most | {'ssd_backward': most['ssd_backward'] + 1}
    (said,) = too_many('TPU v5 lite', 'kuairand', jnp.bfloat16, bundles)
    assert said.startswith(f'ssd_backward takes {bundles["ssd_backward"]:,} bundles a chunk for kuairand on TPU v5')
    assert too_many('TPU v6 lite', 'kuairand', jnp.bfloat16, bundles) == []


@pytest.mark.slow
def test_the_command_prints_bundles_and_holds_them():
    done = subprocess.run(
        [sys.executable, '-m', 'pallas_kernels.compile_tpu', '--topology=v5e:2x2'], cwd=Path(__file__).parents[2],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = r'ssd_forward [\d,]+ bundles \(.*\), [\d,]+ for each .* ssd_backward [\d,]+ bundles'
    assert len(re.findall(kernels, done.stdout)) == 6


def test_a_topology_that_libtpu_does_not_know_is_named():
    done = subprocess.run(
        [sys.executable, '-m', 'pallas_kernels.compile_tpu', '--topology=v9:2x2'], cwd=Path(__file__).parents[2],
        capture_output=True, text=True,
    )
    assert done.returncode == 1 and done.stdout == ''
    assert 'error: --topology=v9:2x2 is not one that libtpu knows, such as v5e:2x2' in done.stderr


@pytest.mark.parametrize('chunk_size,said', [
    (8192, r'pallas_tpu needs \d+\.\d MiB of VMEM for blocks of 8192 tokens, 32 heads and state 64, and plans for 15'),
    (48, 'a chunk_size that is a multiple of 32 for headdim 16, and it is 48'),
])
def test_a_tile_that_does_not_fit_is_refused_before_the_compiler_sees_it(chunk_size, said):
    x, shared = jnp.zeros((1, 64, 32, 16), jnp.bfloat16), jnp.zeros((1, 64, 1, 64), jnp.bfloat16)
    with tracing_for('tpu'), pytest.raises(ValueError, match=said):
        ssd_scan(
            x, jnp.zeros((1, 64, 32)), jnp.zeros(32), shared, shared, chunk_size=chunk_size, implementation='pallas_tpu'
        )


@pytest.mark.parametrize('x,B,said', [
    (jnp.zeros((1, 8, 4, 3)), jnp.zeros((1, 8, 1, 16)), 'a headdim of 16, 32, 64, 128 and x has 3'),
    (jnp.zeros((1, 8, 4, 16)), jnp.zeros((1, 8, 1, 12)), 'a state of 16 to 256 and B has 12'),
    (
        jnp.zeros((1, 8, 4, 16), jnp.float16), jnp.zeros((1, 8, 1, 16), jnp.float16),
        'bfloat16 or float32 and x is float16',
    ),
])
def test_what_it_cannot_serve_is_said_and_goes_to_xla_where_none_is_named(x, B, said):
    dt, A = jnp.ones(x.shape[:3]), -jnp.ones(x.shape[2])
    with tracing_for('tpu'):
        with pytest.raises(ValueError, match=said):
            ssd_scan(x, dt, A, B, B, implementation='pallas_tpu')
        assert ssd_scan(x, dt, A, B, B).shape == x.shape
