"""Row-wise Adagrad, the optimiser of an item table of which each step touches only a few rows.

Its state is one float32 per row, and rows that a step does not touch cost no work. It is the row-wise Adagrad of DLRM's
embedding tables: Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
Recommendation Models", 2022.
"""
from collections.abc import Callable
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
    """An optax optimiser for the network and row-wise Adagrad for the item table; the state is a dict of both.

    table_learning_rate: a number, or a function of the number of steps made before.
    """

    network: optax.GradientTransformation
    table_learning_rate: float | Callable[[jax.typing.ArrayLike], jax.Array]

    def init(self, params: dict) -> dict:
        """The initial state; params with the item table as it is stored, padding included."""
        network = {name: leaf for name, leaf in params.items() if name != ITEM_EMBEDDING}
        squares = jnp.zeros(len(params[ITEM_EMBEDDING]), jnp.float32)
        return {'network': self.network.init(network), ITEM_EMBEDDING: squares}


    def rate(self, step: jax.Array) -> float | jax.Array:
        """The table's learning rate for the step with this number, counted from 0."""
        rate = self.table_learning_rate
        return rate(step) if callable(rate) else rate


def scale_by_row_wise_adagrad() -> optax.GradientTransformation:
    """g / sqrt(s) for matrices of which every row has a gradient g, with s += mean(g^2) for each row."""
    def init(params):
        return jax.tree.map(lambda w: jnp.zeros(len(w), jnp.float32), params)

    def update(grads, squares, params=None):
        del params
        squares = jax.tree.map(lambda s, g: s + jnp.mean(g**2, axis=-1).astype(s.dtype), squares, grads)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + EPSILON)[:, None], grads, squares), squares

    return optax.GradientTransformation(init, update)


def update_rows(
    mesh: Mesh, shard: TableShard, table: jax.Array, squares: jax.Array, rows: RowGradients,
    rate: float | jax.Array, key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Updates the rows w that have gradients g: s += mean(g^2), then w -= rate * g / sqrt(s).

    table: [padded, D]. squares: float32 [padded], the sums s.
    rows: the gradients of all devices one after another, ids [devices * n]; those of each device ascend strictly.
    key: decides how a bfloat16 table is rounded. Returns the new (table, squares).
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


def _update(mesh: Mesh, shard: TableShard, table, squares, rows: RowGradients, rate, key):
    """update_rows without an exchange: every device already has the gradients of the rows that it holds.

    With one shard rows are the same on all devices; with more, the first axis of rows is split over the parts.
    """
    part, whole = PartitionSpec(MODEL_AXIS), PartitionSpec()

    def body(table, squares, rows, key):
        ids, grads = rows.ids.ravel(), rows.gradients.reshape(-1, table.shape[-1])
        if mesh.size > 1:
            # Several devices may have a gradient for the same row; these are added up.
            ids, number = jnp.unique(ids, size=len(ids), fill_value=shard.padded, return_inverse=True)
            grads = jax.ops.segment_sum(grads, number.ravel(), num_segments=len(ids))
        at, _ = shard.find(ids)
        new_squares = jnp.take(squares, at, mode='clip') + jnp.mean(grads**2, axis=-1)
        step = rate * grads / (jnp.sqrt(new_squares) + EPSILON)[:, None]
        new_rows = rounded(jnp.take(table, at, axis=0, mode='clip') - step, table.dtype, key)
        return table.at[at].set(new_rows, mode='drop'), squares.at[at].set(new_squares, mode='drop')

    of_rows = whole if shard.shards == 1 else part
    return over_devices(body, mesh, (part, part, of_rows, whole), (part, part))(table, squares, rows, key)


def rounded(x: jax.Array, dtype: jax.typing.DTypeLike, key: jax.Array) -> jax.Array:
    """x float32 in another dtype.

    A bfloat16 result is rounded up or down at random so that its mean is x: changes below bfloat16's precision then
    survive on average.
    """
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + noise
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
