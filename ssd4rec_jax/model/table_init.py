"""Initial values of the item table."""
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pallas_kernels.target import target

WHOLE = 2**24  # The largest number of elements that is drawn at once: 64 MiB in float32.


def init_table(
    key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype, *, stddev: float = 0.02, at_once: int = WHOLE
) -> jax.Array:
    """Values from N(0, stddev) for an item table of shape [rows, D].

    On a CPU a large table is drawn a block of rows at a time (at_once elements), because JAX's generator needs four
    times the memory of what it draws there: 20 GB for 5 million items of 256. On other platforms the generator is fused
    with the operation that stores the values, and the rows of a split table stay on their devices.
    """
    rows, width = shape
    init = nnx.initializers.normal(stddev)
    block = max(1, at_once // width)
    if target().platform != 'cpu' or rows <= block:
        return init(key, shape, dtype)

    def draw(number, table):
        new = init(jax.random.fold_in(key, number), (block, width), dtype)
        # The last block starts early enough to fit, so it overwrites some rows that were drawn before.
        return lax.dynamic_update_slice_in_dim(table, new, jnp.minimum(number * block, rows - block), 0)

    return lax.fori_loop(0, -(-rows // block), draw, jnp.zeros(shape, dtype))
