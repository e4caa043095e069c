"""What a chip can do at most, measured: bytes moved, products summed, exponentials taken."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.bench.clock import compiled, device_seconds
from pallas_kernels.ssd.workloads import Workload

CHUNK = 64  # the chunk whose work `Work` counts: near the least for the shapes in use


class Work(NamedTuple):
    """Bytes moved, floating-point operations in matmuls, and exponentials."""

    bytes: float
    flops: float
    exps: float

    @classmethod
    def of(cls, w: Workload, itemsize: int, backward: bool) -> 'Work':
        """What ssd_scan cannot do without, forward, or forward and backward together.

        Bytes: each input read and each output written once; the backward pass reads all inputs and y's gradient and
        writes four gradients. Matmuls: the blocked form with chunks of 64, half of a causal square counted; backward,
        each product has two gradients and the chunk's own products are made again. Exponentials: one a key, query and
        head within a chunk, and two a token and head; again in the backward pass.
        """
        tokens = w.batch * w.length
        x, shared, dt = (tokens * n for n in (w.heads * w.headdim * itemsize, w.groups * w.state * itemsize, w.heads * 4))
        square = CHUNK / 2
        flops = 2 * tokens * (square * (w.groups * w.state + w.heads * w.headdim) + 2 * w.heads * w.headdim * w.state)
        exps = tokens * w.heads * (square + 2)
        forward = cls(2 * x + 2 * shared + dt, flops, exps)
        if not backward:
            return forward
        return cls(forward.bytes + 3 * x + 4 * shared + 2 * dt, 4 * flops, 2 * exps)


class Ceilings(NamedTuple):
    """Per second: bytes copied, floating-point operations of a matmul in a dtype, exponentials."""

    bytes: float
    flops: float
    exps: float

    @classmethod
    def measure(cls, dtype, repeats: int) -> 'Ceilings':
        """On this process' device; sizes that fill an accelerator and take a CPU under a second."""
        big = jax.default_backend() != 'cpu'
        n, size, rounds = (8192, 2**28, 256) if big else (1024, 2**24, 8)
        square = jnp.ones((n, n), dtype)
        stream, block = jnp.ones(size, jnp.float32), jnp.ones(size // 16, jnp.float32)

        def exponentials(a):
            return lax.fori_loop(0, rounds, lambda _, a: jnp.exp(-a), a, unroll=min(rounds, 64))

        calls, _ = compiled({
            'bytes': (lambda a: a + 1, (stream,)), 'flops': (jnp.matmul, (square, square)),
            'exps': (exponentials, (block,)),
        })
        seconds = device_seconds(calls, repeats)
        return cls(8 * size / seconds['bytes'], 2 * n**3 / seconds['flops'], rounds * (size // 16) / seconds['exps'])

    def binding(self, work: Work) -> tuple[str, float]:
        """(which of the three binds, the seconds that it alone would take)."""
        least = {name: getattr(work, name) / getattr(self, name) for name in Work._fields}
        name = max(least, key=least.get)
        return {'bytes': 'bandwidth', 'flops': 'matmul', 'exps': 'exp'}[name], least[name]
