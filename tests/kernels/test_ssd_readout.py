"""ssd_readout against ssd_scan read at each segment's last token, values and gradients."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import running_sum, ssd_readout, ssd_scan, ssd_weights_from_start, tracing_for
from tests.kernels import wide

LENGTHS = [[1, 2, 40, 3], [7, 20]]
SLOTS = 6
HEADS, HEADDIM, GROUPS, STATE = 4, 3, 2, 5


def problem(dtype=np.float64, lengths=LENGTHS, tokens=50):
    """(x, dt, A, B, C at every token), slot of each token, first and last token of each slot, real slots."""
    rng = np.random.default_rng(0)
    rows = len(lengths)
    slot = np.full((rows, tokens), SLOTS, np.int32)
    first, last, real = (np.zeros((rows, SLOTS), t) for t in (np.int32, np.int32, bool))
    for r, row in enumerate(lengths):
        at = 0
        for s, n in enumerate(row):
            slot[r, at:at + n] = s
            first[r, s], last[r, s], real[r, s] = at, at + n - 1, True
            at += n
    shape = rows, tokens
    arrays = (
        rng.normal(size=(*shape, HEADS, HEADDIM)), rng.uniform(0.01, 0.5, (*shape, HEADS)), -rng.uniform(0.5, 4, HEADS),
        rng.normal(size=(*shape, GROUPS, STATE)), rng.normal(size=(*shape, GROUPS, STATE)),
    )
    return tuple(jnp.asarray(a, dtype) for a in arrays), jnp.asarray(slot), first, last, real


def rows_at(a, index):
    return jnp.stack([a[r, index[r]] for r in range(len(index))])


@pytest.mark.parametrize('reverse', [False, True])
def test_equals_the_scan_at_the_token_that_reads_last(x64, reverse):
    arrays, slot, first, last, real = problem()
    at = first if reverse else last
    cotangent = jnp.where(real[..., None, None], np.random.default_rng(1).normal(size=(2, SLOTS, HEADS, HEADDIM)), 0)

    def by_readout(x, dt, A, B, C):
        return ssd_readout(x, dt, A, B, rows_at(C, at), slot, reverse=reverse)

    def by_scan(x, dt, A, B, C):
        y = ssd_scan(x, dt, A, B, C, segment_ids=slot, reverse=reverse, implementation='reference')
        return jnp.where(real[..., None, None], rows_at(y, at), 0)

    ours, our_vjp = jax.vjp(jax.jit(by_readout), *arrays)
    theirs, their_vjp = jax.vjp(jax.jit(by_scan), *arrays)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())
    for a, b in zip(our_vjp(cotangent), their_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, cotangent, *arrays):
    """(the function's value, its gradient by each array)."""
    value, vjp = jax.vjp(function, *arrays)
    return value, *vjp(cotangent)


def wide_problem(case):
    """problem() of the inputs of wide.py: their padding is of no slot."""
    arrays, _ = wide.inputs(case)
    ids = np.asarray(wide.IDS)
    slot = np.where(ids == 0, SLOTS, ids - 1).astype(np.int32)
    real = np.isin(np.arange(SLOTS), slot[0]), np.isin(np.arange(SLOTS), slot[1])
    first, last = (np.stack([[f(row, s) for s in range(SLOTS)] for row in slot]) for f in (
        lambda row, s: np.argmax(row == s), lambda row, s: len(row) - 1 - np.argmax(row[::-1] == s)
    ))
    return tuple(arrays[k] for k in ('x', 'dt', 'A', 'B', 'C')), jnp.asarray(slot), first, last, np.stack(real)


@pytest.mark.parametrize('case,reverse', wide.DIRECTIONS)
def test_float32_equals_float64_from_slow_decay_to_underflow(x64, case, reverse):
    arrays, slot, first, last, real = wide_problem(case)
    at = first if reverse else last
    shape = (*real.shape, *arrays[0].shape[2:])
    cotangent = jnp.where(real[..., None, None], np.random.default_rng(1).normal(size=shape), 0).astype('float32')

    def readout(x, dt, A, B, C):
        return ssd_readout(x, dt, A, B, rows_at(C, at), slot, reverse=reverse)

    def by_scan(x, dt, A, B, C):
        y = ssd_scan(x, dt, A, B, C, segment_ids=slot, reverse=reverse, implementation='reference')
        return jnp.where(real[..., None, None], rows_at(y, at), 0)

    ours = value_and_gradients(readout, *(a.astype('float32') for a in (cotangent, *arrays)))
    theirs = value_and_gradients(by_scan, cotangent.astype('float64'), *arrays)
    for name, a, b in zip(('y', 'x', 'dt', 'A', 'B', 'C'), ours, theirs, strict=True):
        assert wide.error(a, b) < 1e-5, name


@pytest.mark.parametrize('case', ['dt from 1e-7 to 80', 'A dt beyond float32', 'moderate dt'])
def test_weights_from_start_equal_float64_from_slow_decay_to_underflow(x64, case):
    """Values and gradients, the oracle's from differences of the sums of whole rows in float64."""
    (_, dt, A, *_), slot, *_ = wide_problem(case)
    same = (slot[:, 1:] == slot[:, :-1])[..., None]
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=dt.shape).astype('float32'))

    def oracle(dt, A):
        a = jnp.maximum(dt * A, -1e3)  # exp(-1000) is 0 in float64 too
        starts = jnp.pad(~same, ((0, 0), (1, 0), (0, 0)), constant_values=True)
        before = jnp.cumsum(a, axis=1) - a
        at_start = jax.lax.cummin(jnp.where(starts, before, 0.0), axis=1)
        return jnp.exp(before - at_start) * dt

    def weights(dt, A):
        return ssd_weights_from_start(dt, A, slot)

    ours = value_and_gradients(weights, cotangent, dt.astype('float32'), A.astype('float32'))
    theirs = value_and_gradients(oracle, cotangent.astype('float64'), dt, A)
    for name, a, b in zip(('weights', 'dt', 'A'), ours, theirs, strict=True):
        assert wide.error(a, b) < 1e-5, name


