"""Row-wise Adagrad: the optimiser of an item table of which a step touches a few rows.

One float32 a row of state, and no work for the rows that a step does not touch (row-wise Adagrad of DLRM's embedding tables:
Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation Models", 2022).
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, MODEL_AXIS, over_devices
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.train.gradients import RowGradients
from ssd4rec_jax.train.row_exchange import first_rows, is_under_way, send_round

EPSILON = 1e-10


class SparseTableOptimizer(NamedTuple):
    """An optax optimiser for the network, row-wise Adagrad for the item table. Their state is a dict of both."""

    network: optax.GradientTransformation
    table_learning_rate: float

    def init(self, params: dict) -> dict:
        network = {name: leaf for name, leaf in params.items() if name != ITEM_EMBEDDING}
        squares = jnp.zeros(len(params[ITEM_EMBEDDING]), jnp.float32)
        return {'network': self.network.init(network), ITEM_EMBEDDING: squares}


def update_rows(
    mesh: Mesh, shard: TableShard, table: jax.Array, squares: jax.Array, rows: RowGradients, rate: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(table, squares) after w -= rate g / sqrt(s) with s += mean(g^2), in the rows that have gradients.

    rows: of all devices, [devices * n], of which each one's ids ascend without repetition.
    """
    if shard.shards == 1:
        return _update(mesh, shard, table, squares, rows, rate, key)

    def another_round(state):
        cursor, table, squares, key = state
        key, own = jax.random.split(key)
        cursor, got = send_round(mesh, shard, cursor, rows)
        return cursor, *_update(mesh, shard, table, squares, got, rate, own), key

    state = lax.while_loop(
        lambda state: is_under_way(shard, state[0]), another_round, (first_rows(shard), table, squares, key)
    )
    return state[1], state[2]


def _update(mesh: Mesh, shard: TableShard, table, squares, rows: RowGradients, rate: float, key):
    """The same with the gradients that each part of the table needs: whole, or part by part in their first axis."""
    part, whole = PartitionSpec(MODEL_AXIS), PartitionSpec()

    def body(table, squares, rows, key):
        ids, grads = rows.ids.ravel(), rows.gradients.reshape(-1, table.shape[-1])
        if mesh.size > 1:
            # Devices that share rows have asked for them each.
            ids, number = jnp.unique(ids, size=len(ids), fill_value=shard.padded, return_inverse=True)
            grads = jax.ops.segment_sum(grads, number.ravel(), num_segments=len(ids))
        at, _ = shard.find(ids)
        new_squares = jnp.take(squares, at, mode='clip') + jnp.mean(grads**2, axis=-1)
        step = rate * grads / (jnp.sqrt(new_squares) + EPSILON)[:, None]
        new_rows = rounded(jnp.take(table, at, axis=0, mode='clip') - step, table.dtype, key)
        return table.at[at].set(new_rows, mode='drop'), squares.at[at].set(new_squares, mode='drop')

    of_rows = whole if shard.shards == 1 else part
    return over_devices(body, mesh, (part, part, of_rows, whole), (part, part))(table, squares, rows, key)


def rounded(x: jax.Array, dtype, key: jax.Array) -> jax.Array:
    """float32 x in dtype; to bfloat16 up or down at random, so that steps below its precision add up in the mean."""
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + noise
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
