"""One device's part of the item table, and the operations that combine it with the parts of other devices.

With one shard all of these operations are the identity, so that the code that uses them needs no second case. With more
shards they run inside a shard_map (see ssd4rec_jax.parallel.mesh). A row is then looked up on every device and the
results are summed over the axis `model`; only the device that holds the row contributes a term other than zero.
"""
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssd4rec_jax.parallel.mesh import MODEL_AXIS


class TableShard(NamedTuple):
    """How a table is split by rows over the devices along the axis `model`.

    rows: the number of rows of the whole table. shards: the number of devices, each of which holds ceil(rows / shards)
    rows; the last of them are padding rows of zeros where shards does not divide rows.
    """

    rows: int
    shards: int = 1

    @property
    def held(self) -> int:
        """The number of rows on one device, padding included."""
        return -(-self.rows // self.shards)

    @property
    def padded(self) -> int:
        """The number of rows on all devices along `model` together, padding included."""
        return self.held * self.shards

    @property
    def first(self) -> jax.Array | int:
        """The number, in the whole table, of this device's first row."""
        return lax.axis_index(MODEL_AXIS) * self.held if self.shards > 1 else 0

    def pad(self, table: jax.Array) -> jax.Array:
        """table [rows, ...] with padding rows of zeros added: [padded, ...]. A padded table is returned as it is."""
        return jnp.pad(table, [(0, self.padded - len(table))] + [(0, 0)] * (table.ndim - 1))

    def find(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where the rows with the numbers `ids`, an integer array of any shape, lie in this device's part.

        Returns (their indices in the part, or `held` for rows of other devices; whether this device holds them), both
        of the shape of ids.
        """
        at = ids - self.first
        here = (at >= 0) & (at < self.held)
        return jnp.where(here, at, self.held), here

    def take(self, part: jax.Array, ids: jax.Array) -> jax.Array:
        """The rows `ids` [n] of this device's part [held, ...]: [n, ...], zeros for rows that lie elsewhere."""
        if self.shards == 1:
            return jnp.take(part, ids, axis=0, mode='fill', fill_value=0)
        return jnp.take(part, self.find(ids)[0], axis=0, mode='fill', fill_value=0)

    def fetch(self, part: jax.Array, ids: jax.Array) -> jax.Array:
        """The rows `ids` [n] of the whole table, [n, ...], zeros for ids >= padded; each device has its own ids."""
        return self.own_sum(self.take(part, self.gather(ids)))

    def hide_padding(self, logits: jax.Array, first: jax.Array | int = 0) -> jax.Array:
        """logits [..., n], the scores of this device's rows first, first + 1, ..., with -inf for padding rows."""
        if self.padded == self.rows:
            return logits
        column = self.first + first + jnp.arange(logits.shape[-1])
        return jnp.where(column < self.rows, logits, -jnp.inf)

    def gather(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """The arrays x [n, ...] of all devices along `model`, concatenated along an axis: [shards * n, ...]."""
        return lax.all_gather(x, MODEL_AXIS, axis=axis, tiled=True) if self.shards > 1 else x

    def sum(self, x: jax.Array) -> jax.Array:
        """The elementwise sum of x over the devices along `model`."""
        return lax.psum(x, MODEL_AXIS) if self.shards > 1 else x

    def max(self, x: jax.Array) -> jax.Array:
        """The elementwise maximum of x over the devices along `model`; it has no gradient."""
        return lax.pmax(x, MODEL_AXIS) if self.shards > 1 else x

    def own(self, x: jax.Array) -> jax.Array:
        """This device's part [n, ...] of x [shards * n, ...], the inverse of `gather`."""
        if self.shards == 1:
            return x
        n = x.shape[0] // self.shards
        return lax.dynamic_slice_in_dim(x, lax.axis_index(MODEL_AXIS) * n, n)

    def own_sum(self, x: jax.Array) -> jax.Array:
        """own(sum(x)) [n, ...] for x [shards * n, ...], in one collective that sends less."""
        return lax.psum_scatter(x, MODEL_AXIS, scatter_dimension=0, tiled=True) if self.shards > 1 else x


def item_numbers(shard: TableShard, *items: jax.Array) -> tuple[jax.Array, ...]:
    """Replaces item ids by their positions in a list of the distinct ids.

    items: integer arrays of item ids. Returns (ids int32 [n], *numbers): the distinct ids in ascending order, which
    begin with 0, and for each array an array of its shape with the position of every item in ids. n depends only on the
    shapes; the entries of ids that are left over are shard.padded, which no row of the table has.
    """
    flat = jnp.concatenate([jnp.zeros_like(items[0], shape=1), *(a.ravel() for a in items)])
    size = min(len(flat), shard.rows)
    ids, numbers = jnp.unique(flat, size=size, fill_value=shard.padded, return_inverse=True)
    ends = list(itertools.accumulate((a.size for a in items), initial=1))
    return ids, *(numbers.ravel()[start:start + a.size].reshape(a.shape) for start, a in zip(ends, items, strict=False))
