"""ssd_scan: one body for every implementation, values and the gradient of every input."""
import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import ssd_scan, tracing_for
from pallas_kernels.ssd import api
from pallas_kernels.ssd.api import IMPLEMENTATIONS
from tests.kernels import wide

GOLDEN = Path(__file__).parent.parent / 'golden'
INPUTS = ('x', 'dt', 'A', 'B', 'C', 'D')
GPU = 'pallas_gpu', 'pallas_gpu_fused'
PLATFORMS = {'pallas_tpu': 'tpu'} | dict.fromkeys(GPU, 'gpu')  # whose kernels are interpreted here
# Mosaic GPU's interpreter came with JAX 0.11.
HERE = [name for name in IMPLEMENTATIONS if name not in GPU or jax.__version_info__ >= (0, 11)]
NOT_GPU = [name for name in HERE if name not in GPU]  # test_pallas_gpu.py has the GPU kernels' own segments and shapes.


def _each(names, slow):
    """A mark for each implementation of `names`; the tests of those in `slow` are slow ones."""
    return pytest.mark.parametrize('implementation', [
        pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names
    ])


# Mosaic GPU's interpreter takes seconds a call: its tests are slow ones, but for that against float64. Pallas's takes
# seconds for gradients that the tests of segments, goldens and underflow also see.
implementations = _each(HERE, GPU)
quick_on_a_cpu = _each(HERE, PLATFORMS)

# The smallest that each takes, so that short rows have many chunks.
CHUNK_SIZES = {'reference': 8, 'xla': 8, 'pallas_tpu': 64} | dict.fromkeys(GPU, 64)
# The GPU kernels compute in bfloat16, the others here in float64.
TOLERANCES = dict.fromkeys(GPU, 2e-2)
LENGTH = 130


def inputs(seed=0, batch=2, length=LENGTH, heads=2, headdim=64, groups=1, state=16, dtype=np.float64):
    """(arguments by name, cotangent of y), of values that bfloat16 (dt, A and D: float32) holds exactly."""
    rng = np.random.default_rng(seed)
    arrays = dict(
        x=rng.normal(size=(batch, length, heads, headdim)), dt=rng.uniform(0.01, 0.5, (batch, length, heads)),
        A=-rng.uniform(0.5, 4, heads), B=rng.normal(size=(batch, length, groups, state)),
        C=rng.normal(size=(batch, length, groups, state)), D=rng.normal(size=heads), cotangent=None,
    )
    arrays['cotangent'] = rng.normal(size=arrays['x'].shape)
    narrow = {k: v.astype(jnp.bfloat16 if k in ('x', 'B', 'C', 'cotangent') else np.float32) for k, v in arrays.items()}
    arrays = {k: jnp.asarray(v.astype(np.float64), dtype) for k, v in narrow.items()}
    return arrays, arrays.pop('cotangent')


def segments(*rows):
    """segment ids from lengths: 1, 2, ... in each row."""
    return jnp.asarray([np.repeat(np.arange(1, len(r) + 1), r) for r in rows], jnp.int32)


def scan(arrays, segment_ids, implementation, **kwargs):
    """ssd_scan in small chunks, kernels of other platforms interpreted."""
    kwargs = {'chunk_size': CHUNK_SIZES[implementation], **kwargs}
    if implementation in GPU:
        arrays = {k: v.astype('bfloat16' if k in 'xBC' else 'float32') for k, v in arrays.items()}
    with tracing_for(PLATFORMS.get(implementation, 'cpu'), interpret=True):
        return ssd_scan(**arrays, segment_ids=segment_ids, implementation=implementation, **kwargs)


def value_and_gradients(arrays, cotangent, segment_ids, implementation, **kwargs):
    """(y, {input: gradient}); compiled once for all calls of one shape and one set of options."""
    return _value_and_gradients(arrays, cotangent, segment_ids, implementation, tuple(sorted(kwargs.items())))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _value_and_gradients(arrays, cotangent, segment_ids, implementation, options):
    y, vjp = jax.vjp(lambda a: scan(a, segment_ids, implementation, **dict(options)), arrays)
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


