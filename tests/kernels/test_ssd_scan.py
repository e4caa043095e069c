"""ssd_scan: one body for every implementation, values and the gradient of every input."""
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import ssd_scan
from pallas_kernels.ssd.api import IMPLEMENTATIONS

GOLDEN = Path(__file__).parent.parent / 'golden'
INPUTS = ('x', 'dt', 'A', 'B', 'C', 'D')
implementations = pytest.mark.parametrize('implementation', list(IMPLEMENTATIONS))


def inputs(seed=0, batch=2, length=45, heads=4, headdim=3, groups=2, state=5, dtype=np.float64):
    """(arguments by name, cotangent of y)."""
    rng = np.random.default_rng(seed)
    arrays = dict(
        x=rng.normal(size=(batch, length, heads, headdim)), dt=rng.uniform(0.01, 0.5, (batch, length, heads)),
        A=-rng.uniform(0.5, 4, heads), B=rng.normal(size=(batch, length, groups, state)),
        C=rng.normal(size=(batch, length, groups, state)), D=rng.normal(size=heads),
    )
    return {k: jnp.asarray(v, dtype) for k, v in arrays.items()}, jnp.asarray(rng.normal(size=arrays['x'].shape), dtype)


def segments(*rows):
    """segment ids from lengths: 1, 2, ... in each row."""
    return jnp.asarray([np.repeat(np.arange(1, len(r) + 1), r) for r in rows], jnp.int32)


def value_and_gradients(arrays, cotangent, segment_ids=None, **kwargs):
    """(y, {input: gradient}); compiled once for all calls of one shape and one set of options."""
    return _value_and_gradients(arrays, cotangent, segment_ids, tuple(sorted(kwargs.items())))


@functools.partial(jax.jit, static_argnums=3)
def _value_and_gradients(arrays, cotangent, segment_ids, options):
    y, vjp = jax.vjp(lambda a: ssd_scan(**a, segment_ids=segment_ids, **dict(options)), arrays)
    return y, vjp(cotangent.astype(y.dtype))[0]


