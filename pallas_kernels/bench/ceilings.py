"""The most that a chip can do in a second, measured: bytes moved, operations of matmuls, exponentials."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.bench.clock import compiled, device_seconds
from pallas_kernels.ssd.workloads import Workload

# `Work` counts the work of the blocked form with chunks of this size, which is near the least for the shapes in use.
CHUNK = 64


class Work(NamedTuple):
    """The work of one call: bytes moved, floating-point operations of matmuls, and exponentials."""

    bytes: float
    flops: float
    exps: float

    @classmethod
    def of(cls, w: Workload, itemsize: int, backward: bool) -> 'Work':
        """The least work of ssd_scan, for the forward pass, or for the forward and backward passes together.

        Bytes: each input is read once and each output is written once. The backward pass reads all inputs and the
        gradient of y, and writes four gradients. Matmuls: those of the blocked form with chunks of 64, counting half of
        each causal square. In the backward pass each product has two gradients, and the products within chunks are made
        again. Exponentials: one for each key, query and head within a chunk, and two for each token and head. The
        backward pass takes them again.

        Args:
          w: the shapes of the call.
          itemsize: bytes of an element of x, B and C.
          backward: whether to add the backward pass.
        """
        tokens = w.batch * w.length
        x = tokens * w.heads * w.headdim * itemsize
        shared = tokens * w.groups * w.state * itemsize
        dt = tokens * w.heads * 4
        square = CHUNK / 2
        flops = 2 * tokens * (square * (w.groups * w.state + w.heads * w.headdim) + 2 * w.heads * w.headdim * w.state)
        exps = tokens * w.heads * (square + 2)
        forward = cls(2 * x + 2 * shared + dt, flops, exps)
        if not backward:
            return forward
        return cls(forward.bytes + 3 * x + 4 * shared + 2 * dt, 4 * flops, 2 * exps)


class Ceilings(NamedTuple):
    """What the chip does in a second: bytes copied, operations of a matmul in one dtype, exponentials in float32."""

    bytes: float
    flops: float
    exps: float

    @classmethod
    def measure(cls, dtype: DTypeLike, repeats: int) -> 'Ceilings':
        """Measure this process's device, with sizes that fill an accelerator and take a CPU less than a second.

        Args:
          dtype: the dtype of the matmul.
          repeats: timed calls of each kind, of which the median counts.
        """
        big = jax.default_backend() != 'cpu'
        n, size, rounds = (8192, 2**28, 256) if big else (1024, 2**24, 8)
        square = jnp.ones((n, n), dtype)
        stream, block = jnp.ones(size, jnp.float32), jnp.ones(size // 16, jnp.float32)

        def exponentials(a: jax.Array) -> jax.Array:
            return lax.fori_loop(0, rounds, lambda _, a: jnp.exp(-a), a, unroll=min(rounds, 64))

        calls, _ = compiled({
            'bytes': (lambda a: a + 1, (stream,)), 'flops': (jnp.matmul, (square, square)),
            'exps': (exponentials, (block,)),
        })
        seconds = device_seconds(calls, repeats)
        return cls(8 * size / seconds['bytes'], 2 * n**3 / seconds['flops'], rounds * (size // 16) / seconds['exps'])

    def binding(self, work: Work) -> tuple[str, float]:
        """(which ceiling binds: 'bandwidth', 'matmul' or 'exp'; the seconds that this part of the work takes alone)."""
        least = {name: getattr(work, name) / getattr(self, name) for name in Work._fields}
        name = max(least, key=least.__getitem__)
        return {'bytes': 'bandwidth', 'flops': 'matmul', 'exps': 'exp'}[name], least[name]
