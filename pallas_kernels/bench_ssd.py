"""Time ssd_scan and what users could take instead, and compare with the ceilings of the chip, measured in the same run.

    python -m pallas_kernels.bench_ssd [--implementation=pallas_gpu,xla] [--workload=kuairand,mamba16k] [--json=FILE]

xla and the peers are measured in addition to the implementations asked for. Implementations that cannot serve this
device, and peers that are not installed, are listed with the reason.
"""
import argparse
import datetime
import json
import platform
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels import ssd_scan
from pallas_kernels.bench.ceilings import Ceilings, Work
from pallas_kernels.bench.chip import chip_name
from pallas_kernels.bench.clock import Call as Timed
from pallas_kernels.bench.clock import compiled, device_seconds, has_device_timer
from pallas_kernels.bench.peers import PEERS, Unavailable
from pallas_kernels.ssd.api import IMPLEMENTATIONS, Call, choose_implementation
from pallas_kernels.ssd.workloads import WORKLOADS, Workload

PASSES = ('forward', 'forward+backward')
TIMED = tuple(name for name in IMPLEMENTATIONS if name != 'reference')
# {name of an implementation or peer: {pass: {'seconds': ..., ...}}, or {'unavailable': reason}}.
Figures = dict[str, dict[str, Any]]


def ours(w: Workload, dtype: DTypeLike, implementation: str) -> tuple[dict[str, Timed], dict[str, float]]:
    """({pass: call}, {pass: seconds to compile}) of ssd_scan.

    Raises ValueError with the reason if the implementation cannot serve this device and workload.
    """
    x_shape, B_shape = (w.batch, w.length, w.heads, w.headdim), (w.batch, w.length, w.groups, w.state)
    choose_implementation(Call(x_shape, jnp.dtype(dtype), B_shape), implementation)
    numpy_arrays, ids = w.arrays()
    arrays = {k: jnp.asarray(a, dtype if k in 'xBC' else jnp.float32) for k, a in numpy_arrays.items()}
    cotangent = jax.random.normal(jax.random.key(0), x_shape, dtype)

    def forward(arrays, ids, cotangent):
        return ssd_scan(**arrays, segment_ids=ids, implementation=implementation)

    def both(arrays, ids, cotangent):
        y, vjp = jax.vjp(lambda a: forward(a, ids, cotangent), arrays)
        return y, vjp(cotangent)

    args = arrays, jnp.asarray(ids), cotangent
    return compiled({name: (f, args) for name, f in zip(PASSES, (forward, both), strict=True)})


def measure(
    w: Workload, dtype: DTypeLike, implementations: Collection[str], ceilings: Ceilings, repeats: int
) -> Figures:
    """Measure one workload with each implementation and each peer.

    Args:
      w: the shapes.
      dtype: of x, B and C.
      implementations: names out of IMPLEMENTATIONS.
      ceilings: what the chip can do, to compare the implementations with.
      repeats: timed calls of each, of which the median counts.

    Returns for each name {pass: figures}, or {'unavailable': reason} where it cannot be measured.
    """
    figures: Figures = {}
    calls: dict[tuple[str, str], Timed] = {}
    for name in (*implementations, *PEERS):
        try:
            each, compiling = PEERS[name](w, dtype) if name in PEERS else ours(w, dtype, name)
        except (Unavailable, ValueError) as error:
            figures[name] = {'unavailable': str(error)}
            continue
        figures[name] = {kind: {'compile_seconds': compiling[kind]} for kind in PASSES}
        calls |= {(name, kind): call for kind, call in each.items()}
    for (name, kind), measured in device_seconds(calls, repeats).items():
        figures[name][kind]['seconds'] = measured
        if name in implementations:
            work = Work.of(w, jnp.dtype(dtype).itemsize, backward=kind != 'forward')
            binds, least = ceilings.binding(work)
            figures[name][kind] |= {
                'tflops': work.flops / measured / 1e12, 'gigabytes_per_second': work.bytes / measured / 1e9,
                'binds': binds, 'share_of_ceiling': least / measured,
            }
    return figures


def _print(name: str, w: Workload, figures: Figures) -> None:
    print(f'\n{name}: {w.batch} x {w.length:,} tokens, {w.heads} heads x {w.headdim}, state {w.state}')
    for peer, passes in figures.items():
        if 'unavailable' in passes:
            print(f'  {peer:16} {passes["unavailable"]}')
            continue
        for kind in PASSES:
            f = passes[kind]
            line = f'  {peer:16} {kind:17} {f["seconds"] * 1e3:10.3f} ms'
            if 'tflops' in f:
                line += (f'  {f["tflops"]:7.2f} TFLOP/s  {f["gigabytes_per_second"]:8.1f} GB/s'
                         f'  {f["share_of_ceiling"]:6.1%} of the {f["binds"]} ceiling')
            print(f'{line}  (compiled in {f["compile_seconds"]:.1f} s)', flush=True)


def _names(text: str, known: Collection[str], flag: str) -> list[str]:
    names = text.split(',')
    for name in names:
        if name not in known:
            raise SystemExit(f'error: --{flag}={name} is unknown: there are {", ".join(known)}')
    return names


def main() -> int:
    """Run the command. Returns its exit status; raises SystemExit with a message for arguments that do not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--implementation', default=','.join(TIMED), help=f'of {", ".join(TIMED)}, comma-separated')
    parser.add_argument(
        '--workload', default='kuairand,mamba1k,mamba2k,mamba16k,mamba64k',
        help=f'of {", ".join(WORKLOADS)}, comma-separated',
    )
    parser.add_argument('--dtype', default='bfloat16', choices=['bfloat16', 'float32'])
    parser.add_argument('--repeats', type=int, default=10, help='timed calls, of which the median counts')
    parser.add_argument('--json', help='file to write the figures to')
    args = parser.parse_args()
    asked = _names(args.implementation, TIMED, 'implementation')
    implementations = asked if 'xla' in asked else [*asked, 'xla']
    workloads = _names(args.workload, WORKLOADS, 'workload')
    if args.repeats < 1:
        raise SystemExit(f'error: --repeats={args.repeats} must be at least 1')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise SystemExit(f'error: --json={args.json} cannot be written: there is no such folder')
    dtype, chip = jnp.dtype(args.dtype), chip_name()
    print(f'{chip}, JAX {jax.__version__}, {dtype}, {"device" if has_device_timer() else "wall"} time')
    ceilings = Ceilings.measure(dtype, args.repeats)
    print(f'ceilings: {ceilings.bytes / 1e9:,.0f} GB/s, {ceilings.flops / 1e12:,.2f} TFLOP/s, '
          f'{ceilings.exps / 1e9:,.1f} G exp/s')
    results = {}
    for name in workloads:
        results[name] = measure(WORKLOADS[name], dtype, implementations, ceilings, args.repeats)
        _print(name, WORKLOADS[name], results[name])
    if args.json:
        path = Path(args.json)
        partial = path.with_name(f'.{path.name}.partial')
        partial.write_text(json.dumps({
            'device': chip, 'jax': jax.__version__, 'python': platform.python_version(),
            'date': datetime.date.today().isoformat(), 'dtype': args.dtype, 'device_timer': has_device_timer(),
            'ceilings': ceilings._asdict(), 'workloads': results,
        }, indent=1) + '\n')
        partial.replace(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
