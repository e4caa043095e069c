"""XLA's GPU compiler on a machine without a GPU: the devices that it compiles for, and what it says of a program.

The plugin that drives GPUs compiles for a device that only a text describes, and ptxas reports on each Mosaic kernel.
"""
import collections
import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from pallas_kernels.compiled.hbm import launches
from pallas_kernels.compiled.hlo import Instruction, Module

EXTRA = 'compiling for a GPU needs Python 3.12 and the extra gpu-aot: pip install "ssd4rec-jax[gpu-aot]"'
# A Hopper GPU as XLA describes it. The numbers of H100 and H200 differ in memory alone.
_DESCRIPTION = '''
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} device_memory_size: {memory} l2_cache_size: 52428800
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
'''
TARGETS = {
    'h100': _DESCRIPTION.format(name='NVIDIA H100 80GB HBM3', bandwidth=3352320000000, memory=84978434048),
    'h200': _DESCRIPTION.format(name='NVIDIA H200', bandwidth=4800000000000, memory=150110011392),
}
_DATA_MOVES = frozenset('parameter constant iota bitcast tuple copy transpose slice pad concatenate reshape convert '
                        'broadcast reverse dynamic-slice dynamic-update-slice select compare'.split())


def ready_to_compile() -> None:
    """Point XLA and Mosaic to the extra's packages; exits with a sentence where they are missing.

    To be called before JAX looks for devices.
    """
    where = importlib.util.find_spec('nvidia')
    roots = [Path(folder) / 'cu13' for folder in (where and where.submodule_search_locations) or ()]
    tools = [root for root in roots if (root / 'bin' / 'ptxas').is_file() and (root / 'nvvm').is_dir()]
    if not tools or importlib.util.find_spec('jax_plugins.xla_cuda13') is None:
        sys.exit(f'error: {EXTRA}')
    # Without a GPU nothing can be timed, so that XLA must not try which kernels are fastest.
    flags = f'--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={tools[0]}'
    jax.config.update('jax_platforms', 'cpu')
    os.environ.update(
        MOSAIC_GPU_CUDA_ROOT=str(tools[0]), MOSAIC_GPU_DUMP_PTXAS='1',
        XLA_FLAGS=f'{os.environ.get("XLA_FLAGS", "")} {flags}',
    )


def gpu_devices(target: str) -> list[Any]:
    """The one device of a target out of TARGETS, which need not exist."""
    return topologies.get_topology_desc('', platform='cuda', topology='1x1x1', target_config=TARGETS[target]).devices


class MosaicKernel(NamedTuple):
    """A Mosaic kernel: registers of a thread and bytes spilled, as ptxas says, and shared bytes, 0 where unknown."""

    name: str
    registers: int
    spilled: int
    shared: int

    def __str__(self) -> str:
        shared = f', {self.shared / 1024:.0f} KB shared' if self.shared else ''
        return f'{self.name} {self.registers} registers, {self.spilled} B spilled{shared}'


class Program(NamedTuple):
    """What the compiler says about one program.

    seconds: the time that lowering and compiling took. kernels: launches of a run. by_kind: (launches, bytes) of each
    kind of operation, the most bytes first. loops: the rounds of each loop, None where the text does not tell.
    arguments, temporaries: bytes of memory. mosaic: its Mosaic kernels. text: the compiled text.
    """

    name: str
    seconds: float
    kernels: int
    by_kind: dict[str, tuple[int, int]]
    loops: list[int | None]
    arguments: int
    temporaries: int
    mosaic: list[MosaicKernel]
    text: str

    @property
    def bytes(self) -> int:
        """The bytes that a run reads from and writes to memory."""
        return sum(moved for _, moved in self.by_kind.values())

    @classmethod
    def compile(cls, name: str, lower: Callable[[], jax.stages.Lowered]) -> 'Program':
        """Compile what `lower` returns for a device of gpu_devices."""
        started = time.monotonic()
        with _printed() as report:
            compiled = lower().compile()
        memory, text = compiled.memory_analysis(), compiled.as_text()
        if memory is None or text is None:
            raise RuntimeError(f'the compiler tells neither memory nor text of {name}')
        module = Module.parse(text)
        by_kind = launches_by_kind(module)
        return cls(
            name, time.monotonic() - started, sum(count for count, _ in by_kind.values()), by_kind, module.loops(),
            memory.argument_size_in_bytes, memory.temp_size_in_bytes, mosaic_kernels(report(), _shared_memory()), text,
        )

    def __str__(self) -> str:
        kinds = ', '.join(f'{kind} {count} ({moved / 1e9:.2f} GB)' for kind, (count, moved) in self.by_kind.items())
        loops = ', '.join('?' if n is None else str(n) for n in self.loops)
        lines = [
            f'{self.name}: compiled in {self.seconds:.0f} s; {self.kernels:,} kernels, {self.bytes / 1e9:.2f} GB; '
            + (f'loops of {loops} rounds' if loops else 'no loop')
            + f'; memory {self.arguments / 2**20:,.0f} MiB of arguments, '
            f'{self.temporaries / 2**20:,.0f} MiB of temporaries',
            f'    {kinds}', *(f'    {kernel}' for kernel in self.mosaic),
        ]
        return '\n'.join(lines)

    def figures(self) -> dict[str, float]:
        """The figures that a limit can hold."""
        return {
            'kernels': self.kernels, 'gigabytes': round(self.bytes / 1e9, 2), 'loops': len(self.loops),
            'registers': max((k.registers for k in self.mosaic), default=0),
            'spilled': max((k.spilled for k in self.mosaic), default=0),
        }

    def above(self, limits: dict[str, dict[str, float]]) -> list[str]:
        """A sentence for each figure that is above its limit; limits: {program: {figure: limit}}, of all programs."""
        if self.name not in limits:
            return [f'{self.name} has no limits yet: add {self.figures()}']
        held = limits[self.name]
        return [
            f'{self.name}: {name} {value:g} is above the limit of {held[name]:g}'
            for name, value in self.figures().items() if value > held[name]
        ]


