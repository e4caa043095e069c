"""Compile the SSD operation for an H100 or H200 with XLA's GPU compiler, on a machine without a GPU.

    python -m pallas_kernels.compile_gpu --target=h100     # also h200

Needs the extra gpu-aot (pip install "ssd4rec-jax[gpu-aot]", Python 3.12), best in an environment of its own. For each
program it prints the kernels that a run launches, loops with their rounds, bytes by kind of operation, memory, and what
ptxas says of each Mosaic kernel. The exit code is 1 where a figure is above its limit in compile_gpu.toml, which
--write_limits lowers or raises to what was found. --only=TEXT compiles the programs whose names begin with it. For
whole train and evaluation steps run python -m experiments.compile_gpu.
"""
import argparse
import functools
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from pallas_kernels import ssd_readout, ssd_scan, tracing_for
from pallas_kernels.compiled import gpu
from pallas_kernels.ssd.workloads import WORKLOADS

Lower = Callable[[], jax.stages.Lowered]
Programs = Callable[[jax.Device], Iterator[tuple[str, Lower]]]  # Names, and what lowers the program for the device.


def ssd_programs(device: jax.Device) -> Iterator[tuple[str, Lower]]:
    """ssd_scan's value and all gradients, and ssd_readout's, with the published shapes of KuaiRand."""
    w = WORKLOADS['kuairand']
    lead, slots = (w.batch, w.length), 168

    def spec(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    def lower(f: Callable[..., jax.Array], y: jax.ShapeDtypeStruct, *arrays: jax.ShapeDtypeStruct):
        def both(cotangent, ids, *arrays):
            y, vjp = jax.vjp(lambda *a: f(ids, *a), *arrays)
            return y, vjp(cotangent)

        with tracing_for('gpu'):
            return jax.jit(both).lower(y, spec(jnp.int32, *lead), *arrays)

    def scan(implementation: str) -> Callable[..., jax.Array]:
        return lambda ids, *a: ssd_scan(*a, segment_ids=ids, implementation=implementation)

    x, dt = spec(jnp.bfloat16, *lead, w.heads, w.headdim), spec(jnp.float32, *lead, w.heads)
    A, B = spec(jnp.float32, w.heads), spec(jnp.bfloat16, *lead, w.groups, w.state)
    read, C = (spec(jnp.bfloat16, w.batch, slots, *shape) for shape in ((w.heads, w.headdim), (w.groups, w.state)))
    for implementation in ('pallas_gpu', 'pallas_gpu_fused', 'xla'):
        yield f'ssd_scan {implementation}', functools.partial(lower, scan(implementation), x, x, dt, A, B, B)
    yield 'ssd_readout', lambda: lower(
        lambda ids, x, dt, A, B, C: ssd_readout(x, dt, A, B, C, ids), read, x, dt, A, B, C
    )


def run(programs: Programs, limits: Path, about: str) -> int:
    """Compile programs(device), print what is found, and hold it to the limits in a file; returns the exit code.

    about: what --help says.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--target', choices=sorted(gpu.TARGETS), default='h100')
    parser.add_argument('--only', default='', metavar='TEXT', help='compile the programs whose names begin with it')
    parser.add_argument('--write_limits', action='store_true', help=f'write the figures to {limits.name} as the limits')
    parser.add_argument('--text', type=Path, help='a folder to write the compiled texts to')
    flags = parser.parse_args()
    gpu.ready_to_compile()
    (device,) = gpu.gpu_devices(flags.target)
    held = tomllib.loads(limits.read_text()) if limits.exists() else {}
    of_target: dict[str, dict[str, float]] = {}
    above: list[str] = []
    chosen = [(name, lower) for name, lower in programs(device) if name.startswith(flags.only)]
    if not chosen:
        parser.error(f'--only={flags.only}: no program is named so')
    for name, lower in chosen:
        program = gpu.Program.compile(name, lower)
        print(program, flush=True)
        of_target[program.name] = program.figures()
        above += program.above(held.get(flags.target, {}))
        if flags.text:
            flags.text.mkdir(parents=True, exist_ok=True)
            (flags.text / f'{program.name.replace(" ", "_")}.txt').write_text(program.text)
    if flags.write_limits:
        limits.write_text(_toml(held | {flags.target: held.get(flags.target, {}) | of_target}))
        return 0
    print('\n'.join(above) or 'every figure is within its limit')
    return 1 if above else 0


def _toml(limits: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ['# What a compiled program may have at most; --write_limits writes what was found.']
    for target, programs in sorted(limits.items()):
        for program, figures in programs.items():
            lines += ['', f'[{target}."{program}"]', *(f'{name} = {value:g}' for name, value in figures.items())]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(run(ssd_programs, Path(__file__).with_suffix('.toml'), __doc__ or ''))
