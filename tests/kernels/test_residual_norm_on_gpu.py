"""The Mosaic GPU kernels of dropout(LayerNorm(a + u)), interpreted beside the definition in float32."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.bench.around import layer_norm_of_sum
from pallas_kernels.ssd.gpu import residual_norm as kernels
from pallas_kernels.ssd.gpu.residual_norm import ResidualNorm, residual_norm, why_not_residual_norm

MISSING = why_not_residual_norm(jnp.bfloat16, 256)
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def both(f, how, g, *arguments, keys):
    """(the value, its gradients by all arguments) for a cotangent."""
    y, pull = jax.vjp(lambda *a: f(how, *a, keys), *arguments)
    return y, pull(g)


def example(rows, tokens, channels, with_u, seed=0):
    """(a, u, scale, shift), the result's cotangent and keys."""
    rng = np.random.default_rng(seed)
    a, u, g = (jnp.asarray(rng.normal(1, 2, size=(rows, tokens, channels)), jnp.bfloat16) for _ in range(3))
    scale, shift = (jnp.asarray(rng.normal(size=channels), jnp.float32) for _ in range(2))
    keys = jnp.asarray(rng.integers(0, 2**32, size=(rows, tokens), dtype=np.uint32))
    return (a, u if with_u else None, scale, shift), g, keys


def assert_near(ours, theirs):
    """Within a rounding to bfloat16 of the largest entry, float32 within 1e-5 of it, and NaN at the same places."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        tolerance = 2**-8 if a.dtype == jnp.bfloat16 else 1e-5
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.nanmax(np.abs(b), initial=0))


@pytest.mark.parametrize('shape, with_u, how', [
    ((2, 18, 192), True, ResidualNorm(0.3)),
    ((1, 8, 64), False, ResidualNorm(0.3, drops_first=True)),
    ((1, 5, 128), True, ResidualNorm(0.0)),
])
def test_values_and_gradients(shape, with_u, how, monkeypatch):
    monkeypatch.setattr(kernels, 'MULTIPROCESSORS', 1)
    # Of 5 steps one program takes 3, and reads into its first buffers again.
    monkeypatch.setattr(kernels, 'AT_A_TIME', 2)
    arguments, g, keys = example(*shape, with_u)
    keys = keys if how.dropout else None
    made = both(residual_norm, how._replace(interpret=True), g, *arguments, keys=keys)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    expected = both(layer_norm_of_sum, how, g.astype(jnp.float32), *wide, keys=keys)
    assert made[0].dtype == made[1][0].dtype == jnp.bfloat16
    assert_near(made, expected)


def hashed(x):
    """The hash of 32 bits that dropout draws from, in Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * factor % 2**32
    return x ^ (x >> 16)


def test_an_element_is_dropped_where_the_hash_of_its_token_and_channel_is_small():
    (a, u, scale, shift), _, keys = example(1, 8, 64, True)
    y = residual_norm(ResidualNorm(0.25, interpret=True), a, u, scale, shift, keys)
    expected = [[hashed(int(key) ^ hashed(channel)) < 2**30 for channel in range(1, 65)] for key in keys[0]]
    np.testing.assert_array_equal(np.asarray(y[0] == 0), expected)


def test_a_token_that_is_not_finite_spoils_no_other_token():
    arguments, g, keys = example(1, 8, 128, True)
    bad = arguments[0].at[0, 2, 5].set(jnp.inf).at[0, 5, 7].set(jnp.nan)
    how = ResidualNorm(0.5, interpret=True)
    y, (dx, _, dscale, _) = both(residual_norm, how, g, bad, *arguments[1:], keys=keys)
    good_y, (good_dx, *_) = both(residual_norm, how, g, *arguments, keys=keys)
    others = np.array([0, 1, 3, 4, 6, 7])
    np.testing.assert_array_equal(y[:, others], good_y[:, others])
    np.testing.assert_array_equal(dx[:, others], good_dx[:, others])
    dropped = np.asarray(good_y == 0)
    np.testing.assert_array_equal(np.isnan(y[0, [2, 5]]), ~dropped[0, [2, 5]])
    assert np.isnan(dx[0, [2, 5]]).all() and np.isnan(dscale).any()


@pytest.mark.parametrize('channels, with_u, how', [
    (256, True, ResidualNorm(0.3)), (256, False, ResidualNorm(0.3, drops_first=True)), (64, True, ResidualNorm(0.3)),
])
def test_lowers_for_cuda(channels, with_u, how):
    arguments, g, keys = example(2, 12, channels, with_u)

    def gradients(g, *arguments):
        return both(residual_norm, how, g, *arguments, keys=keys)

    text = jax.jit(gradients).trace(g, *arguments).lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('custom_call @mosaic_gpu') == 2


def test_calls_that_the_kernel_cannot_serve_are_told_why():
    assert 'bfloat16' in why_not_residual_norm(jnp.float32, 256)
    assert 'multiples of 64' in why_not_residual_norm(jnp.bfloat16, 96)
    assert 'up to 512' in why_not_residual_norm(jnp.bfloat16, 1024)
