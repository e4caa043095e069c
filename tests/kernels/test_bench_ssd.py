"""What bench_ssd counts and says; how long anything takes is not tested."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.mosaic.gpu import profiler

from pallas_kernels import bench_ssd
from pallas_kernels.bench import clock, peers
from pallas_kernels.bench.ceilings import Ceilings, Work
from pallas_kernels.bench.chip import chip_name
from pallas_kernels.bench.peers import PEERS
from pallas_kernels.ssd.workloads import Workload

SMALL = Workload(1, 64, 2, 16, 1, 16, 8)


def test_work_counted_by_hand():
    """64 tokens of 2 heads x 16, state 16, bfloat16: x is 4,096 bytes, B 2,048, dt 512."""
    forward, both = (Work.of(SMALL, 2, backward) for backward in (False, True))
    assert forward == (2 * 4096 + 2 * 2048 + 512, 2 * 64 * (32 * (16 + 32) + 2 * 32 * 16), 64 * 2 * 34)
    assert both == (forward.bytes + 3 * 4096 + 4 * 2048 + 2 * 512, 4 * forward.flops, 2 * forward.exps)


@pytest.mark.parametrize('ceilings,binds,seconds', [
    (Ceilings(bytes=10, flops=1e9, exps=1e9), 'bandwidth', 10.0),
    (Ceilings(bytes=1e9, flops=10, exps=1e9), 'matmul', 20.0),
    (Ceilings(bytes=1e9, flops=1e9, exps=10), 'exp', 30.0),
])
def test_the_ceiling_that_binds_is_the_slowest(ceilings, binds, seconds):
    assert ceilings.binding(Work(100, 200, 300)) == (binds, seconds)


def test_ceilings_are_positive_rates():
    assert min(Ceilings.measure(jnp.float32, 1)) > 0


def test_figures_of_a_workload_and_reasons_where_there_are_none():
    ceilings = Ceilings(bytes=1e9, flops=1e9, exps=1e9)
    figures = bench_ssd.measure(SMALL, jnp.float32, ['xla', 'pallas_tpu', 'pallas_gpu'], ceilings, 1)
    assert set(figures) == {'xla', 'pallas_tpu', 'pallas_gpu', *PEERS}
    for kind, work in zip(bench_ssd.PASSES, (Work.of(SMALL, 4, False), Work.of(SMALL, 4, True)), strict=True):
        f = figures['xla'][kind]
        assert f['tflops'] * f['seconds'] * 1e12 == pytest.approx(work.flops)
        assert f['share_of_ceiling'] * f['seconds'] == pytest.approx(max(work) / 1e9)
        assert f['compile_seconds'] > 0
    assert min(figures['jax attention']['forward'].values()) > 0
    assert figures['pallas_tpu'] == {'unavailable': 'pallas_tpu runs on TPUs and this program is for cpu'}
    assert figures['pallas_gpu'] == {'unavailable': 'pallas_gpu runs on NVIDIA GPUs and this program is for cpu'}
    assert figures['cuDNN attention'] == {'unavailable': 'cuDNN attention needs an NVIDIA GPU'}
    assert 'Triton' in figures['Mamba-2 Triton']['unavailable']
    assert figures['mamba2-jax'] == {'unavailable': 'mamba2-jax is not installed'}


@pytest.mark.parametrize('text,cores,name', [
    ('processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Other\n', {0, 2, 5}, 'Some CPU @ 2 GHz, 3 cores'),
    ('processor\t: 0\n', {0, 2, 5}, 'cpu, 3 cores'),
    (None, {1}, 'cpu, 1 core'),
])
def test_figures_name_the_processor(text, cores, name, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: cores)
    if text:
        (tmp_path / 'cpuinfo').write_text(text)
    assert chip_name(tmp_path / 'cpuinfo') == name


@pytest.fixture
def kernel_times(monkeypatch):
    """A device timer that reports these milliseconds, one a kernel, for each call between its start and its end."""
    times = []
    extension = SimpleNamespace(_cupti_init=lambda: None, _cupti_get_timings=lambda finalize: times.pop(0))
    monkeypatch.setattr(profiler, 'mosaic_gpu_lib', SimpleNamespace(_mosaic_gpu_ext=extension))
    monkeypatch.setattr(clock, 'has_device_timer', lambda: True)
    return times


def test_the_device_timer_sees_every_call_run(kernel_times):
    """Were a call traced instead, it would run once and its kernels before the timer starts."""
    ran = []
    calls, _ = clock.compiled({'jax': (lambda a: a + 1, (jnp.ones(3),))})
    kernel_times.extend([[('k', t), ('l', 1.0)] for t in (90.0, 1.0, 3.0, 2.0)])
    seconds = clock.device_seconds({'a': lambda: ran.append(calls['jax']())}, 3)
    assert seconds == {'a': pytest.approx(3e-3)}  # the first of four is not counted
    assert len(ran) == 8 and not any(isinstance(y, jax.core.Tracer) for y in ran)  # each once before, untimed


def test_a_call_without_kernels_is_named(kernel_times):
    kernel_times.append([])
    with pytest.raises(RuntimeError, match='nothing ran no kernel on the device'):
        clock.device_seconds({'nothing': lambda: None}, 1)


@pytest.fixture
def mamba_package(tmp_path, monkeypatch):
    """(write mamba_ssm/ops/triton/ssd_combined.py): a package whose __init__ asks for what is not installed."""
    for package in ('torch', 'triton', 'mamba_ssm/ops/triton'):
        (tmp_path / package).mkdir(parents=True)
    for package in ('torch', 'triton', 'mamba_ssm/ops', 'mamba_ssm/ops/triton'):
        (tmp_path / package / '__init__.py').write_text('')
    (tmp_path / 'mamba_ssm/__init__.py').write_text('import selective_scan_cuda')
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition('.')[0] in ('torch', 'triton', 'mamba_ssm')]:
        monkeypatch.delitem(sys.modules, name)
    yield (tmp_path / 'mamba_ssm/ops/triton/ssd_combined.py').write_text
    for name in [name for name in sys.modules if name.partition('.')[0] in ('torch', 'triton', 'mamba_ssm')]:
        del sys.modules[name]


def test_mamba_s_triton_kernels_are_found_without_its_compiled_extensions(mamba_package):
    mamba_package('def mamba_chunk_scan_combined(): return 7')
    assert peers.mamba2_function()() == 7


def test_what_mamba_s_triton_kernels_miss_is_said(mamba_package):
    mamba_package('import einops_that_is_not_installed')
    with pytest.raises(peers.Unavailable, match="cannot be imported: No module named 'einops_that_is_not_installed'"):
        peers.mamba2_function()


def test_xla_runs_beside_what_is_asked_for(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sys, 'argv', ['bench_ssd', '--implementation=pallas_gpu', '--workload=mamba2k', '--repeats=1'])
    monkeypatch.setattr(Ceilings, 'measure', lambda dtype, repeats: Ceilings(1.0, 1.0, 1.0))
    monkeypatch.setattr(bench_ssd, 'measure', lambda w, dtype, names, *rest: asked.extend(names) or {})
    assert bench_ssd.main() == 0
    assert asked == ['pallas_gpu', 'xla']


def bench(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'pallas_kernels.bench_ssd', *args], cwd=Path(__file__).parents[2], capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('flag,said', [
    ('--workload=kuairant', 'error: --workload=kuairant is unknown: there are kuairand, mamba1k, mamba2k'),
    ('--implementation=cuda', 'error: --implementation=cuda is unknown: there are pallas_tpu, pallas_gpu, xla'),
    ('--repeats=0', 'error: --repeats=0 must be at least 1'),
    ('--json=gone/out.json', 'error: --json=gone/out.json cannot be written: there is no such folder'),
])
def test_bad_flags_are_named(flag, said):
    done = bench(flag)
    assert done.returncode == 1 and done.stdout == '' and said in done.stderr


@pytest.mark.slow
def test_the_command_writes_what_it_measured(tmp_path):
    done = bench(
        '--workload=mamba2k', '--implementation=xla', '--dtype=float32', '--repeats=1', f'--json={tmp_path}/out.json'
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / 'out.json').read_text())
    assert written['workloads']['mamba2k']['xla']['forward+backward']['seconds'] > 0
    assert f"{written['workloads']['mamba2k']['xla']['forward']['seconds'] * 1e3:10.3f} ms" in done.stdout