def assert_close(ours, theirs, implementation='xla'):
    """To a share of the largest entry; where all are zero (A's gradient of one-token segments), to 1e-14."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    tolerance = TOLERANCES.get(implementation, 1e-9)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(tolerance * np.abs(theirs).max(), 1e-14))


# Several chunks in 96 and 70 tokens. Of pallas_tpu, headdim 16 has the smallest.
GOLDEN_CHUNKS = {'reference': None, 'xla': 7, 'pallas_tpu': 32} | dict.fromkeys(GPU, 64)


def filled_up(golden):
    """The golden file's arrays with zeros up to a headdim and a state of 16, the least that the Pallas kernels take:
    zero columns of x stay zeros in y, and zero columns of B and C add nothing."""
    return {
        k: np.pad(a, [(0, 0), (0, 0), (0, 16 - a.shape[2])]) if a.ndim == 3 else a for k, a in golden.items()
    }


@pytest.mark.parametrize('name', ['ssd_segments', 'ssd_groups'])
@implementations
def test_golden_values_and_every_gradient(x64, implementation, name):
    golden = dict(np.load(GOLDEN / f'{name}.npz'))
    if implementation in PLATFORMS:
        golden = filled_up(golden)
    per_row = {k: jnp.asarray(golden[k] if k in 'AD' else golden[k][None]) for k in INPUTS}
    y, grads = value_and_gradients(
        per_row, jnp.asarray(golden['cotangent'][None]), jnp.asarray(golden['segment_ids'][None]), implementation,
        chunk_size=GOLDEN_CHUNKS[implementation],
    )
    assert_close(y[0], golden['y'], implementation)
    for k in INPUTS:
        assert_close(grads[k] if k in 'AD' else grads[k][0], golden[f'grad_{k}'], implementation)


TWO = segments([60, 70], [3, 127])
CASES = {
    'one-token segments': segments([1] * LENGTH, [1] * LENGTH),
    'a segment over many chunks': segments([2, 125, 3], [LENGTH]),
    'boundaries on and off chunk edges': segments([64, 8, 56, 2], [63, 1, 64, 2]),
    'an id that comes back': jnp.asarray([[1] * 5 + [2] * 67 + [1] * 58, [3] * 70 + [1] * 60], jnp.int32),
    'ids that fall': TWO[:, ::-1],
    'all padding': jnp.zeros((2, LENGTH), jnp.int32),
    'no ids': None,
}
# (segment ids, shape, reverse): each shape is compiled anew, so one direction each.
SHAPES = {
    'length 1': (segments([1], [1]), dict(length=1), False),
    'shorter than a chunk': (segments([2, 3], [5]), dict(length=5), True),
    'an odd length': (segments([66, 65], [131]), dict(length=131), False),
    'whole chunks': (segments([20, 108], [3, 125]), dict(length=128), False),
    'two groups of two heads': (TWO, dict(heads=4, groups=2), True),
    'four groups of two heads': (TWO, dict(heads=8, groups=4), False),
    'a group a head': (TWO, dict(groups=2), False),
    'four heads': (TWO, dict(heads=4), False),
    'headdim 16': (TWO, dict(heads=8, groups=1, headdim=16, state=24), True),
    'headdim 16, groups of few heads': (TWO, dict(heads=4, groups=2, headdim=16), False),
    'headdim 32': (TWO, dict(heads=4, groups=1, headdim=32, state=64), True),
    'headdim 64, state 128': (TWO, dict(state=128), False),
    'headdim 128': (TWO, dict(heads=1, groups=1, headdim=128, state=32), False),
    'headdim 16, state 256': (TWO, dict(heads=8, headdim=16, state=256), False),
    'headdim 128, state 256': (TWO, dict(heads=1, headdim=128, state=256), True),
    'a state of no multiple of 8': (TWO, dict(state=21), True),
    "the published model's": (TWO, dict(heads=32, headdim=16, state=64), False),
}


def assert_equals_the_loop_and_the_reference_gradients(arrays, cotangent, ids, implementation, **kwargs):
    y, grads = value_and_gradients(arrays, cotangent, ids, implementation, **kwargs)
    assert_close(y, loop(arrays, ids, kwargs['reverse']), implementation)
    _, expected = value_and_gradients(arrays, cotangent, ids, 'reference', reverse=kwargs['reverse'])
    for k in INPUTS:
        assert_close(grads[k], expected[k], implementation)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('implementation, case', [
    pytest.param(name, case, marks=[pytest.mark.slow] * (name in PLATFORMS and case == 'no ids'))
    for name in NOT_GPU for case in CASES
])
def test_segments(x64, implementation, case, reverse):
    assert_equals_the_loop_and_the_reference_gradients(*inputs(), CASES[case], implementation, reverse=reverse)


# A shape takes seconds to compile: in the default run these five, of what is compiled for a CPU. All are of xla.
QUICK_SHAPES = (
    'length 1', 'shorter than a chunk', 'an odd length', 'two groups of two heads', 'a state of no multiple of 8',
)
CHOSEN_SHAPES = {
    'reference': QUICK_SHAPES,
    'pallas_tpu': (*QUICK_SHAPES, 'a group a head', 'headdim 16, groups of few heads', 'headdim 64, state 128',
                   'headdim 128', "the published model's"),
} | dict.fromkeys(GPU, ('an odd length',))


@pytest.mark.parametrize('implementation,case', [
    pytest.param(name, case, marks=[pytest.mark.slow] * (name in PLATFORMS or case not in QUICK_SHAPES))
    for name in HERE for case in CHOSEN_SHAPES.get(name, SHAPES)
])
def test_shapes(x64, implementation, case):
    ids, shape, reverse = SHAPES[case]
    arrays, cotangent = inputs(**shape)
    chunk_size = CHUNK_SIZES[implementation]
    if implementation == 'pallas_tpu':
        chunk_size = max(32, arrays['x'].shape[3])
    assert_equals_the_loop_and_the_reference_gradients(
        arrays, cotangent, ids, implementation, reverse=reverse, chunk_size=chunk_size
    )


@quick_on_a_cpu
def test_reverse_is_forward_on_flipped_inputs(x64, implementation):
    arrays, _ = inputs()
    flipped = {k: v if k in 'AD' else v[:, ::-1] for k, v in arrays.items()}
    forward = scan(flipped, TWO[:, ::-1], implementation)
    assert_close(scan(arrays, TWO, implementation, reverse=True), forward[:, ::-1], implementation)


@quick_on_a_cpu
def test_the_default_chunk_size(x64, implementation):
    arrays, cotangent = inputs()
    y, grads = value_and_gradients(arrays, cotangent, TWO, implementation, chunk_size=None)
    expected_y, expected = value_and_gradients(arrays, cotangent, TWO, 'reference')
    assert_close(y, expected_y, implementation)
    for k in INPUTS:
        assert_close(grads[k], expected[k], implementation)


@pytest.mark.parametrize('scale', [1e3, 1e-8])
@implementations
def test_extreme_decays_neither_overflow_nor_give_nan_gradients(x64, implementation, scale):
    """|A dt| up to 2,000, where decays underflow to 0, and down to 1e-9."""
    arrays, cotangent = inputs()
    arrays['dt'] = (arrays['dt'] * scale).astype('float32').astype('float64')
    y, grads = value_and_gradients(arrays, cotangent, TWO, implementation)
    assert_close(y, loop(arrays, TWO), implementation)
    _, expected = value_and_gradients(arrays, cotangent, TWO, 'reference')
    for k in INPUTS:
        assert np.isfinite(grads[k]).all()
        assert_close(grads[k], expected[k], implementation)


# Interpreted kernels take seconds a shape: of the wide cases, this one with them in the default run.
QUICK = ('A dt beyond float32',)
SMALL = [case for case in wide.CASES if case not in ('state 256', 'headdim 128', 'four groups')]
EXTREME = *QUICK, 'four groups', 'dt from 1e-8 to 1,000'  # of the GPU kernels, which take the longest


@pytest.fixture(scope='module')
def wide_results():
    """A function of (case, reverse, implementation, dtype): (y, {input: gradient}) over the inputs of wide.py, kept."""

    @functools.cache
    def results(case, reverse, implementation, dtype):
        arrays, cotangent = wide.inputs(case)
        arrays = {k: v.astype(dtype if k in 'xBC' or dtype == 'float64' else 'float32') for k, v in arrays.items()}
        return value_and_gradients(
            arrays, cotangent.astype(dtype), wide.IDS, implementation, reverse=reverse, chunk_size=None
        )

    return results


@pytest.mark.parametrize('implementation,case,reverse', [
    pytest.param(name, case, reverse, marks=[pytest.mark.slow] * (case not in (QUICK if name in PLATFORMS else SMALL)))
    for name in NOT_GPU for case, reverse in wide.DIRECTIONS
])
def test_float32_equals_float64_from_slow_decay_to_underflow(x64, wide_results, implementation, case, reverse):
    exact_y, exact = wide_results(case, reverse, 'reference', 'float64')
    y, grads = wide_results(case, reverse, implementation, 'float32')
    errors = {'y': wide.error(y, exact_y)} | {k: wide.error(grads[k], exact[k]) for k in INPUTS}
    assert all(error < (1e-4 if k == 'A' else 1e-5) for k, error in errors.items()), errors
    # What rounding leaves of pairs of tokens that cancel is some 1e-5 of the largest, and may be more of a head's sum.
    assert wide.error_by_head(grads['A'], exact['A']) < 5e-4


@pytest.mark.parametrize('implementation,case,reverse', [
    pytest.param(name, case, reverse, marks=[pytest.mark.slow] * (case not in QUICK or name == 'pallas_gpu_fused'))
    for name in HERE if name in PLATFORMS for case, reverse in wide.DIRECTIONS if name not in GPU or case in EXTREME
])
def test_bfloat16_is_as_near_to_float64_as_xla_from_slow_decay_to_underflow(
    x64, wide_results, implementation, case, reverse
):
    """Errors are at most twice those of xla, or what one rounding to bfloat16 makes, a 256th of an entry. A's gradient
    is a few numbers. In each the errors of many tokens add up, and by chance they may be small in one implementation:
    over 12 runs xla's error was between 0.06 % and 1.3 %."""
    exact_y, exact = wide_results(case, reverse, 'reference', 'float64')
    y, grads = wide_results(case, reverse, implementation, 'bfloat16')
    xla_y, xla_grads = wide_results(case, reverse, 'xla', 'bfloat16')
    errors = {'y': (wide.error(y, exact_y), wide.error(xla_y, exact_y))}
    errors |= {k: (wide.error(grads[k], exact[k]), wide.error(xla_grads[k], exact[k])) for k in INPUTS}
    for k, (ours, theirs) in errors.items():
        assert ours <= max(2 * theirs, 0.02 if k == 'A' else 0.004), (k, errors)


