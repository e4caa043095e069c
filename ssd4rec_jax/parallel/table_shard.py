"""A device's part of the item table, and what it takes to work with those who hold the other parts.

With one shard everything here is the identity, so that the code that uses it knows no other case. Otherwise it runs in
a shard_map (see ssd4rec_jax.parallel.mesh): rows are looked up where they lie and summed over the axis `model`, in which all
but one of the terms are zero.
"""
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssd4rec_jax.parallel.mesh import MODEL_AXIS


class TableShard(NamedTuple):
    """rows: of the whole table. shards: devices along `model`, each of which holds ceil(rows / shards), zeros at the end."""

    rows: int
    shards: int = 1

    @property
    def held(self) -> int:
        """Rows on a device."""
        return -(-self.rows // self.shards)

    @property
    def padded(self) -> int:
        """Rows on all devices of `model` together, zeros counted."""
        return self.held * self.shards

    @property
    def first(self):
        """Number of this device's first row."""
        return lax.axis_index(MODEL_AXIS) * self.held if self.shards > 1 else 0

    def pad(self, table: jax.Array) -> jax.Array:
        """table [rows, ...] with rows of zeros below: [padded, ...]; one that has them stays as it is."""
        return jnp.pad(table, [(0, self.padded - len(table))] + [(0, 0)] * (table.ndim - 1))

    def find(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(where rows `ids` lie in this device's part, `held` for another's; whether they do)."""
        at = ids - self.first
        here = (at >= 0) & (at < self.held)
        return jnp.where(here, at, self.held), here

    def take(self, part: jax.Array, ids: jax.Array) -> jax.Array:
        """Rows `ids` of this device's part [held, ...]; zeros for those that lie elsewhere."""
        if self.shards == 1:
            return jnp.take(part, ids, axis=0, mode='fill', fill_value=0)
        return jnp.take(part, self.find(ids)[0], axis=0, mode='fill', fill_value=0)

    def fetch(self, part: jax.Array, ids: jax.Array) -> jax.Array:
        """Rows of the whole table that this device asks for: ids int [n] -> [n, ...]; zeros for ids >= padded."""
        return self.own_sum(self.take(part, self.gather(ids)))

    def hide_padding(self, logits: jax.Array, first=0) -> jax.Array:
        """Scores [..., n] of this device's rows first, first + 1, ... with -inf where these are beyond the table's end."""
        if self.padded == self.rows:
            return logits
        column = self.first + first + jnp.arange(logits.shape[-1])
        return jnp.where(column < self.rows, logits, -jnp.inf)

    def gather(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """x [n, ...] of all devices of `model`, one after the other along an axis: [shards * n, ...]."""
        return lax.all_gather(x, MODEL_AXIS, axis=axis, tiled=True) if self.shards > 1 else x

    def sum(self, x: jax.Array) -> jax.Array:
        return lax.psum(x, MODEL_AXIS) if self.shards > 1 else x

    def max(self, x: jax.Array) -> jax.Array:
        return lax.pmax(x, MODEL_AXIS) if self.shards > 1 else x

    def own(self, x: jax.Array) -> jax.Array:
        """What `gather` put together, back to this device's [n, ...]."""
        if self.shards == 1:
            return x
        n = x.shape[0] // self.shards
        return lax.dynamic_slice_in_dim(x, lax.axis_index(MODEL_AXIS) * n, n)

    def own_sum(self, x: jax.Array) -> jax.Array:
        """own(sum(x)) [n, ...] of x [shards * n, ...], moved once."""
        return lax.psum_scatter(x, MODEL_AXIS, scatter_dimension=0, tiled=True) if self.shards > 1 else x


def item_numbers(shard: TableShard, *items: jax.Array) -> tuple[jax.Array, ...]:
    """(ids int32 [n], ascending from 0, that occur in the int arrays; each of those as numbers of ids).

    n is fixed by the shapes: the rest of ids lies beyond the table. Item 0, the mask, has number 0.
    """
    flat = jnp.concatenate([jnp.zeros_like(items[0], shape=1), *(a.ravel() for a in items)])
    size = min(len(flat), shard.rows)
    ids, numbers = jnp.unique(flat, size=size, fill_value=shard.padded, return_inverse=True)
    ends = list(itertools.accumulate((a.size for a in items), initial=1))
    return ids, *(numbers.ravel()[start:start + a.size].reshape(a.shape) for start, a in zip(ends, items))
