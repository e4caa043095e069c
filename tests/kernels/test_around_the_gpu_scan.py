"""The Mosaic GPU kernels around pallas_gpu, the short convolution and the gated norms, interpreted beside plain sums.

The reference is written in float32 from the definitions, a token at a time where tokens read one another.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.bench import around
from pallas_kernels.ssd.gpu import gated_norm, short_conv

MISSING = short_conv.why_not_short_convs(jnp.bfloat16, 64, 4, (64,))
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def reaches(lengths):
    """Histories of these lengths, which fill a row."""
    position = np.concatenate([np.arange(n) for n in lengths])
    remaining = np.concatenate([np.arange(n)[::-1] for n in lengths])
    mirror = np.arange(sum(lengths)) - position + remaining
    return around.Histories(*(jnp.asarray(a[None], jnp.int32) for a in (position, remaining, mirror)))


def assert_near(ours, theirs):
    """Within two roundings to bfloat16 of the largest entry, and NaN at the same places."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert a.shape == b.shape
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=np.nanmax(np.abs(b)) / 128)


@pytest.mark.parametrize('lengths, widths, directions, bad', [
    ([1, 2, 5, 60, 30], (32, 16), (False, True), False),
    pytest.param([70], (128, 64), (True,), False, marks=pytest.mark.slow),
    pytest.param([3, 90, 40], (16, 16), (False, True), True, marks=pytest.mark.slow),
])
def test_short_convolution_and_its_gradients(lengths, widths, directions, bad):
    rng = np.random.default_rng(0)
    histories = reaches(lengths)
    channels, rest = sum(widths), 8
    x = jnp.asarray(rng.normal(size=(1, sum(lengths), channels + rest)), jnp.bfloat16)
    taps = jnp.asarray(rng.normal(size=(5, channels)), jnp.float32)
    columns = *[channels] * len(directions), rest
    gs = [jnp.asarray(rng.normal(size=(1, sum(lengths), n)), jnp.bfloat16) for n in columns]
    if bad:  # A history of NaN reaches no other one.
        x = x.at[0, :lengths[0]].set(jnp.nan)

    def ours(x, taps):
        how = short_conv.Convolution(directions, widths, interpret=True)
        made, rest = short_conv.short_convs(how, x, taps, *histories[:2])
        return [*(jnp.concatenate(parts, axis=-1) for parts in made), rest]

    y, pull = jax.vjp(ours, x, taps)
    expected, expected_pull = jax.vjp(
        lambda x, taps: [*around.convolutions(x[..., :channels], taps, histories, directions), x[..., channels:]],
        x.astype(jnp.float32), taps,
    )
    (dx, dtaps), (expected_dx, expected_dtaps) = pull(gs), expected_pull([g.astype(jnp.float32) for g in gs])
    assert_near((y, dx), (expected, expected_dx))
    if not bad:
        assert_near(dtaps, expected_dtaps)


@pytest.mark.parametrize('elsewhere', [(False, True), pytest.param((False,), marks=pytest.mark.slow)])
def test_gated_norms_and_their_gradients(elsewhere):
    rng = np.random.default_rng(1)
    other = jnp.asarray([[2, 1, 0, 4, 3, 5], [5, 4, 3, 2, 1, 0]], jnp.int32)
    scales = (1.0, 0.3)[:len(elsewhere)]

    def some(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    ys, z, g = tuple(some(2, 6, 128) for _ in elsewhere), some(2, 6, 128), some(2, 6, 128)
    weight = jnp.asarray(rng.normal(size=128), jnp.float32)

    how = gated_norm.GatedNorm(scales, elsewhere, 1e-5, interpret=True)
    made, pull = jax.vjp(lambda *a: gated_norm.gated_norms(how, *a, other), ys, z, weight)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (ys, z, weight))
    expected, expected_pull = jax.vjp(lambda *a: around.norms(how, *a, other), *wide)
    assert_near((made, pull(g)), (expected, expected_pull(g.astype(jnp.float32))))


@pytest.mark.parametrize('widths', [(512, 64, 64), (64, 32), (16, 16)])
def test_short_convolution_lowers_for_cuda(widths):
    x, taps = jnp.zeros((2, 70, sum(widths)), jnp.bfloat16), jnp.zeros((5, sum(widths)))
    reach = jnp.zeros((2, 70), jnp.int32)

    def both(x, taps):
        how = short_conv.Convolution((False, True), widths)
        y, pull = jax.vjp(lambda *a: short_conv.short_convs(how, *a, reach, reach), x, taps)
        return pull(y)

    text = jax.jit(both).trace(x, taps).lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('custom_call @mosaic_gpu') == 2


def test_gated_norms_lower_for_cuda():
    y, other = jnp.zeros((2, 12, 512), jnp.bfloat16), jnp.zeros((2, 12), jnp.int32)

    def both(y, z, weight):
        how = gated_norm.GatedNorm((1.0, 0.1), (False, True), 1e-5)
        m, pull = jax.vjp(lambda y, z, weight: gated_norm.gated_norms(how, (y, y), z, weight, other), y, z, weight)
        return pull(m)

    text = jax.jit(both).trace(y, y, jnp.ones(512)).lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('custom_call @mosaic_gpu') == 2


def test_calls_that_the_kernels_cannot_serve_are_told_why():
    assert 'bfloat16' in short_conv.why_not_short_convs(jnp.float32, 64, 4, (64,))
    assert 'at most 5 taps' in short_conv.why_not_short_convs(jnp.bfloat16, 64, 6, (64,))
    assert 'multiples of 16' in short_conv.why_not_short_convs(jnp.bfloat16, 72, 4, (64, 8))
    assert 'copies 64 columns at a time and x has 96' in short_conv.why_not_short_convs(jnp.bfloat16, 96, 4, (64,))
    assert short_conv.why_not_short_convs(jnp.bfloat16, 96, 4, (64, 16)) is None
    assert 'multiples of 128' in gated_norm.why_not_gated_norms(jnp.bfloat16, 96)
    assert 'bfloat16' in gated_norm.why_not_gated_norms(jnp.float32, 128)
