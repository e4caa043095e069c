"""gelu, silu and their derivatives, compared with Python's math module."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.model.gelu import gelu
from ssd4rec_jax.model.silu import silu

POINTS = np.concatenate([np.linspace(-12, 12, 97), [-40, 40]])


def by_hand_gelu(x):
    return 0.5 * x * math.erfc(-x / math.sqrt(2))


def by_hand_silu(x):
    return x / (1 + math.exp(-x)) if x > 0 else x * math.exp(x) / (1 + math.exp(x))


@pytest.mark.parametrize('ours, by_hand', [(gelu, by_hand_gelu), (silu, by_hand_silu)])
def test_values_and_slopes(x64, ours, by_hand):
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(ours)))(jnp.asarray(POINTS))
    step = 1e-6
    np.testing.assert_allclose(value, [by_hand(x) for x in POINTS], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        slope, [(by_hand(x + step) - by_hand(x - step)) / (2 * step) for x in POINTS], rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize('ours, by_hand', [(gelu, by_hand_gelu), (silu, by_hand_silu)])
def test_float32_stays_finite_where_its_exponential_does_not(ours, by_hand):
    value, slope = jax.vmap(jax.value_and_grad(ours))(jnp.asarray([-1e4, -200.0, 200.0, 1e4], jnp.float32))
    np.testing.assert_array_equal(value, [0, 0, 200, 1e4])
    np.testing.assert_array_equal(slope, [0, 0, 1, 1])


@pytest.mark.parametrize('ours, by_hand', [(gelu, by_hand_gelu), (silu, by_hand_silu)])
def test_bfloat16_is_rounded_at_the_end(ours, by_hand):
    x = jnp.asarray(np.linspace(-3, 3, 49), jnp.bfloat16)
    value, pull = jax.vjp(ours, x)
    (slope,) = pull(jnp.ones_like(x))
    assert value.dtype == slope.dtype == jnp.bfloat16
    exact = np.array([by_hand(float(v)) for v in x])
    np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=2.0**-7)
    exact = np.array([(by_hand(float(v) + 1e-6) - by_hand(float(v) - 1e-6)) / 2e-6 for v in x])
    np.testing.assert_allclose(np.asarray(slope, np.float64), exact, rtol=2.0**-7, atol=1e-4)
