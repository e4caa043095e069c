"""Sends the gradients of table rows to the devices that hold these rows.

The table is split over the mesh axis `model` into parts, and each device has gradients for rows of all parts. A single
exchange would need buffers for the worst case, in which all rows of all devices belong to one part; usually only about
an even share of a device's rows belongs to each part. The exchange therefore happens in rounds. In each round, every
part receives the rows up to a limit, chosen so that no device sends more than an even share of its rows to the part.
All gradients of a row arrive in the same round, because an update is not linear in them.
"""
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssd4rec_jax.parallel.mesh import AXES, DATA_AXIS, MODEL_AXIS, over_devices
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.train.gradients import RowGradients


def first_rows(shard: TableShard) -> jax.Array:
    """int32 [shards], the first row of each part, where its first round begins."""
    return jnp.arange(shard.shards, dtype=jnp.int32) * shard.held


def is_under_way(shard: TableShard, cursor: jax.Array) -> jax.Array:
    """Whether some part still has rows to receive; cursor as in send_round."""
    return jnp.any(cursor < first_rows(shard) + shard.held)


def send_round(mesh: Mesh, shard: TableShard, cursor: jax.Array, rows: RowGradients) -> tuple[jax.Array, RowGradients]:
    """Sends the rows of one round.

    cursor: int32 [shards], the first row of each part whose gradients have not been sent yet.
    rows: the gradients of all devices one after another, ids [devices * n]; those of each device ascend strictly.
    Returns (the cursor of the next round, the gradients that each part receives in this one). The latter have ids
    int32 [shards, devices / shards, m] and gradients [shards, devices / shards, m, D], where the first axis is the
    part; ids beyond the table mark empty entries.
    """
    part = PartitionSpec(MODEL_AXIS, DATA_AXIS)

    def body(cursor, rows):
        share = -(-len(rows.ids) // shard.shards)
        start = jnp.searchsorted(rows.ids, cursor)
        # The first row that does not fit ends the round, and the device where it comes first decides for all.
        beyond = jnp.take(rows.ids, start + share, mode='fill', fill_value=shard.padded)
        end = lax.pmin(jnp.minimum(beyond, first_rows(shard) + shard.held), AXES)
        at = start[:, None] + jnp.arange(share)
        ids = jnp.take(rows.ids, at, mode='fill', fill_value=shard.padded)
        sent = RowGradients(
            jnp.where(ids < end[:, None], ids, shard.padded),
            jnp.take(rows.gradients, at, axis=0, mode='fill', fill_value=0),
        )
        got = jax.tree.map(lambda a: lax.all_to_all(a, MODEL_AXIS, 0, 0, tiled=True), sent)
        return end, jax.tree.map(lambda a: a.reshape(1, 1, -1, *a.shape[2:]), got)

    whole = PartitionSpec()
    return over_devices(body, mesh, (whole, PartitionSpec(AXES)), (whole, part))(cursor, rows)
