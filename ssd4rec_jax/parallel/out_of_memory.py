"""Errors for memory that does not suffice, before or after it runs out; they name the settings to lower."""
import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.parallel.free_memory import available_bytes


@contextlib.contextmanager
def explain_out_of_memory(what: str) -> Iterator[None]:
    """Re-raises an out-of-memory error inside the block as a TrainingError, which says that it happened in `what`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or 'ut of memory' in text:
            said = text.splitlines()[0] if text else type(error).__name__
            raise _out_of_memory(what, f'the backend said: {said}') from error
        raise


def foretell_out_of_memory(what: str, arrays: Any, mesh: Mesh) -> None:
    """Raises TrainingError if these arrays do not fit into the memory of a CPU, where a failed allocation can hang.

    arrays: a pytree of shapes and dtypes, each with the sharding that it will have on the mesh, or with none. Other
    platforms report a failed allocation themselves, so nothing is checked for them.
    """
    _foretell(what, sum(_bytes_here(leaf) for leaf in jax.tree.leaves(arrays)), mesh)


def foretell_temporaries(what: str, program: jax.stages.Compiled, mesh: Mesh) -> None:
    """The same as foretell_out_of_memory, for the temporaries that a compiled program needs while it runs."""
    analysis = program.memory_analysis()
    if analysis is not None:
        _foretell(what, analysis.temp_size_in_bytes * len(mesh.local_devices), mesh)


def step_bytes(program: jax.stages.Compiled) -> int | None:
    """Bytes that a device holds while it runs a compiled program: arguments, temporaries, and results of its own."""
    found = program.memory_analysis()
    if found is None:
        return None
    return (
        found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    )


def is_room_for_copy(arrays: Any, mesh: Mesh) -> bool:
    """Whether the memory of this process's devices has room for two more copies of these arrays.

    One is the copy, the other is to spare. Where a device does not say how much it has at most needed, there is none.
    """
    needed = 2 * sum(_bytes_here(leaf) for leaf in jax.tree.leaves(arrays))
    if mesh.devices.flat[0].platform == 'cpu':
        available = available_bytes()
        return available is None or needed <= available
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    free = [s.get('bytes_limit', 0) - s.get('peak_bytes_in_use', 0) for s in stats]
    return needed <= len(free) * min(free)


def _foretell(what: str, planned: int, mesh: Mesh) -> None:
    """Raises TrainingError if this process cannot get `planned` bytes in addition to what it holds now."""
    available = available_bytes() if mesh.devices.flat[0].platform == 'cpu' else None
    if available is not None and planned > available:
        raise _out_of_memory(
            what, f'it plans to hold {planned / 2**20:,.0f} MiB, and {available / 2**20:,.0f} MiB can be had here'
        )


def _out_of_memory(what: str, reason: str) -> TrainingError:
    return TrainingError(
        f'out of memory in {what}: lower train.targets_per_step (fewer tokens a step), then model.hidden_size; {reason}'
    )


def _bytes_here(leaf: Any) -> int:
    """The number of bytes of an array that this process will hold."""
    itemsize, sharding = leaf.dtype.itemsize, getattr(leaf, 'sharding', None)
    if sharding is None:
        return math.prod(leaf.shape) * itemsize
    return len(sharding.addressable_devices) * math.prod(sharding.shard_shape(leaf.shape)) * itemsize
