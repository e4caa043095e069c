"""Row gradients on their way to the devices that hold the rows.

Each device has gradients for rows of any part of the table, and every part may be held more than once. What all parts could
get from all devices is the whole mesh's worth; what they do get is about a device's own share. So it is sent in rounds, each as far in
every part as no sender has more than its even share of rows for it. A row's gradients all come in one round, since
what an update does with them is not linear.
"""
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssd4rec_jax.parallel.mesh import AXES, DATA_AXIS, MODEL_AXIS, over_devices
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.train.gradients import RowGradients


def first_rows(shard: TableShard) -> jax.Array:
    """int32 [shards], where each part's rounds begin."""
    return jnp.arange(shard.shards, dtype=jnp.int32) * shard.held


def is_under_way(shard: TableShard, cursor: jax.Array) -> jax.Array:
    """Whether some part still has rows to get."""
    return jnp.any(cursor < first_rows(shard) + shard.held)


def send_round(mesh: Mesh, shard: TableShard, cursor: jax.Array, rows: RowGradients) -> tuple[jax.Array, RowGradients]:
    """(where the next round begins, what each part gets in this one).

    cursor int32 [shards]: row from which on each part has got nothing. rows: of all devices, [devices * n], of which each one's
    ids ascend without repetition. Returned ids int32 [shards, devices / shards, m] and gradients [..., m, D] are of each part in
    the first axis; ids beyond the table mean none.
    """
    part = PartitionSpec(MODEL_AXIS, DATA_AXIS)

    def body(cursor, rows):
        share = -(-len(rows.ids) // shard.shards)
        start = jnp.searchsorted(rows.ids, cursor)
        # The first row that does not fit ends the round; for everyone, where it comes first.
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