@pytest.mark.parametrize('implementation,bad,reverse', [
    pytest.param(name, bad, reverse, marks=[pytest.mark.slow] * (name in GPU))
    for name in HERE for reverse in (False, True) for bad in ('x', 'dt', 'B', 'C')
    if name not in GPU or (bad, reverse) in (('x', False), ('C', True))
])
def test_nan_in_one_segment_or_padding_reaches_no_other(x64, implementation, bad, reverse):
    arrays, cotangent = inputs()
    ids = jnp.asarray(
        [[1] * 40 + [2] * 49 + [3] * 30 + [0] * 11, [1] * 70 + [2] * 2 + [0] * 58], jnp.int32
    )
    poison = (np.asarray(ids) == 2) | (np.asarray(ids) == 0)
    dirty = dict(arrays)
    dirty[bad] = jnp.where(poison.reshape(*poison.shape, *[1] * (arrays[bad].ndim - 2)), jnp.nan, arrays[bad])
    cotangent = jnp.where(poison[..., None, None], 0.0, cotangent)
    clean_y, clean_grads = value_and_gradients(arrays, cotangent, ids, implementation, reverse=reverse)
    y, grads = value_and_gradients(dirty, cotangent, ids, implementation, reverse=reverse)
    np.testing.assert_array_equal(np.asarray(y)[~poison], np.asarray(clean_y)[~poison])
    assert np.isnan(np.asarray(y)[poison]).any()  # and it does not vanish where it belongs
    for k in ('x', 'dt', 'B', 'C'):
        assert_close(np.asarray(grads[k])[~poison], np.asarray(clean_grads[k])[~poison], implementation)


