"""The Mosaic GPU kernels of the feed-forward network, interpreted beside the definition in float32."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.bench.around import feed_forward_network
from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.feed_forward import FeedForward, Parameters, feed_forward, why_not_feed_forward

MISSING = why_not_feed_forward(jnp.bfloat16, 256, 1024)
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def both(f, how, h, parameters, keys, g):
    """(the value, its gradients by h and the parameters) for a cotangent."""
    y, pull = jax.vjp(lambda *a: f(how, *a, keys), h, parameters)
    return y, *pull(g)


def example(rows, tokens, channels, dropout):
    """(h, parameters, keys, the result's cotangent)."""
    rng = np.random.default_rng(0)
    h, g = (jnp.asarray(rng.normal(size=(rows, tokens, channels)), jnp.bfloat16) for _ in range(2))
    hidden = 4 * channels
    w1 = rng.normal(size=(channels, hidden)) / channels**0.5
    w2 = rng.normal(size=(hidden, channels)) / hidden**0.5
    b1, b2, scale, shift = (rng.normal(size=n) for n in (hidden, channels, channels, channels))
    parameters = Parameters(*(jnp.asarray(a, jnp.float32) for a in (w1, b1, w2, b2, scale, shift)))
    keys = tuple(jnp.asarray(rng.integers(0, 2**32, size=(rows, tokens), dtype=np.uint32)) for _ in range(2))
    return h, parameters, keys if dropout else None, g


def assert_near(ours, theirs):
    """Within two roundings to bfloat16 of the largest entry, and NaN at the same places."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=np.nanmax(np.abs(b), initial=0) / 128)


@pytest.mark.parametrize('shape, dropout', [
    ((2, 50, 64), 0.3),
    ((1, 130, 64), 0.0),  # The tokens of three warpgroups, in programs of two.
    pytest.param((1, 70, 256), 0.3, marks=pytest.mark.slow),
])
def test_values_and_gradients(shape, dropout):
    arguments = h, parameters, keys, g = example(*shape, dropout)
    made = both(feed_forward, FeedForward(dropout, interpret=True), *arguments)
    assert made[0].dtype == made[1].dtype == jnp.bfloat16
    wide = h.astype(jnp.float32), parameters, keys, g.astype(jnp.float32)
    assert_near(made, both(feed_forward_network, FeedForward(dropout), *wide))


def test_warpgroups_wait_for_one_another(monkeypatch):
    watched = functools.partial(tiles.plgpu.InterpretGPUParams, detect_races=True)  # A race raises an error.
    monkeypatch.setattr(tiles.plgpu, 'InterpretGPUParams', watched)
    jax.block_until_ready(both(feed_forward, FeedForward(interpret=True), *example(1, 128, 64, 0.0)))


def test_a_token_that_is_not_finite_spoils_no_other_token():
    h, parameters, keys, g = example(1, 8, 64, 0.0)
    h = h.at[0, 2, 5].set(jnp.inf).at[0, 5, 7].set(jnp.nan)
    y, dh, gradients = both(feed_forward, FeedForward(interpret=True), h, parameters, keys, g)
    wide = h.astype(jnp.float32), parameters, keys, g.astype(jnp.float32)
    expected, expected_dh, _ = both(feed_forward_network, FeedForward(), *wide)
    assert_near((y, dh), (expected, expected_dh))
    assert np.isnan(expected).any(axis=2)[0].tolist() == [False, False, True, False, False, True, False, False]
    finite = {name for name, a in gradients._asdict().items() if not np.isnan(a).any()}
    assert finite == {'shift'}  # The only one that the values do not enter.


def test_lowers_for_cuda():
    arguments = example(2, 100, 256, 0.3)
    text = jax.jit(lambda *a: both(feed_forward, FeedForward(0.3), *a)).trace(*arguments).lower(
        lowering_platforms=('cuda',)
    ).as_text()
    assert text.count('custom_call @mosaic_gpu') == 2


def test_calls_that_the_kernels_cannot_serve_are_told_why():
    assert 'bfloat16' in why_not_feed_forward(jnp.float32, 256, 1024)
    assert 'multiples of 64' in why_not_feed_forward(jnp.bfloat16, 96, 384)
    assert 'up to 256' in why_not_feed_forward(jnp.bfloat16, 512, 2048)
    assert 'four times' in why_not_feed_forward(jnp.bfloat16, 64, 128)
