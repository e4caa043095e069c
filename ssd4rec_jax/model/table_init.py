"""The item table's first values."""
import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.target import target
from ssd4rec_jax.model.mamba2 import LINEAR_INIT

WHOLE = 2**24  # elements that are drawn at once, 64 MiB in float32


def init_table(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype, *, at_once: int = WHOLE) -> jax.Array:
    """N(0, 0.02) values [rows, D] of an item table.

    On a CPU a large one is drawn some rows at a time: JAX's generator keeps four times what it draws there, 20 GB for 5
    million items of 256. Elsewhere it fuses into what it draws, and the rows of a table that is split stay on their devices.
    """
    rows, width = shape
    block = max(1, at_once // width)
    if target().platform != 'cpu' or rows <= block:
        return LINEAR_INIT(key, shape, dtype)

    def draw(number, table):
        new = LINEAR_INIT(jax.random.fold_in(key, number), (block, width), dtype)
        # The last block reaches back over rows that have been drawn.
        return lax.dynamic_update_slice_in_dim(table, new, jnp.minimum(number * block, rows - block), 0)

    return lax.fori_loop(0, -(-rows // block), draw, jnp.zeros(shape, dtype))