@implementations
def test_a_token_that_is_not_finite_shows_in_its_segment_from_there_on(implementation):
    """Over the edges of chunks and blocks, in values and gradients."""
    arrays, cotangent = inputs(dtype=np.float32)
    arrays['x'] = arrays['x'].at[0, 40].set(jnp.inf)
    ids = segments([15, 105, 10], [LENGTH])
    y, grads = value_and_gradients(arrays, cotangent, ids, implementation)
    finite = np.isfinite(y).all((2, 3))
    assert finite[0, :40].all() and not finite[0, 40:120].any() and finite[0, 120:].all() and finite[1].all()
    finite = np.isfinite(grads['dt']).all(2)
    assert finite[0, :15].all() and not finite[0, 40:120].any() and finite[0, 120:].all() and finite[1].all()


@_each(NOT_GPU, PLATFORMS)
def test_vmap_equals_a_loop_over_the_mapped_axis(x64, implementation):
    """Values and the gradient of every input, A's and D's an entry of the mapped axis each."""
    many = [inputs(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *many)
    y, grads = jax.vmap(lambda a, g: value_and_gradients(a, g, TWO, implementation))(*stacked)
    for n, (arrays, cotangent) in enumerate(many):
        one_y, one_grads = value_and_gradients(arrays, cotangent, TWO, implementation)
        assert_close(y[n], one_y, implementation)
        for k in INPUTS:
            assert_close(grads[k][n], one_grads[k], implementation)


@implementations
def test_jit_changes_nothing(x64, implementation):
    arrays, cotangent = inputs()
    y = scan(arrays, TWO, implementation)
    assert_close(value_and_gradients(arrays, cotangent, TWO, implementation)[0], y, implementation)


# Mosaic GPU's interpreter keeps the barriers of all devices in one place and insists that none is left when one of them
# is done, so it runs no two at a time: test_pallas_gpu.py lowers the same call instead.
@_each(NOT_GPU, PLATFORMS)
def test_shard_map_over_four_devices_equals_one(x64, implementation):
    """Inside shard_map with replication tracked: values and raw gradients, those of shared A and D summed."""
    arrays, cotangent = inputs(batch=8, length=45)
    ids = segments(*[[k + 1, 44 - k] for k in range(8)])
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def body(arrays, ids, cotangent):
        shared = {k: jax.lax.pcast(arrays[k], 'data', to='varying') for k in 'AD'}
        y, vjp = jax.vjp(lambda a: scan(a, ids, implementation), arrays | shared)
        grads = vjp(cotangent)[0]
        return y, {k: jax.lax.psum(g, 'data') if k in 'AD' else g for k, g in grads.items()}

    spec = {k: PartitionSpec() if k in 'AD' else PartitionSpec('data') for k in INPUTS}
    rows = PartitionSpec('data')
    mapped = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(spec, rows, rows), out_specs=(rows, spec)))
    y, grads = mapped(arrays, ids, cotangent)
    one_y, one_grads = value_and_gradients(arrays, cotangent, ids, implementation)
    assert_close(y, one_y, implementation)
    for k in INPUTS:
        assert_close(grads[k], one_grads[k], implementation)


