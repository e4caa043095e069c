"""Products and their gradients, compared with NumPy, whichever operand is the wider one."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.target import tracing_for
from ssd4rec_jax.model.dense import matmul, transposed_matmul


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('platform, tokens, width_in, width_out', [
    ('cpu', 4, 3, 7), ('cpu', 4, 7, 3), ('cpu', 4, 5, 5), ('gpu', 4, 3, 7), ('gpu', 576, 7, 3),  # the last in 12 parts
])
def test_value_and_gradients(platform, tokens, width_in, width_out):
    rng = np.random.default_rng(0)
    u, kernel, g = (rng.normal(size=s) for s in ((2, tokens, width_in), (width_in, width_out), (2, tokens, width_out)))
    with tracing_for(platform):
        y, pull = jax.jit(lambda u, kernel: jax.vjp(matmul, u, kernel))(u, kernel)
        du, dkernel = jax.jit(pull)(jnp.asarray(g))
    np.testing.assert_allclose(y, np.einsum('abi,io->abo', u, kernel), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(du, np.einsum('abo,io->abi', g, kernel), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dkernel, np.einsum('abi,abo->io', u, g), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('width_in, width_out', [(3, 7), (7, 3)])
def test_sums_of_narrow_numbers_are_float32(width_in, width_out):
    u, g = np.full((257, width_in), 1.0, jnp.bfloat16), np.full((257, width_out), 1.0, jnp.bfloat16)
    total = transposed_matmul(jnp.asarray(u), jnp.asarray(g))
    assert total.dtype == jnp.float32
    np.testing.assert_array_equal(total, np.full((width_in, width_out), 257.0))
