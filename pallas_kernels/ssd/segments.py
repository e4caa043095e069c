"""What the SSD implementations derive from segment ids.

A run is a longest stretch of neighbouring tokens with the same id. Ids are compared with neighbouring ids only.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.target import target


def run_ids(segment_ids: jax.Array | None, batch: int, length: int) -> jax.Array:
    """Number the runs of each row 0, 1, ... from the left.

    Two stretches with the same id that are not neighbours become two runs.

    Args:
      segment_ids: integers [batch, length], or None for one run in each row.
      batch, length: the shape of the result.

    Returns int32 [batch, length].
    """
    if segment_ids is None:
        return jnp.zeros((batch, length), jnp.int32)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def reached_from(flag: jax.Array, run: jax.Array, *, reverse: bool) -> jax.Array:
    """Whether a flagged token stands at or before each token in its own run.

    Args:
      flag: bool [batch, length].
      run: int32 [batch, length], from run_ids.
      reverse: look at or after each token instead.

    Returns bool [batch, length].
    """
    return running_sum(flag[..., None].astype(jnp.int32), run, reverse=reverse)[..., 0] > 0


def running_sum(a: jax.Array, run: jax.Array, *, reverse: bool, chunk_size: int | None = None) -> jax.Array:
    """For each token, the sum over the tokens of its run up to and including it.

    The sums restart with each run and are not differences of longer sums, so that long rows lose few digits (4e-6 of
    100,000 equal float32 steps on a CPU, less on a GPU) and NaN stays in its run. They are made inside chunks first and
    then over the ends of the chunks.

    Args:
      a: [batch, length, channels], of any numeric dtype.
      run: int32 [batch, length], from run_ids, or any ids of which none comes back later in its row.
      reverse: sum from each token to the end of its run instead.
      chunk_size: tokens of a chunk; None takes what suits the platform.

    Returns the sums, with the shape and dtype of a.
    """
    if reverse:
        return jnp.flip(running_sum(jnp.flip(a, 1), jnp.flip(run, 1), reverse=False, chunk_size=chunk_size), 1)
    if target().platform == 'cpu':
        # A round of a loop costs next to nothing here, whereas XLA computes doubled sums again in whatever reads them.
        # Two loops, over the ends of short chunks, add up fewer numbers one by one than one loop would.
        def over_ends(a, run):
            return _in_chunks(a, run, 64, _sums_by_loop, _sums_by_loop)

        return _in_chunks(a, run, chunk_size or 4, _sums_by_doubling, over_ends)
    # A GPU would launch every round of a loop by itself.
    return _in_chunks(a, run, chunk_size or 32, _sums_by_doubling, _sums_by_doubling)


_Sums = Callable[[jax.Array, jax.Array], jax.Array]


def _in_chunks(a: jax.Array, run: jax.Array, chunk_size: int, within: _Sums, over_ends: _Sums) -> jax.Array:
    """The running sums of a [batch, n, channels], made inside chunks and then over the chunks' ends."""
    batch, length, channels = a.shape
    chunks = -(-length // chunk_size)
    gap = (0, chunks * chunk_size - length)
    a = jnp.pad(a, ((0, 0), gap, (0, 0))).reshape(batch, chunks, chunk_size, channels)
    run = jnp.pad(run, ((0, 0), gap), mode='edge').reshape(batch, chunks, chunk_size)
    a = within(a, run)
    last = run[:, :, -1]
    at_ends = over_ends(a[:, :, -1], last)
    goes_on = run[:, 1:] == last[:, :-1, None]
    from_before = jnp.where(goes_on[..., None], at_ends[:, :-1, None], 0)
    a = a + jnp.pad(from_before, ((0, 0), (1, 0), (0, 0), (0, 0)))
    return a.reshape(batch, -1, channels)[:, :length]


def _sums_by_doubling(a: jax.Array, run: jax.Array) -> jax.Array:
    """The running sums of a [..., n, channels] over its axis of n, within the runs that run [..., n] tells apart."""
    distance = 1
    while distance < run.shape[-1]:
        joined = run[..., distance:] == run[..., :-distance]
        before = jnp.where(joined[..., None], a[..., :-distance, :], 0)
        a = a + jnp.pad(before, [(0, 0)] * (a.ndim - 2) + [(distance, 0), (0, 0)])
        distance *= 2
    return a


def _sums_by_loop(a: jax.Array, run: jax.Array) -> jax.Array:
    """The same, one entry after another."""
    joined = jnp.pad(run[..., 1:] == run[..., :-1], [(0, 0)] * (run.ndim - 1) + [(1, 0)])

    def add(total, entry):
        value, joined = entry
        total = value + jnp.where(joined[..., None], total, 0)
        return total, total

    entries = jnp.moveaxis(a, -2, 0), jnp.moveaxis(joined, -1, 0)
    return jnp.moveaxis(jax.lax.scan(add, jnp.zeros_like(a[..., 0, :]), entries)[1], 0, -2)
