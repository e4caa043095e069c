"""Mamba's selective scan and its readout over several chunks and tiles, against the recurrence token by token."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.peers import mamba1
from tests.packed import pack

LENGTHS = [[9, 1, 4, 2], [17]]
TOKENS, SEGMENTS, CHANNELS, STATES = 21, 5, 3, 2
LAYOUT = Layout.of(pack(
    [[(10 * r + s, [1] * n) for s, n in enumerate(row)] for r, row in enumerate(LENGTHS)],
    tokens=TOKENS, segments=SEGMENTS,
))


def arrays():
    """x, dt, A, B, C of selective_scan and a cotangent of its y."""
    rng = np.random.default_rng(0)
    of_tokens = len(LENGTHS), TOKENS
    x, g = rng.normal(size=(2, *of_tokens, CHANNELS))
    dt, A = rng.uniform(0.1, 1, (*of_tokens, CHANNELS)), -rng.uniform(0.5, 2, (CHANNELS, STATES))
    B, C = rng.normal(size=(2, *of_tokens, STATES))
    return tuple(map(jnp.asarray, (x, dt, A, B, C))), jnp.asarray(g)


def recurrence(x, dt, A, B, C):
    """y [rows, tokens, channels], zero in padding."""
    y = jnp.zeros_like(x)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            h = jnp.zeros_like(A)
            for t in range(at, at + length):
                h = jnp.exp(dt[row, t, :, None] * A) * h + (dt[row, t] * x[row, t])[:, None] * B[row, t]
                y = y.at[row, t].set(h @ C[row, t])
            at += length
    return y


def at_ends(a):
    """[rows, segments, ...] of the last token of each history, zero in empty slots."""
    real = jnp.asarray(LAYOUT.lengths > 0)[..., None]
    return jnp.where(real, jnp.take_along_axis(a, LAYOUT.ends[..., None], axis=1), 0)


def scan(x, dt, A, B, C):
    return jnp.where(LAYOUT.segment_ids[..., None] > 0, mamba1.selective_scan(x, dt, A, B, C, LAYOUT.position == 0), 0)


def readout(x, dt, A, B, C):
    return mamba1.selective_readout(x, dt, A, B, at_ends(C), LAYOUT.slot)


@pytest.mark.parametrize('ours, theirs', [(scan, recurrence), (readout, lambda *a: at_ends(recurrence(*a)))])
@pytest.mark.parametrize('chunk, tile', [
    pytest.param(4, 8, marks=pytest.mark.slow), (7, 42), pytest.param(64, 512, marks=pytest.mark.slow),
])
def test_values_and_every_gradient_are_those_of_the_recurrence(x64, monkeypatch, ours, theirs, chunk, tile):
    """Chunks and tiles that end within histories and padding, exactly at the end, and beyond it."""
    monkeypatch.setattr(mamba1, 'CHUNK', chunk)
    monkeypatch.setattr(mamba1, 'TILE', tile)
    inputs, g = arrays()
    expected, backward = jax.vjp(theirs, *inputs)
    found, our_backward = jax.vjp(jax.jit(lambda *a: ours(*a)), *inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    cotangent = g[:, :found.shape[1]]
    for name, a, b in zip(('x', 'dt', 'A', 'B', 'C'), our_backward(cotangent), backward(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, np.abs(b).max()), err_msg=name)
