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
