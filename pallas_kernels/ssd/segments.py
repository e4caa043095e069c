"""What the SSD implementations derive from segment ids.

A run is a longest stretch of neighbouring tokens with the same id. Ids are compared with neighbouring ids only.
"""
import jax
import jax.numpy as jnp


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
    total = jnp.cumsum(flag, axis=1, dtype=jnp.int32)
    starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    # The flags counted before the run began. Counts only grow, so this is the largest such count at any start so far.
    before = jax.lax.cummax(jnp.where(starts, total - flag, 0), axis=1)
    if not reverse:
        return total > before
    ends = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    at_end = jax.lax.cummin(jnp.where(ends, total, total[:, -1:]), axis=1, reverse=True)
    return at_end > total - flag


def running_sum(a: jax.Array, run: jax.Array, *, reverse: bool, chunk_size: int = 32) -> jax.Array:
    """For each token, the sum over the tokens of its run up to and including it.

    The sums restart with each run and are not differences of longer sums, so that long rows lose no digits and NaN
    stays in its run. Inside a chunk they are made by doubling, from chunk to chunk by a scan. Both compile to little
    code.

    Args:
      a: [batch, length, channels], of any floating-point dtype.
      run: int32 [batch, length], from run_ids, or any ids that differ between neighbouring runs.
      reverse: sum from each token to the end of its run instead.
      chunk_size: tokens of a chunk.

    Returns the sums, with the shape and dtype of a.
    """
    if reverse:
        return jnp.flip(running_sum(jnp.flip(a, 1), jnp.flip(run, 1), reverse=False, chunk_size=chunk_size), 1)
    batch, length, channels = a.shape
    chunks = -(-length // chunk_size)
    gap = (0, chunks * chunk_size - length)
    a = jnp.pad(a, ((0, 0), gap, (0, 0))).reshape(batch, chunks, chunk_size, channels)
    run = jnp.pad(run, ((0, 0), gap), mode='edge').reshape(batch, chunks, chunk_size)
    distance = 1
    while distance < chunk_size:
        joined = (run[:, :, distance:] == run[:, :, :-distance])[..., None]
        a = a + jnp.pad(jnp.where(joined, a[:, :, :-distance], 0), ((0, 0), (0, 0), (distance, 0), (0, 0)))
        distance *= 2
    enters = jnp.pad(run[:, 1:, 0] == run[:, :-1, -1], ((0, 0), (1, 0)))
    through = enters & (run[:, :, 0] == run[:, :, -1])

    def carry(total, chunk):
        last, enters, through = chunk
        return last + jnp.where(through[:, None], total, 0), jnp.where(enters[:, None], total, 0)

    by_chunk = tuple(jnp.moveaxis(x, 1, 0) for x in (a[:, :, -1], enters, through))
    _, entry = jax.lax.scan(carry, jnp.zeros_like(a[:, 0, 0]), by_chunk)
    first = (run == run[:, :, :1])[..., None]
    a = a + jnp.where(first, jnp.moveaxis(entry, 0, 1)[:, :, None], 0)
    return a.reshape(batch, -1, channels)[:, :length]