@pytest.mark.parametrize('reverse', [False, True])
def test_nan_in_one_segment_or_padding_reaches_no_other(reverse):
    (x, dt, A, B, C), slot, first, last, real = problem(np.float32)
    dirty = np.isin(np.asarray(slot), [1, SLOTS])
    at = first if reverse else last
    clean_slots = real & (np.arange(SLOTS) != 1)

    def run(x, dt, B):
        y = ssd_readout(x, dt, A, B, rows_at(C, at), slot, reverse=reverse)
        return jnp.sum(jnp.where(clean_slots[..., None, None], y, 0.0)), y

    poisoned = [jnp.where(dirty.reshape(*dirty.shape, *[1] * (a.ndim - 2)), jnp.nan, a) for a in (x, dt, B)]
    grads, y = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(*poisoned)
    expected, clean_y = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(x, dt, B)
    np.testing.assert_array_equal(np.asarray(y)[clean_slots], np.asarray(clean_y)[clean_slots])
    for a, b in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[~dirty], np.asarray(b)[~dirty])


def summed_token_by_token(a, run, reverse):
    """running_sum in float64, as its docstring says it."""
    total = np.zeros(a.shape, np.float64)
    order = range(a.shape[1])
    for row in range(a.shape[0]):
        before = None
        for t in reversed(order) if reverse else order:
            joined = before is not None and run[row, t] == run[row, before]
            total[row, t] = a[row, t] + (total[row, before] if joined else 0)
            before = t
    return total


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('length, chunk_size', [(1, 4), (4, 4), (5, 4), (47, 4), (47, 32), (47, 64)])
def test_running_sums_equal_a_loop_over_tokens_on_every_platform(platform, reverse, length, chunk_size):
    """Runs lie within a chunk, over many, from and to edges of chunks. The gradient is the sum from the other side."""
    rng = np.random.default_rng(2)
    a, g = rng.normal(size=(2, 2, length, 3))
    ids = np.repeat(np.arange(8), [2, 1, 1, 4, 20, 3, 12, 4])[:length]
    run = np.stack([ids, np.zeros_like(ids)])

    @jax.jit
    def both(a, g):
        total, vjp = jax.vjp(lambda a: running_sum(a, jnp.asarray(run), reverse=reverse, chunk_size=chunk_size), a)
        return total, *vjp(g)

    with tracing_for(platform):
        total, gradient = both(a.astype(np.float32), g.astype(np.float32))
    np.testing.assert_allclose(total, summed_token_by_token(a, run, reverse), rtol=0, atol=2e-5)
    np.testing.assert_allclose(gradient, summed_token_by_token(g, run, not reverse), rtol=0, atol=2e-5)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('reverse', [False, True])
