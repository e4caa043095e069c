"""Foretell that memory will not do, or turn XLA's out-of-memory errors into a sentence; both name the settings to lower."""
import contextlib
import math
import os
import resource
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from ssd4rec_jax.errors import TrainingError


@contextlib.contextmanager
def explain_out_of_memory(what: str) -> Iterator[None]:
    """Re-raises an out-of-memory error inside the block as a TrainingError, which says that it happened in `what`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or 'ut of memory' in text:
            raise _out_of_memory(what, f'the backend said: {text.splitlines()[0] if text else type(error).__name__}') from error
        raise


def foretell_out_of_memory(what: str, arrays: Any, mesh: Mesh) -> None:
    """TrainingError if the CPU's memory cannot hold these arrays; a failed allocation there can hang without a word.

    arrays: pytree of shapes and dtypes, each with the sharding it will have on the mesh or with none. Other platforms
    are not asked: they report a failed allocation themselves.
    """
    _foretell(what, sum(_bytes_here(leaf) for leaf in jax.tree.leaves(arrays)), mesh)


def foretell_temporaries(what: str, program: jax.stages.Compiled, mesh: Mesh) -> None:
    """The same of what a compiled program holds while it runs."""
    analysis = program.memory_analysis()
    if analysis is not None:
        _foretell(what, analysis.temp_size_in_bytes * len(mesh.local_devices), mesh)


def _foretell(what: str, planned: int, mesh: Mesh) -> None:
    """TrainingError if `planned` more bytes than this process holds now cannot be had on this machine."""
    available = _available_bytes() if mesh.devices.flat[0].platform == 'cpu' else None
    if available is not None and planned > available:
        raise _out_of_memory(
            what, f'it plans to hold {planned / 2**20:,.0f} MiB, and {available / 2**20:,.0f} MiB can be had here'
        )


def _out_of_memory(what: str, reason: str) -> TrainingError:
    return TrainingError(
        f'out of memory in {what}: lower train.targets_per_step (fewer tokens a step), then model.hidden_size; {reason}'
    )


def _bytes_here(leaf: Any) -> int:
    """Bytes that this process will hold of an array."""
    itemsize, sharding = leaf.dtype.itemsize, getattr(leaf, 'sharding', None)
    if sharding is None:
        return math.prod(leaf.shape) * itemsize
    return len(sharding.addressable_devices) * math.prod(sharding.shard_shape(leaf.shape)) * itemsize


def _available_bytes() -> int | None:
    """Bytes that this process may still ask for: what its address space and the machine leave; None if neither is told."""
    found = []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    try:
        if limit != resource.RLIM_INFINITY:
            with open('/proc/self/statm') as file:
                found.append(limit - int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE'))
        with open('/proc/meminfo') as file:
            fields = dict(line.split(':', 1) for line in file)
        kinds = [fields[kind] for kind in ('MemAvailable', 'SwapFree')]
        found.append(sum(int(text.split()[0]) for text in kinds) * 1024)
    except (OSError, KeyError, ValueError):  # not Linux
        pass
    return max(0, min(found)) if found else None
