"""The short convolution and its silu, compared with numpy.convolve history by history."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pallas_kernels.target import tracing_for
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.short_conv import parts_of_short_convs, short_conv, short_convs
from tests.packed import pack

LENGTHS = [[1, 2, 3, 4, 5], [9, 1, 1]]


def layout(tokens=16):
    rows = [[(10 * r + s, [1] * n) for s, n in enumerate(row)] for r, row in enumerate(LENGTHS)]
    return Layout.of(pack(rows, tokens=tokens, segments=5))


def oracle(x, kernel, bias, reverse):
    """Convolves each history alone, with zeros before its start; the token's own tap comes last, as in torch."""
    out = np.array(np.broadcast_to(bias, x.shape)) + x * kernel[-1]  # The value in padding is arbitrary.
    for r, row in enumerate(LENGTHS):
        at = 0
        for n in row:
            piece = x[r, at:at + n][::-1] if reverse else x[r, at:at + n]
            full = np.stack([np.convolve(piece[:, c], kernel[::-1, c])[:n] for c in range(x.shape[-1])], -1) + bias
            out[r, at:at + n] = full[::-1] if reverse else full
            at += n
    return out / (1 + np.exp(-out))


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('width', [1, 2, 4, 20])
def test_equals_numpy_convolve_of_each_history_alone(x64, reverse, width):
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(2, 16, 3)), rng.normal(size=(width, 3)), rng.normal(size=3)
    ours = short_conv(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(bias), layout(), reverse=reverse)
    real = layout().segment_ids > 0
    np.testing.assert_allclose(ours[real], oracle(x, kernel, bias, reverse)[real], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('platform, reverse', [('cpu', False), ('cpu', True), ('gpu', True)])
def test_gradients_equal_finite_differences(x64, platform, reverse):
    rng = np.random.default_rng(1)
    args = tuple(jnp.asarray(rng.normal(size=s)) for s in [(2, 16, 3), (4, 3), (3,)])
    with tracing_for(platform):
        check_grads(lambda *a: short_conv(*a, layout(), reverse=reverse), args, order=1, modes=['rev'])


def test_parts_on_a_gpu_are_those_of_the_whole(x64):
    rng = np.random.default_rng(3)
    args = tuple(jnp.asarray(rng.normal(size=s)) for s in [(2, 16, 8), (4, 6), (6,)])
    parts = tuple(tuple(jnp.asarray(rng.normal(size=(2, 16, n))) for n in (3, 2, 1)) for _ in range(2))
    gs = parts, jnp.asarray(rng.normal(size=(2, 16, 2)))
    made = []
    for platform in ('cpu', 'gpu'):
        with tracing_for(platform):
            y, pull = jax.vjp(
                lambda *a: parts_of_short_convs(*a, layout(), (False, True), (3, 2, 1), fused=False), *args
            )
            made.append((y, pull(gs)))
        np.testing.assert_array_equal(y[1], args[0][..., 6:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), *made)


def test_gradients_of_both_directions_are_the_sums_of_each(x64):
    rng = np.random.default_rng(2)
    args = tuple(jnp.asarray(rng.normal(size=s)) for s in [(2, 16, 3), (4, 3), (3,)])
    gs = tuple(jnp.asarray(rng.normal(size=(2, 16, 3))) for _ in range(2))
    both, pull = jax.vjp(lambda *a: short_convs(*a, layout(), (False, True)), *args)
    alone = [jax.vjp(lambda *a, r=reverse: short_conv(*a, layout(), reverse=r), *args) for reverse in (False, True)]
    np.testing.assert_array_equal(jnp.stack(both), jnp.stack([y for y, _ in alone]))
    grads_alone = [pull_one(g) for (_, pull_one), g in zip(alone, gs, strict=True)]
    for ours, *each in zip(pull(gs), *grads_alone, strict=True):
        np.testing.assert_allclose(ours, sum(each), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('reverse', [False, True])
def test_nan_of_one_history_reaches_no_other(reverse):
    x = jnp.ones((2, 16, 3)).at[0, 1:3].set(jnp.nan).at[1, 11:].set(jnp.nan)  # a whole history and padding
    kernel, bias = jnp.ones((4, 3)), jnp.zeros(3)

    def loss(x):
        y = short_conv(x, kernel, bias, layout(), reverse=reverse)
        return jnp.sum(jnp.where(jnp.isnan(x), 0.0, y)), y

    grads, y = jax.grad(loss, has_aux=True)(x)
    clean = ~np.isnan(np.asarray(x))
    assert np.isfinite(np.asarray(y)[clean]).all()
    assert np.isfinite(np.asarray(grads)[clean]).all()
