"""Compile the TPU kernels for a real TPU topology on a machine without a TPU.

    python -m pallas_kernels.compile_tpu --topology=v5e:2x2     # also v6e:2x2, v5p:2x2x1

Needs libtpu (pip install "ssd4rec-jax[tpu]"). For each program it prints the compile seconds, the Pallas kernels that
the compiled text holds, the VMEM that each of them uses and that our own check planned for, the HBM of inputs and
outputs and of temporaries, and each kernel's instruction bundles with the units that they fill most. The exit code is 1
if a kernel takes more bundles than MOST_BUNDLES allows.
"""
import os

# Before libtpu loads: there is no TPU to ask, and another process may hold libtpu's lock.
os.environ.update(
    JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v5litepod-4', TPU_MIN_LOG_LEVEL='3', TPU_STDERR_LOG_LEVEL='3',
)

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402
from jax.typing import DTypeLike  # noqa: E402

from pallas_kernels import ssd_scan, tracing_for  # noqa: E402
from pallas_kernels.bench.bundles import Schedule, take_schedules, write_schedules_to  # noqa: E402
from pallas_kernels.ssd.tpu.scan import together  # noqa: E402
from pallas_kernels.ssd.tpu.tiling import Tiling  # noqa: E402
from pallas_kernels.ssd.workloads import WORKLOADS, Workload  # noqa: E402

# {(chip, workload, dtype): {kernel: bundles for each chunk}}: what libtpu 0.0.50.1 gives; 0.0.42.1 gives 673 and 1,920.
# Lower them with each gain, and raise one only with a reason.
MOST_BUNDLES = {('TPU v5 lite', 'kuairand', 'bfloat16'): {'ssd_forward': 687, 'ssd_backward': 1_937}}


class Program(NamedTuple):
    """What the compiler says about one program; sizes are bytes.

    seconds: the time that lowering and compiling took. kernels: the name of each Pallas call and the VMEM that it uses.
    hbm_in_out, hbm_temporaries: inputs and outputs, and what else lies in HBM while it runs. text: the compiled text.
    """

    name: str
    seconds: float
    kernels: list[tuple[str, int]]
    hbm_in_out: int
    hbm_temporaries: int
    text: str

    @classmethod
    def compile(cls, name: str, lower: Callable[[], jax.stages.Lowered]) -> 'Program':
        """Compile what `lower` returns; the seconds are those of lowering and compiling."""
        started = time.monotonic()
        compiled = lower().compile()
        memory, text = compiled.memory_analysis(), compiled.as_text()
        if memory is None or text is None:
            raise RuntimeError(f'the compiler tells neither memory nor text of {name}')
        return cls(
            name, time.monotonic() - started, _kernels(text),
            memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
            memory.temp_size_in_bytes, text,
        )

    def __str__(self) -> str:
        calls = ', '.join(f'{name} {vmem / 2**20:.1f} MiB of VMEM' for name, vmem in self.kernels) or 'no Pallas call'
        share = self.hbm_temporaries / self.hbm_in_out
        return (
            f'{self.name}: compiled in {self.seconds:.1f} s; {calls}; HBM {self.hbm_in_out / 2**20:,.1f} MiB in and '
            f'out, {self.hbm_temporaries / 2**20:,.1f} MiB of temporaries ({share:.2f} x)'
        )


def _kernels(text: str) -> list[tuple[str, int]]:
    found = []
    for line in text.splitlines():
        if 'custom_call_target="tpu_custom_call"' in line:
            name, *_ = [
                a or b for a, b in re.findall(r'kernel_name[^A-Za-z]+(\w+)|(ssd_\w+?)[.\d]* =', line)
            ]
            (sizes,) = re.findall(r'"used_scoped_memory_configs":\[(.*?)\]', line)
            found.append((name, sum(map(int, re.findall(r'"size":"(\d+)"', sizes)))))
    return found


def topology_devices(topology: str) -> list:
    """The devices of a TPU topology such as 'v5e:2x2', which need not exist."""
    return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices


