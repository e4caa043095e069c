"""What the SSD implementations derive from segment ids. Ids are compared for equality with neighbours only."""
import jax
import jax.numpy as jnp


def run_ids(segment_ids: jax.Array | None, batch: int, length: int) -> jax.Array:
    """int32 [batch, length]: 0, 1, ... counting each row's runs of equal segment ids; all 0 without ids.

    Two stretches that happen to carry the same id become two runs.
    """
    if segment_ids is None:
        return jnp.zeros((batch, length), jnp.int32)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def reached_from(flag: jax.Array, run: jax.Array, *, reverse: bool) -> jax.Array:
    """bool [batch, length]: whether a flagged token stands at or before each token in its own run.

    flag bool, run int32 [batch, length]. reverse=True looks at or after it.
    """
    total = jnp.cumsum(flag, axis=1, dtype=jnp.int32)
    starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    # Flags counted before the run began: the largest such count at any start so far, since counts only grow.
    before = jax.lax.cummax(jnp.where(starts, total - flag, 0), axis=1)
    if not reverse:
        return total > before
    ends = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    at_end = jax.lax.cummin(jnp.where(ends, total, total[:, -1:]), axis=1, reverse=True)
    return at_end > total - flag


def running_sum(a: jax.Array, run: jax.Array, *, reverse: bool, chunk_size: int = 32) -> jax.Array:
    """Sum of a [batch, length, channels] over the tokens of its run up to and with each one (from it on, if reverse).

    Sums restart with each run instead of being differences of longer ones, so digits are lost in no long row and NaN
    stays in its run. Inside a chunk by doubling, from chunk to chunk by a scan: both compile to little code.
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