def lower_precision_errors(dtype, implementation):
    """Largest error of y and of each gradient, as a share of the largest entry, from float64 on the same inputs."""
    arrays, cotangent = inputs()
    narrow = {k: v.astype(dtype if k in 'xBC' else 'float32') for k, v in arrays.items()}
    y, grads = value_and_gradients(narrow, cotangent, TWO, implementation, chunk_size=None)
    assert y.dtype == dtype and grads['x'].dtype == dtype and grads['dt'].dtype == 'float32'
    rounded = {k: v.astype('float64') for k, v in narrow.items()}
    exact, exact_grads = value_and_gradients(
        rounded, cotangent.astype(dtype).astype('float64'), TWO, 'reference'
    )
    share = lambda a, b: float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())  # noqa: E731
    return {'y': share(y, exact), **{k: share(grads[k], exact_grads[k]) for k in INPUTS}}


@pytest.mark.parametrize('implementation,dtype,tolerance', [
    pytest.param(name, dtype, tolerance, marks=[pytest.mark.slow] * (name == 'pallas_tpu'))
    for name in HERE for dtype, tolerance in (('float32', 2e-5), ('bfloat16', 3e-2))
    if name == 'xla' or (name in PLATFORMS and dtype == 'bfloat16')  # float32: from slow decay to underflow, above
])
def test_lower_precision_stays_near_float64_on_the_same_rounded_inputs(x64, implementation, dtype, tolerance):
    errors = lower_precision_errors(dtype, implementation)
    assert max(errors.values()) < tolerance, errors
    if dtype == 'bfloat16':
        yardstick = lower_precision_errors(dtype, 'xla')
        assert all(errors[k] <= 2 * yardstick[k] for k in errors), (errors, yardstick)