def compile_scan(
    device: jax.Device, workload: Workload, dtype: DTypeLike, *, reverse: bool = False, chunk_size: int | None = None
) -> Program:
    """ssd_scan's value and all gradients on one device. Heads come and go beside one another, as in the model."""
    w = workload
    spec = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))  # noqa: E731
    lead = w.batch, w.length
    x, shared = spec(dtype, *lead, w.heads * w.headdim), spec(dtype, *lead, w.groups * w.state)
    dt, A, ids = spec(jnp.float32, *lead, w.heads), spec(jnp.float32, w.heads), spec(jnp.int32, *lead)

    def run(x, dt, A, B, C, ids, cotangent):
        def scan(x, dt, A, B, C):
            y = ssd_scan(
                x.reshape(*lead, w.heads, w.headdim), dt, A, *(a.reshape(*lead, w.groups, w.state) for a in (B, C)),
                segment_ids=ids, reverse=reverse, chunk_size=chunk_size, implementation='pallas_tpu',
            )
            return y.reshape(x.shape)

        y, vjp = jax.vjp(scan, x, dt, A, B, C)
        return y, vjp(cotangent)

    name = (
        f'ssd_scan {w.batch} x {w.length:,} tokens, {w.heads} heads x {w.headdim}, state {w.state}, '
        f'{jnp.dtype(dtype).name}'
    )
    with tracing_for('tpu'):
        return Program.compile(name, lambda: jax.jit(run).lower(x, dt, A, shared, shared, ids, x))


def topology_of_flags(description: str) -> list:
    """The devices of --topology; exits with a sentence where libtpu is missing or does not know it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topology', default='v5e:2x2', help='v5e:2x2, v6e:2x2, v5p:2x2x1')
    topology = parser.parse_args().topology
    if importlib.util.find_spec('libtpu') is None:
        sys.exit('error: compiling for a TPU needs libtpu: pip install "ssd4rec-jax[tpu]"')
    try:
        devices = topology_devices(topology)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        sys.exit(f'error: --topology={topology} is not one that libtpu knows, such as v5e:2x2: {error}')
    print(f'{topology}: {len(devices)} x {devices[0].device_kind}, JAX {jax.__version__}')
    return devices


def bundles_per_chunk(schedule: Schedule, chunks: int) -> float:
    """The bundles that a kernel's inner loops take for each chunk of a block of `chunks`.

    The last loop walks over all chunks. The backward kernel's first one makes the states of all chunks but one.
    """
    counts = [chunks - 1, chunks][-len(schedule.loops):]
    return sum(loop * count / together(count) for loop, count in zip(schedule.loops, counts, strict=True)) / chunks


def too_many(chip: str, workload: str, dtype: DTypeLike, bundles: dict[str, float]) -> list[str]:
    """A sentence for each kernel that takes more bundles for a chunk than MOST_BUNDLES allows."""
    most = MOST_BUNDLES.get((chip, workload, jnp.dtype(dtype).name), {})
    return [
        f'{kernel} takes {bundles[kernel]:,.0f} bundles a chunk for {workload} on {chip}, and {allowed:,} are allowed'
        for kernel, allowed in most.items() if bundles[kernel] > allowed
    ]


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_schedules_to(folder)
        devices = topology_of_flags(__doc__)
        over: list[str] = []
        for workload in ('kuairand', 'long64k', 'mamba64k'):
            for dtype in (jnp.bfloat16, jnp.float32):
                w = WORKLOADS[workload]
                shape = (w.batch, w.length, w.heads, w.headdim), dtype, (w.batch, w.length, w.groups, w.state)
                tiling = Tiling.of(*shape, None)
                program, schedules = compile_scan(devices[0], w, dtype), take_schedules(folder)
                bundles = {kernel: bundles_per_chunk(schedule, tiling.chunks) for kernel, schedule in schedules.items()}
                said = ', '.join(
                    f'{kernel} {schedule}, {bundles[kernel]:,.0f} for each chunk of {tiling.chunk} tokens'
                    for kernel, schedule in schedules.items()
                )
                print(f'{program}; planned for {tiling.vmem_bytes / 2**20:.1f} MiB of VMEM; {said}', flush=True)
                over += too_many(devices[0].device_kind, workload, dtype, bundles)
    for sentence in over:
        print(f'error: {sentence}', file=sys.stderr)
    return 1 if over else 0


if __name__ == '__main__':
    sys.exit(main())
