"""A large item table is drawn one block of rows at a time."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.model.mamba2 import LINEAR_INIT
from ssd4rec_jax.model.table_init import init_table


def test_a_small_table_is_one_draw():
    key = jax.random.key(3)
    np.testing.assert_array_equal(init_table(key, (41, 8), jnp.float32), LINEAR_INIT(key, (41, 8), jnp.float32))


@pytest.mark.parametrize('rows', [1000, 1001, 1099])
def test_a_large_table_is_its_blocks_the_last_over_the_one_before(rows):
    key, block = jax.random.key(3), 100
    table = np.asarray(jax.jit(lambda: init_table(key, (rows, 8), jnp.float32, at_once=8 * block))())
    expected = np.full((rows, 8), np.nan, np.float32)
    for number in range(-(-rows // block)):
        start = min(number * block, rows - block)
        expected[start:start + block] = LINEAR_INIT(jax.random.fold_in(key, number), (block, 8), jnp.float32)
    np.testing.assert_allclose(table, expected, rtol=1e-6)
    assert len(np.unique(table, axis=0)) == rows
    assert table.std() == pytest.approx(0.02, rel=0.05) and abs(table.mean()) < 0.001
