"""Memory of ssd_scan's value and gradient as XLA plans it, to show that it is linear in length.

    python -m pallas_kernels.memory

Prints for 4k, 16k and 64k tokens the temporaries that XLA allocates beside inputs and outputs, in all and a token.
"""
import jax
import jax.numpy as jnp

from pallas_kernels.ssd.api import ssd_scan
from pallas_kernels.ssd.workloads import WORKLOADS, Workload

LENGTHS = ('long4k', 'long16k', 'long64k')


def temporary_bytes(workload: Workload, implementation: str = 'xla') -> int:
    """Bytes of temporaries of the compiled value and gradient of every input."""
    arrays, ids = workload.arrays()
    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (arrays, ids))

    def loss(arrays, ids):
        return jnp.sum(ssd_scan(**arrays, segment_ids=ids, implementation=implementation) ** 2)

    return jax.jit(jax.value_and_grad(loss)).lower(*specs).compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    for name in LENGTHS:
        workload = WORKLOADS[name]
        size = temporary_bytes(workload)
        print(f'{workload.length:6d} tokens: {size / 2**20:8.1f} MiB of temporaries, {size / workload.length:8.0f} bytes a token')


if __name__ == '__main__':
    main()