def launches_by_kind(module: Module) -> dict[str, tuple[int, int]]:
    """(launches, bytes) of each kind of operation in a run of a program, the most bytes first."""
    found: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
    for launch in launches(module):
        kind = kind_of(launch.instruction, module)
        count, moved = found[kind]
        found[kind] = count + launch.rounds, moved + launch.rounds * launch.bytes
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def kind_of(instruction: Instruction, module: Module) -> str:
    """What a launch does, by the most telling operation in it."""
    inside = [instruction] if instruction.opcode != 'fusion' else list(_inside(module, module.body(instruction)))
    opcodes = {i.opcode for i in inside}
    if any('mosaic_gpu' in i.attributes for i in inside if i.opcode == 'custom-call'):
        return 'Mosaic kernels'
    if instruction.opcode == 'custom-call':
        return 'library calls'
    for kind, telling in (
        ('matmul', {'dot', 'convolution'}), ('sort', {'sort'}), ('scatter', {'scatter'}),
        ('reduction', {'reduce', 'reduce-window'}), ('gather', {'gather'}),
    ):
        if opcodes & telling:
            return kind
    return 'copy' if opcodes <= _DATA_MOVES else 'elementwise'


def _inside(module: Module, computation: str) -> Iterator[Instruction]:
    for instruction in module.computations[computation]:
        yield instruction
        if instruction.opcode == 'fusion':
            yield from _inside(module, module.body(instruction))


def mosaic_kernels(report: str, shared: dict[str, int]) -> list[MosaicKernel]:
    """The kernels of a ptxas report; of several of one name, the largest figures.

    shared: the bytes of shared memory of each kernel by its name.
    """
    found: dict[str, MosaicKernel] = {}
    for entry in report.split("Compiling entry function '")[1:]:
        name = entry.split('_mosaic_gpu', 1)[0]
        registers = re.search(r'Used (\d+) registers', entry)
        spilled = re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', entry)
        if registers and spilled:
            before = found.get(name, MosaicKernel(name, 0, 0, 0))
            found[name] = MosaicKernel(
                name, max(before.registers, int(registers[1])), max(before.spilled, *map(int, spilled.groups())),
                shared.get(name, 0),
            )
    return sorted(found.values())


def _shared_memory() -> dict[str, int]:
    """The largest dynamic shared memory of the Mosaic kernels lowered so far, in bytes, by name.

    It is the last operand of a kernel's launch. JAX keeps the modules under private names, of the version that the
    extra pins.
    """
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from jax.experimental.mosaic.gpu import core

    found: dict[str, int] = {}
    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    with context:
        for module in core.KNOWN_KERNELS.values():
            try:
                text = str(ir.Module.parse(module))
            except ir.MLIRError:  # The parser does not always know what Mosaic itself wrote.
                continue
            name = re.search(r'sym_name = "(\w+)_mosaic_gpu"', text)
            launched = re.search(r'gpu\.launch"\([^)]*(%\d+)\)', text)
            size = launched and re.search(rf'{launched[1]} = "[\w.]*constant"\(\) <?\{{value = (\d+)', text)
            if name and size:
                found[name[1]] = max(found.get(name[1], 0), int(size[1]))
    return found


@contextlib.contextmanager
def _printed() -> Iterator[Callable[[], str]]:
    """What this process, C code included, prints meanwhile; given is a function that returns it afterwards."""
    kept: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = {fd: os.dup(fd) for fd in (1, 2)}
        sys.stdout.flush()
        try:
            for fd in saved:
                os.dup2(file.fileno(), fd)
            yield lambda: kept[0]
        finally:
            for fd, before in saved.items():
                os.dup2(before, fd)
                os.close(before)
            file.seek(0)
            kept.append(file.read().decode(errors='replace'))
            if sys.exc_info()[0] is not None:
                sys.stderr.write(kept[0])
