"""Items that are left out of a ranking, for each history its own: from lists on the host to scores of -inf."""
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.parallel.table_shard import TableShard


def excluded_slots(exclude: Sequence[np.ndarray] | None, batch: PackedBatch) -> np.ndarray:
    """The excluded items of each slot's history: int32 [rows, segments, m], filled up with 0, which never ranks.

    exclude: the ids of the items that are left out for each example; None leaves out none. m is the length of the
    longest list rounded up to a power of two, so that lists of similar length share a compiled program.
    """
    width = round_up(max(map(len, exclude), default=1)) if exclude is not None else 1
    excluded = np.zeros((*batch.example_ids.shape, width), np.int32)
    if exclude is not None:
        for slot in np.argwhere(batch.example_ids >= 0):
            own = exclude[batch.example_ids[tuple(slot)]]
            excluded[tuple(slot)][:len(own)] = own
    return excluded


def without(scores: jax.Array, excluded: jax.Array, shard: TableShard) -> jax.Array:
    """The scores float32 [n, held] of this device's items, with -inf for the items `excluded`, int32 [n, m]."""
    chex.assert_rank(excluded, 2)
    chex.assert_equal_shape_prefix([scores, excluded], 1)
    row = jnp.arange(len(scores))[:, None]
    return scores.at[row, shard.find(excluded)[0]].set(-jnp.inf, mode='drop')


def round_up(value: int) -> int:
    """The smallest power of two that is not below value."""
    return 1 << max(0, value - 1).bit_length()
