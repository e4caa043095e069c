"""Programs of several warpgroups: WORKERS that compute, and one more that fetches what they all read."""
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu.tiles import WARPGROUP, plgpu

WORKERS = 2
SLOTS = 2  # The buffers of a stream.
WORKING, FETCHING = 232, 40  # The registers of a thread in a worker, and in the warpgroup that fetches.


class Stream:
    """Slices of an array's first axis, one for each step, which pass through SLOTS buffers that all workers read.

    ref: the array in device memory. rows: those of a slice. buffers: the refs of what `scratch` describes.
    """

    def __init__(self, ref: Any, rows: int, buffers: tuple[Any, Any, Any]) -> None:
        self.ref, self.rows, self.steps = ref, rows, ref.shape[0] // rows
        self.smem, self.full, self.free = buffers

    @staticmethod
    def scratch(smem: Any) -> tuple[Any, Any, Any]:
        """The buffers and barriers of a stream, for the type of a buffer of shape [SLOTS, rows, ...]."""
        arrived = plgpu.Barrier(num_barriers=SLOTS)
        return smem, arrived, plgpu.Barrier(num_arrivals=WORKERS, num_barriers=SLOTS)

    def slice(self, k: Any) -> Any:
        """The rows of step k."""
        return pl.ds(k * self.rows, self.rows)

    def fetch(self, k: jax.Array) -> None:
        """Copy the slice of step k, once all workers have left the one that lies in its place."""
        slot = lax.rem(k, jnp.int32(SLOTS))

        @pl.when(k >= SLOTS)
        def _() -> None:
            plgpu.barrier_wait(self.free.at[slot])

        plgpu.copy_gmem_to_smem(self.ref.at[self.slice(k)], self.smem.at[slot], self.full.at[slot])

    def wait(self, k: jax.Array) -> Any:
        """The slice of step k in shared memory, when it is there."""
        slot = lax.rem(k, jnp.int32(SLOTS))
        plgpu.barrier_wait(self.full.at[slot])
        return self.smem.at[slot]

    def leave(self, k: jax.Array) -> None:
        """Say that this worker does not read the slice of step k any more."""

        @pl.when(k + SLOTS < self.steps)
        def _() -> None:
            plgpu.barrier_arrive(self.free.at[lax.rem(k, jnp.int32(SLOTS))])


def run(work: Callable[[jax.Array], None], streams: Sequence[Stream]) -> None:
    """Run work(the worker's number) in each worker, and fetch the streams, which have as many steps, in this order."""
    warpgroup = lax.axis_index(WARPGROUP)

    @pl.when(warpgroup < WORKERS)
    def _work() -> None:
        plgpu.set_max_registers(WORKING, action='increase')
        work(warpgroup)

    @pl.when(warpgroup == WORKERS)
    def _fetch() -> None:
        plgpu.set_max_registers(FETCHING, action='decrease')

        def step(k: jax.Array, done: None) -> None:
            for stream in streams:
                stream.fetch(k)
            return done

        lax.fori_loop(0, streams[0].steps, step, None)


def own(worker: jax.Array, buffers: Sequence[Any]) -> list[Any]:
    """The worker's parts of buffers in shared memory, [WORKERS, ...].

    A loop that multiplies them calls this in each step, since their descriptors would fill its registers. The barrier
    keeps the compiler from seeing that they are the same in all steps.
    """
    return [a.at[lax.optimization_barrier(worker)] for a in buffers]
