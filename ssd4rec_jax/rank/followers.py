"""The follower term: what is added to the scores of items that often followed a history's newest items in training."""
import jax
import jax.numpy as jnp

from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.parallel.table_shard import TableShard

NEWEST = 8  # interactions of a history whose followers count
FADING = 0.6  # what the followers of an interaction count, compared with those of the next one


def newest_items(items: jax.Array, layout: Layout) -> jax.Array:
    """int32 [rows, segments, NEWEST], the newest items of each history, the last first; 0 where it has fewer."""
    row = jnp.arange(len(items))[:, None]
    none = jnp.zeros((*layout.lengths.shape, NEWEST), jnp.int32)
    return none.at[row, layout.slot, layout.remaining].set(items, mode='drop')


def follower_scores(newest: jax.Array, followers: Followers, shard: TableShard) -> jax.Array:
    """float32 [n, held]: for this device's items, sum over a = 0 .. NEWEST - 1 of FADING^a strength(newest_a -> item).

    newest: int32 [n, NEWEST]. Items that have no row in `followers` have no followers.
    """
    items, strength = (jnp.take(table, newest, axis=0, mode='fill', fill_value=0) for table in followers)
    strength = strength * (FADING ** jnp.arange(NEWEST, dtype=strength.dtype))[:, None]
    row = jnp.arange(len(newest))[:, None, None]
    none = jnp.zeros((len(newest), shard.held), strength.dtype)
    return none.at[row, shard.find(items)[0]].add(strength, mode='drop')
