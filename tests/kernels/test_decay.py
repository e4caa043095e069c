"""The sums over dt * A that the implementations share, against NumPy in float64."""
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ssd.decay import FLOOR, exact_parts, log_decay, log_decay_gradient, vanishes


def test_the_logarithm_has_a_floor_and_keeps_nan():
    dt = jnp.asarray([0.0, 1.0, 3e38, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(log_decay(dt, jnp.float32(-3)), np.float32([0, -3, FLOOR, np.nan]))


@pytest.mark.parametrize('tokens', [1, 7, 32, 128])
def test_sums_of_the_coarse_part_are_exact_in_float32(tokens):
    a = -np.exp(np.random.default_rng(0).uniform(np.log(1e-9), np.log(-FLOOR), (50, tokens))).astype(np.float32)
    a[0] = FLOOR
    coarse, fine = (np.asarray(part) for part in exact_parts(jnp.asarray(a), tokens))
    np.testing.assert_array_equal(coarse + fine, a)
    for order in (slice(None), slice(None, None, -1)):
        sums = np.cumsum(coarse[:, order], axis=1, dtype=np.float32)
        np.testing.assert_array_equal(sums, np.cumsum(coarse[:, order], axis=1, dtype=np.float64))
    # What rounding does to the sums of the fine part is below float32's precision of a decay of 1.
    rounding = np.cumsum(fine, axis=1, dtype=np.float32) - np.cumsum(fine, axis=1, dtype=np.float64)
    assert np.abs(rounding).max() < 6e-8


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_a_decay_vanishes_where_adding_it_to_1_changes_nothing(x64, dtype):
    a = np.linspace(-60, 0, 1201, dtype=dtype)
    gone = np.asarray(vanishes(jnp.asarray(a)))
    assert gone.dtype == bool and (1 + np.exp(a[gone]) == 1).all()
    assert (np.exp(a[~gone]) > np.finfo(dtype).eps / 20).all()


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('size', [1, 2, 7, 32])
def test_the_gradient_sums_ahead_up_to_a_token_that_does_not_count(x64, size, reverse):
    rng = np.random.default_rng(size)
    ds, counts = rng.normal(size=(20, size)), (rng.random((20, size)) < 0.8).astype(float)
    token = jnp.arange(size)
    ours = log_decay_gradient(
        jnp.asarray(ds), jnp.asarray(counts), token, size, reverse=reverse, roll=functools.partial(jnp.roll, axis=1)
    )
    order = range(size - 1, -1, -1) if reverse else range(size)
    expected = np.zeros_like(ds)
    for row in range(len(ds)):
        for n, k in enumerate(order):
            if counts[row, k]:
                for place, i in enumerate(list(order)[n:]):
                    if place and not counts[row, i]:
                        break
                    expected[row, k] += ds[row, i]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)