def test_nan_stays_in_its_run(platform, reverse):
    run = jnp.asarray(np.repeat(np.arange(6), [3, 1, 30, 2, 5, 6]), jnp.int32)[None]
    bad = np.asarray(run[0] == 2)
    a = np.random.default_rng(3).normal(size=(1, 47, 2)).astype(np.float32)

    def both(a):
        total, vjp = jax.vjp(lambda a: running_sum(a, run, reverse=reverse, chunk_size=4), a)
        return total, *vjp(a)

    with tracing_for(platform):
        clean, dirty = (jax.jit(both)(x) for x in (a, np.where(bad[None, :, None], np.nan, a)))
    for expected, got in zip(clean, dirty, strict=True):
        assert np.isnan(got[0, bad]).all()
        np.testing.assert_array_equal(got[0, ~bad], expected[0, ~bad])


def test_float32_stays_exact_over_a_hundred_thousand_tokens():
    """Slow decay over one long segment behind another: differences of row-long sums would lose four digits here."""
    length = 100_000
    rng = np.random.default_rng(0)
    lengths = [20_000, length]
    tokens = sum(lengths)
    dt, A = rng.uniform(1e-3, 2e-3, tokens), -1e-2
    x, B, C = rng.normal(size=tokens), rng.uniform(0.5, 1.5, tokens), rng.uniform(0.5, 1.5, 2)
    stop = np.cumsum(lengths)
    expected = []
    for k, (start, end) in enumerate(zip(stop - lengths, stop, strict=True)):
        decay = np.append(np.cumsum((dt * A)[start:end][::-1])[::-1][1:], 0.0)
        expected.append(C[k] * np.sum(np.exp(decay) * (dt * B * x)[start:end]))
    as_float32 = lambda a, *shape: jnp.asarray(a, jnp.float32).reshape(shape)  # noqa: E731
    y = jax.jit(ssd_readout)(
        as_float32(x, 1, -1, 1, 1), as_float32(dt, 1, -1, 1), as_float32(A, 1), as_float32(B, 1, -1, 1, 1),
        as_float32(C, 1, 2, 1, 1), jnp.asarray(np.repeat([0, 1], lengths), jnp.int32)[None],
    )
    scale = np.abs(C * np.sqrt([np.sum((dt * B * x)[a:b] ** 2) for a, b in zip(stop - lengths, stop, strict=True)]))
    assert (np.abs(np.asarray(y).ravel() - expected) < 1e-4 * scale).all()


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_equal_steps_whose_rounding_does_not_cancel_stay_exact(platform):
    with tracing_for(platform):
        for length, bound in ((8_192, 1e-6), (100_000, 1e-5)):
            step = np.float32(0.0013)
            run = jnp.zeros((1, length), jnp.int32)
            found = jax.jit(lambda a, run=run: running_sum(a, run, reverse=False))(jnp.full((1, length, 1), step))
            np.testing.assert_allclose(found[0, :, 0], np.float64(step) * np.arange(1, length + 1), rtol=bound)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_running_sums_and_weights_stay_exact_over_a_hundred_thousand_tokens(platform):
    """What all prefixes in one pass are read with. Behind a segment of 10,000 times its size, so that differences of
    row-long sums would lose four digits."""
    rng = np.random.default_rng(1)
    lengths = [20_000, 100_000]
    slot = jnp.asarray(np.repeat([0, 1], lengths), jnp.int32)[None]
    size = np.repeat([1e4, 1.0], lengths)
    dt = (size * rng.uniform(1e-3, 2e-3, len(size))).astype(np.float32)
    term = (size * rng.normal(size=len(size))).astype(np.float32)
    with tracing_for(platform):
        weights = jax.jit(lambda *a: ssd_weights_from_start(*a))(dt[None, :, None], jnp.asarray([-1e-2]), slot)
        forward, backward = (
            np.asarray(jax.jit(lambda a, r=r: running_sum(a, slot, reverse=r))(term[None, :, None]))[0, :, 0]
            for r in (False, True)
        )
    for start, stop in ((0, lengths[0]), (lengths[0], sum(lengths))):
        own = np.float64(dt[start:stop])
        expected = np.exp(-1e-2 * (np.cumsum(own) - own)) * own
        np.testing.assert_allclose(np.asarray(weights)[0, start:stop, 0], expected, rtol=2e-5, atol=1e-30)
        own, tolerance = np.float64(term[start:stop]), 1e-5 * size[start] * np.sqrt(stop - start)
        np.testing.assert_allclose(forward[start:stop], np.cumsum(own), rtol=0, atol=tolerance)
        np.testing.assert_allclose(backward[start:stop], np.cumsum(own[::-1])[::-1], rtol=0, atol=tolerance)
