"""Print the memory that XLA plans for ssd_scan's value and gradient, to show that it is linear in the length.

    python -m pallas_kernels.memory

For 4k, 16k and 64k tokens the command prints the temporaries that XLA allocates in addition to inputs and outputs, as a
total and for each token.
"""
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.ssd.api import ssd_scan
from pallas_kernels.ssd.workloads import WORKLOADS, Workload

LENGTHS = ('long4k', 'long16k', 'long64k')


def temporary_bytes(workload: Workload, implementation: str = 'xla') -> int:
    """The bytes of temporaries in the compiled program for ssd_scan's value and the gradient of every input.

    Raises ValueError if the implementation cannot serve this platform and shape.
    """
    arrays, ids = workload.arrays()
    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (arrays, ids))

    def loss(arrays: dict[str, Any], ids: jax.Array) -> jax.Array:
        return jnp.sum(ssd_scan(**arrays, segment_ids=ids, implementation=implementation) ** 2)

    memory = jax.jit(jax.value_and_grad(loss)).lower(*specs).compile().memory_analysis()
    assert memory is not None  # XLA's CPU, GPU and TPU backends all plan memory
    return memory.temp_size_in_bytes


def main() -> None:
    """Print one line for each length."""
    for name in LENGTHS:
        workload = WORKLOADS[name]
        size = temporary_bytes(workload)
        each = size / workload.length
        print(f'{workload.length:6d} tokens: {size / 2**20:8.1f} MiB of temporaries, {each:8.0f} bytes a token')


if __name__ == '__main__':
    main()