@pytest.mark.parametrize('change,named', [
    (dict(x=jnp.zeros((2, 45, 4))), r'x has shape \(2, 45, 4\)'),
    (dict(dt=jnp.zeros((2, LENGTH, 3))), 'dt has shape'),
    (dict(A=jnp.zeros(3)), 'A has shape'),
    (dict(B=jnp.zeros((2, LENGTH, 3, 5)), C=jnp.zeros((2, LENGTH, 3, 5))), '2 heads cannot be split into the 3 groups'),
    (dict(C=jnp.zeros((2, LENGTH, 2, 6))), 'C has shape'),
    (dict(B=jnp.zeros((2, LENGTH, 1, 16), jnp.bfloat16)), 'B is bfloat16'),
    (dict(segment_ids=jnp.zeros((2, 44), jnp.int32)), 'segment_ids has shape'),
    (dict(segment_ids=jnp.zeros((2, LENGTH))), 'segment_ids are float32'),
    (dict(chunk_size=0), 'chunk_size=0'),
    (dict(implementation='cuda'), "'cuda' is unknown: there are pallas_tpu, pallas_gpu, xla, reference"),
    (dict(implementation='pallas_gpu'), 'pallas_gpu runs on NVIDIA GPUs and this program is for cpu'),
    (dict(implementation='pallas_tpu'), 'pallas_tpu runs on TPUs and this program is for cpu'),
])
def test_arguments_that_do_not_fit_are_named(change, named):
    arrays, _ = inputs(dtype=np.float32)
    with pytest.raises(ValueError, match=named):
        ssd_scan(**(arrays | change))


def test_what_no_chip_has_run_is_taken_only_where_it_is_named(monkeypatch):
    call = api.Call((1, 8, 8, 16), jnp.dtype('bfloat16'), (1, 8, 1, 16))
    left = {name: IMPLEMENTATIONS[name] for name in ('pallas_tpu', 'pallas_gpu_fused')}
    monkeypatch.setattr(api, 'IMPLEMENTATIONS', left)
    with tracing_for('gpu'), pytest.raises(ValueError, match='^pallas_tpu runs on TPUs and this program is for gpu$'):
        api.choose_implementation(call)
    with tracing_for('gpu'):
        if 'pallas_gpu_fused' in HERE:
            assert api.choose_implementation(call, ('pallas_tpu', 'pallas_gpu_fused')) == 'pallas_gpu_fused'


@pytest.mark.parametrize('platform,dtype,chosen,said', [
    ('cpu', 'float32', 'xla', 'pallas_tpu runs on TPUs and this program is for cpu'),
    ('tpu', 'bfloat16', 'pallas_tpu', None),
    ('tpu', 'float16', 'xla', 'pallas_tpu computes in bfloat16 or float32 and x is float16'),
    # A JAX may be too old for pallas_gpu.
    ('gpu', 'bfloat16', 'pallas_gpu' if 'pallas_gpu' in HERE else 'xla', 'pallas_tpu runs on TPUs and this program is'),
    ('gpu', 'float32', 'xla', 'computes in bfloat16 and x is float32' if 'pallas_gpu' in HERE else 'needs JAX 0.11'),
])
def test_what_runs_where_none_is_named_is_logged_once_with_the_reasons(caplog, platform, dtype, chosen, said):
    api._log_once.cache_clear()
    call = api.Call((1, 8, 8, 16), jnp.dtype(dtype), (1, 8, 1, 16))
    with caplog.at_level(logging.INFO), tracing_for(platform):
        assert [api.choose_implementation(call) for _ in range(3)] == [chosen] * 3
    [record] = [r for r in caplog.records if r.name == api.__name__]
    assert f'ssd_scan runs as {chosen}' in record.getMessage() and (said or '') in record.getMessage()
