"""ssd_scan: one body for every implementation, values and the gradient of every input."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from tests.kernels.scans import (
    CHUNK_SIZES,
    GPU,
    HERE,
    INPUTS,
    LENGTH,
    NOT_GPU,
    PLATFORMS,
    TWO,
    assert_close,
    each_of,
    implementations,
    inputs,
    loop,
    quick_on_a_cpu,
    scan,
    segments,
    value_and_gradients,
)

GOLDEN = Path(__file__).parent.parent / 'golden'


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


@each_of(NOT_GPU, PLATFORMS)
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
@each_of(NOT_GPU, PLATFORMS)
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