def loop(arrays, ids, reverse=False):
    """The recurrence in NumPy, one head and one token at a time."""
    a = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
    y = np.zeros_like(a['x'])
    batch, length, heads, headdim = y.shape
    per_group = heads // a['B'].shape[2]
    order = range(length - 1, -1, -1) if reverse else range(length)
    for b in range(batch):
        for n in range(heads):
            before, h = None, None
            for t in order:
                if before is None or (ids is not None and ids[b, t] != ids[b, before]):
                    h = np.zeros((headdim, a['B'].shape[3]))
                dt, B, C = a['dt'][b, t, n], a['B'][b, t, n // per_group], a['C'][b, t, n // per_group]
                h = np.exp(dt * a['A'][n]) * h + dt * np.outer(a['x'][b, t, n], B)
                y[b, t, n] = h @ C + a['D'][n] * a['x'][b, t, n]
                before = t
    return y


def assert_close(ours, theirs, tolerance=1e-9):
    """To a share of the largest entry; where all are zero (A's gradient of one-token segments), to 1e-14."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(tolerance * np.abs(theirs).max(), 1e-14))


@pytest.mark.parametrize('chunk_size', [None, 7])
@pytest.mark.parametrize('name', ['ssd_segments', 'ssd_groups'])
@implementations
def test_golden_values_and_every_gradient(x64, implementation, name, chunk_size):
    golden = dict(np.load(GOLDEN / f'{name}.npz'))
    per_row = {k: jnp.asarray(golden[k] if k in 'AD' else golden[k][None]) for k in INPUTS}
    y, grads = value_and_gradients(
        per_row, jnp.asarray(golden['cotangent'][None]), segment_ids=jnp.asarray(golden['segment_ids'][None]),
        implementation=implementation, chunk_size=chunk_size,
    )
    assert_close(y[0], golden['y'])
    for k in INPUTS:
        assert_close(grads[k] if k in 'AD' else grads[k][0], golden[f'grad_{k}'])


CASES = {
    'one-token segments': (segments([1] * 45, [1] * 45), {}),
    'a segment over many chunks': (segments([2, 40, 3], [45]), {}),
    'boundaries on and off chunk edges': (segments([8, 8, 5, 3, 16, 5], [7, 1, 9, 15, 13]), {}),
    'an id that comes back': (jnp.asarray([[1] * 5 + [2] * 7 + [1] * 33, [3] * 20 + [1] * 25], jnp.int32), {}),
    'ids that fall': (segments([20, 25], [3, 42])[:, ::-1], {}),
    'all padding': (jnp.zeros((2, 45), jnp.int32), {}),
    'no ids': (None, {}),
    'length 1': (segments([1], [1]), dict(length=1)),
    'shorter than a chunk': (segments([2, 3], [5]), dict(length=5)),
    'one group': (segments([20, 25], [3, 42]), dict(groups=1)),
    'a group a head': (segments([20, 25], [3, 42]), dict(groups=4)),
    'wide state, one head': (segments([20, 25], [3, 42]), dict(heads=1, groups=1, headdim=16, state=32)),
}


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('case', list(CASES))
@implementations
def test_equals_the_loop_and_the_reference_gradients(x64, implementation, case, reverse):
    ids, shape = CASES[case]
    arrays, cotangent = inputs(**shape)
    y, grads = value_and_gradients(
        arrays, cotangent, segment_ids=ids, reverse=reverse, implementation=implementation, chunk_size=8
    )
    assert_close(y, loop(arrays, ids, reverse))
    _, expected = value_and_gradients(arrays, cotangent, segment_ids=ids, reverse=reverse, implementation='reference')
    for k in INPUTS:
        assert_close(grads[k], expected[k])


@implementations
def test_reverse_is_forward_on_flipped_inputs(x64, implementation):
    arrays, _ = inputs()
    ids = segments([20, 25], [3, 42])
    flipped = {k: v if k in 'AD' else v[:, ::-1] for k, v in arrays.items()}
    forward = ssd_scan(**flipped, segment_ids=ids[:, ::-1], implementation=implementation, chunk_size=8)
    backward = ssd_scan(**arrays, segment_ids=ids, reverse=True, implementation=implementation, chunk_size=8)
    assert_close(backward, forward[:, ::-1])


@pytest.mark.parametrize('scale', [1e3, 1e-8])
@implementations
def test_extreme_decays_neither_overflow_nor_give_nan_gradients(x64, implementation, scale):
    """|A dt| up to 2,000, where decays underflow to 0, and down to 1e-9."""
    arrays, cotangent = inputs()
    arrays['dt'] = arrays['dt'] * scale
    ids = segments([20, 25], [3, 42])
    y, grads = value_and_gradients(arrays, cotangent, segment_ids=ids, implementation=implementation, chunk_size=8)
    assert_close(y, loop(arrays, ids))
    _, expected = value_and_gradients(arrays, cotangent, segment_ids=ids, implementation='reference')
    for k in INPUTS:
        assert np.isfinite(grads[k]).all()
        # xla takes A's and dt's gradients as a difference in which the undecayed term cancels: of that size here.
        assert_close(grads[k], expected[k], 1e-7)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('bad', ['x', 'dt', 'B', 'C'])
@implementations
def test_nan_in_one_segment_or_padding_reaches_no_other(x64, implementation, bad, reverse):
    arrays, cotangent = inputs()
    ids = jnp.asarray([[1] * 10 + [2] * 9 + [3] * 20 + [0] * 6, [1] * 30 + [2] * 2 + [0] * 13], jnp.int32)
    poison = (np.asarray(ids) == 2) | (np.asarray(ids) == 0)
    dirty = dict(arrays)
    dirty[bad] = jnp.where(poison.reshape(*poison.shape, *[1] * (arrays[bad].ndim - 2)), jnp.nan, arrays[bad])
    cotangent = jnp.where(poison[..., None, None], 0.0, cotangent)
    kwargs = dict(segment_ids=ids, reverse=reverse, chunk_size=8, implementation=implementation)
    clean_y, clean_grads = value_and_gradients(arrays, cotangent, **kwargs)
    y, grads = value_and_gradients(dirty, cotangent, **kwargs)
    np.testing.assert_array_equal(np.asarray(y)[~poison], np.asarray(clean_y)[~poison])
    assert np.isnan(np.asarray(y)[poison]).any()  # and it does not vanish where it belongs
    for k in ('x', 'dt', 'B', 'C'):
        assert_close(np.asarray(grads[k])[~poison], np.asarray(clean_grads[k])[~poison])


@implementations
def test_a_token_that_is_not_finite_shows_in_its_segment_from_there_on(implementation):
    arrays, _ = inputs(dtype=np.float32)
    arrays['x'] = arrays['x'].at[0, 5].set(jnp.inf)
    y = np.asarray(ssd_scan(**arrays, segment_ids=segments([3, 9, 33], [45]), implementation=implementation))
    finite = np.isfinite(y).all((2, 3))
    assert finite[0, :5].all() and not finite[0, 5:12].any() and finite[0, 12:].all() and finite[1].all()


@implementations
def test_vmap_equals_a_loop_over_the_mapped_axis(x64, implementation):
    many = [inputs(seed)[0] for seed in range(3)]
    stacked = {k: jnp.stack([m[k] for m in many]) for k in INPUTS}
    ids = segments([20, 25], [3, 42])
    run = lambda a: ssd_scan(**a, segment_ids=ids, implementation=implementation, chunk_size=8)  # noqa: E731
    for k, y in enumerate(jax.vmap(run)(stacked)):
        assert_close(y, run(many[k]))


@implementations
def test_shard_map_over_four_devices_equals_one(x64, implementation):
    """Inside shard_map with replication tracked: values and raw gradients, those of shared A and D summed."""
    arrays, cotangent = inputs(batch=8)
    ids = segments(*[[k + 1, 44 - k] for k in range(8)])
    kwargs = dict(implementation=implementation, chunk_size=8)
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def body(arrays, ids, cotangent):
        shared = {k: jax.lax.pcast(arrays[k], 'data', to='varying') for k in 'AD'}
        y, vjp = jax.vjp(lambda a: ssd_scan(**a, segment_ids=ids, **kwargs), arrays | shared)
        grads = vjp(cotangent)[0]
        return y, {k: jax.lax.psum(g, 'data') if k in 'AD' else g for k, g in grads.items()}

    spec = {k: PartitionSpec() if k in 'AD' else PartitionSpec('data') for k in INPUTS}
    rows = PartitionSpec('data')
    mapped = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(spec, rows, rows), out_specs=(rows, spec)))
    y, grads = mapped(arrays, ids, cotangent)
    one_y, one_grads = value_and_gradients(arrays, cotangent, segment_ids=ids, **kwargs)
    assert_close(y, one_y)
    for k in INPUTS:
        assert_close(grads[k], one_grads[k])


@pytest.mark.parametrize('dtype,tolerance', [('float32', 2e-5), ('bfloat16', 3e-2)])
def test_lower_precision_stays_near_float64_on_the_same_rounded_inputs(x64, dtype, tolerance):
    arrays, cotangent = inputs(headdim=16, state=16)
    ids = segments([20, 25], [3, 42])
    narrow = {k: v.astype(dtype if k in 'xBC' else 'float32') for k, v in arrays.items()}
    y, grads = value_and_gradients(narrow, cotangent, segment_ids=ids, implementation='xla')
    assert y.dtype == dtype and grads['x'].dtype == dtype and grads['dt'].dtype == 'float32'
    rounded = {k: v.astype('float64') for k, v in narrow.items()}
    exact, exact_grads = value_and_gradients(
        rounded, cotangent.astype(dtype).astype('float64'), segment_ids=ids, implementation='reference'
    )
    assert_close(np.asarray(y, np.float64), exact, tolerance)
    for k in INPUTS:
        assert_close(np.asarray(grads[k], np.float64), exact_grads[k], tolerance)


@pytest.mark.parametrize('change,named', [
    (dict(x=jnp.zeros((2, 45, 4))), r'x has shape \(2, 45, 4\)'),
    (dict(dt=jnp.zeros((2, 45, 3))), 'dt has shape'),
    (dict(A=jnp.zeros(3)), 'A has shape'),
    (dict(B=jnp.zeros((2, 45, 3, 5)), C=jnp.zeros((2, 45, 3, 5))), '4 heads cannot be split into the 3 groups'),
    (dict(C=jnp.zeros((2, 45, 2, 6))), 'C has shape'),
    (dict(B=jnp.zeros((2, 45, 2, 5), jnp.bfloat16)), 'B is bfloat16'),
    (dict(segment_ids=jnp.zeros((2, 44), jnp.int32)), 'segment_ids has shape'),
    (dict(segment_ids=jnp.zeros((2, 45))), 'segment_ids are float32'),
    (dict(chunk_size=0), 'chunk_size=0'),
    (dict(implementation='cuda'), "'cuda' is unknown: there are xla, reference"),
])
def test_arguments_that_do_not_fit_are_named(change, named):
    arrays, _ = inputs(dtype=np.float32)
    with pytest.raises(ValueError, match=named):
        ssd_scan(**(arrays | change))
