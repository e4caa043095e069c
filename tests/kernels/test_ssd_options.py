"""The options of ssd_scan, in every implementation against an oracle that walks over tokens in float64; ssd_step."""
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import ssd_scan, ssd_step, tracing_for
from pallas_kernels.ssd import api
from tests.kernels import oracle, wide
from tests.kernels.oracle import Segment
from tests.kernels.scans import GPU, HERE, PLATFORMS, assert_close

LENGTH, HEADS, HEADDIM, GROUPS, STATE = 70, 4, 32, 2, 16
CHUNK_SIZES = {'reference': None, 'xla': 8, 'pallas_tpu': 32} | dict.fromkeys(GPU, 64)
SHARED = 'A', 'D', 'dt_bias'
PER_TOKEN = 'x', 'dt', 'B', 'C', 'z'

# (rows of segments, states of a row, options), for each form of the states and each direction. The segments end on and
# off the edges of chunks; some have one token, and some no state. Some sequences have no token.
WHOLE = [Segment(0, 70, 0, 0)]
BY_ROW = [[Segment(0, 33, 0), Segment(33, 64), Segment(64, 70, None, 0)], WHOLE]
BY_ROW_REVERSED = [[Segment(0, 33, None, 0), Segment(33, 64), Segment(64, 70, 0)], WHOLE]
BY_SEGMENT = [
    [Segment(0, 1, 0, 0), Segment(1, 50, 1, 1), Segment(50, 64, 2, 2), Segment(64, 65), Segment(65, 70)],
    [Segment(0, 64, 0, 0), Segment(64, 70, 1, 1)],
]
SEQUENCES = [[Segment(0, 40, 1, 1), Segment(40, 41, 2, 2), Segment(41, 66, 4, 4), Segment(66, 70)]]
CU_SEQLENS = np.asarray([0, 0, 40, 41, 41, 66], np.int32)
CASES = {
    'by row': (BY_ROW, 1, dict(dt_softplus=True)),
    'by row, reversed': (BY_ROW_REVERSED, 1, dict(reverse=True, dt_limit=(0.3, 0.9))),
    'by segment': (BY_SEGMENT, 3, dict(num_segments=3)),
    'by segment, reversed': (
        BY_SEGMENT, 3, dict(num_segments=3, reverse=True, dt_softplus=True, dt_limit=(0.8, 1.1))
    ),
    'by sequence': (SEQUENCES, 5, dict(dt_softplus=True)),
    'by sequence, reversed': (SEQUENCES, 5, dict(reverse=True)),
}
# A case takes seconds to compile. These are not slow tests; other tests below compare xla's in other ways.
QUICK = {
    'reference': ('by row, reversed',), **dict.fromkeys(GPU, ()), 'pallas_tpu': ('by segment, reversed',),
    'xla': ('by row, reversed', 'by segment, reversed', 'by sequence'),
}


def inputs(rows, states, seed=0):
    """(arguments by name, cotangents of y and of the final states), of values that bfloat16 holds exactly."""
    rng = np.random.default_rng(seed)
    lead = len(rows), LENGTH
    x, shared = (*lead, HEADS, HEADDIM), (*lead, GROUPS, STATE)
    shapes = dict(
        x=x, B=shared, C=shared, z=x, D=(HEADS, HEADDIM), initial_states=(len(rows), states, HEADS, HEADDIM, STATE)
    )
    arrays = {k: rng.normal(size=shape) for k, shape in shapes.items()} | dict(
        dt=rng.uniform(0.01, 0.5, (*lead, HEADS)), A=-rng.uniform(0.5, 4, HEADS), dt_bias=rng.uniform(0, 0.5, HEADS),
    )
    cotangents = [rng.normal(size=shapes[k]) for k in ('x', 'initial_states')]
    return jax.tree.map(lambda a: jnp.asarray(a.astype(jnp.bfloat16), jnp.float64), (arrays, tuple(cotangents)))


def places(rows):
    """The argument of ssd_scan that says where the segments lie."""
    if rows is SEQUENCES:
        return dict(cu_seqlens=CU_SEQLENS)
    lengths = [[s.stop - s.start for s in row] for row in rows]
    return dict(segment_ids=np.asarray([np.repeat(np.arange(1, len(n) + 1), n) for n in lengths], np.int32))


def scan(arrays, where, implementation, options):
    """(y, final states [batch, states, ...]) of ssd_scan, kernels of other platforms interpreted."""
    if implementation in GPU:
        arrays = {k: v.astype('bfloat16' if k in 'xBCz' else 'float32') for k, v in arrays.items()}
    initial = arrays['initial_states']
    if 'num_segments' not in options:
        arrays = arrays | {'initial_states': initial.reshape(-1, *initial.shape[2:])}
    with tracing_for(PLATFORMS.get(implementation, 'cpu'), interpret=True):
        y, states = ssd_scan(
            **arrays, **where, **options, return_final_states=True, implementation=implementation,
            chunk_size=CHUNK_SIZES[implementation],
        )
    return y, states.reshape(initial.shape)


def with_gradients(function, arrays, cotangents):
    """(y, final states, {input: gradient})."""
    (y, states), vjp = jax.vjp(function, arrays)
    return y, states, vjp((cotangents[0].astype(y.dtype), cotangents[1].astype(states.dtype)))[0]


def results(arrays, cotangents, rows, implementation, options):
    """with_gradients of ssd_scan, compiled once for all calls of one shape and one set of options."""
    return _results(arrays, cotangents, places(rows), implementation, tuple(options.items()))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _results(arrays, cotangents, where, implementation, options):
    return with_gradients(lambda a: scan(a, where, implementation, dict(options)), arrays, cotangents)


@functools.cache
def expected(name):
    rows, states, options = CASES[name]
    steps = {k: v for k, v in options.items() if k != 'num_segments'}
    walk = functools.partial(with_gradients, lambda arrays: oracle.scan(arrays, rows, **steps))
    return jax.jit(walk)(*inputs(rows, states))


@pytest.mark.parametrize('implementation,name', [
    pytest.param(implementation, name, marks=[pytest.mark.slow] * (name not in QUICK[implementation]))
    for implementation in HERE for name in CASES
])
def test_values_states_and_every_gradient(x64, implementation, name):
    rows, states, options = CASES[name]
    arrays, cotangents = inputs(rows, states)
    y, finals, grads = results(arrays, cotangents, rows, implementation, options)
    expected_y, expected_finals, expected_grads = expected(name)
    assert_close(y, expected_y, implementation)
    assert_close(finals, expected_finals, implementation)
    for k in arrays:
        assert_close(grads[k], expected_grads[k], implementation)


def test_no_initial_states_are_zeros(x64):
    arrays, _ = inputs([WHOLE], 1)
    without = {k: v for k, v in arrays.items() if k != 'initial_states'}
    zeros = without | {'initial_states': jnp.zeros_like(arrays['initial_states'][:, 0])}
    run = jax.jit(functools.partial(ssd_scan, return_final_states=True))
    jax.tree.map(assert_close, run(**without), run(**zeros))


@pytest.mark.parametrize('bad', ['x', 'dt', 'B', 'C', 'z', 'initial_states', 'cotangents'])
@pytest.mark.parametrize('implementation', ['xla', pytest.param('pallas_tpu', marks=pytest.mark.slow)])
def test_nan_in_one_segment_reaches_no_other(x64, implementation, bad):
    """The segment in the middle is not finite, nor are the tokens behind the segments that have states."""
    rows = [[Segment(0, 20, 0, 0), Segment(20, 45, 1, 1), Segment(45, 64, 2, 2), Segment(64, 70)]]
    run = functools.partial(results, rows=rows, implementation=implementation, options=dict(num_segments=3))
    tokens, slots = np.repeat([[False, True, False, True]], [20, 25, 19, 6], axis=1), np.asarray([[False, True, False]])

    def put(value, a, where):
        return jnp.where(where.reshape(*where.shape, *(1,) * (a.ndim - 2)), value, a)

    arrays, cotangents = inputs(rows, 3)
    cotangents = tuple(put(0.0, c, where) for c, where in zip(cotangents, (tokens, slots), strict=True))
    clean_y, clean_finals, clean_grads = run(arrays, cotangents)
    if bad == 'cotangents':
        cotangents = tuple(put(jnp.nan, c, where) for c, where in zip(cotangents, (tokens, slots), strict=True))
    else:
        arrays = arrays | {bad: put(jnp.nan, arrays[bad], slots if bad == 'initial_states' else tokens)}
    y, finals, grads = (jax.tree.map(np.asarray, part) for part in run(arrays, cotangents))
    np.testing.assert_array_equal(y[~tokens], np.asarray(clean_y)[~tokens])
    np.testing.assert_array_equal(finals[~slots], np.asarray(clean_finals)[~slots])
    for k in (*PER_TOKEN, 'initial_states'):
        where = slots if k == 'initial_states' else tokens
        assert_close(grads[k][~where], np.asarray(clean_grads[k])[~where])
    if bad in ('x', 'dt', 'B', 'initial_states'):  # and it does not vanish where it belongs
        assert np.isnan(finals[0, 1]).any() and np.isnan(y[0, 44]).any()


@pytest.mark.slow
@pytest.mark.parametrize('case,reverse', [('dt from 1e-8 to 1,000', False), ('A dt beyond float32', True)])
def test_float32_states_equal_float64_from_slow_decay_to_underflow(x64, case, reverse):
    arrays, cotangent = wide.inputs(case)
    rows = [[Segment(start, stop, k, k) for k, (start, stop) in enumerate(zip(at[:-1], at[1:], strict=True))]
            for at in ([0, 40, 41, 191, 194, 264, 300], [0, 5, 290, 300])]
    rng = np.random.default_rng(1)
    shape = (2, 6, *arrays['x'].shape[2:], arrays['B'].shape[3])
    initial, final = (jnp.asarray(rng.normal(size=shape).astype('float32'), 'float64') for _ in range(2))
    arrays = arrays | {'initial_states': initial}
    ours = functools.partial(
        ssd_scan, segment_ids=wide.IDS, num_segments=6, return_final_states=True, reverse=reverse, implementation='xla'
    )
    walk = functools.partial(with_gradients, lambda a: oracle.scan(a, rows, reverse=reverse))
    exact_y, exact_finals, exact = jax.jit(walk)(arrays, (cotangent, final))
    narrow = {k: v.astype('float32') for k, v in arrays.items()}
    y, finals, grads = jax.jit(functools.partial(with_gradients, lambda a: ours(**a)))(narrow, (cotangent, final))
    assert finals.dtype == 'float32'
    errors = {'y': wide.error(y, exact_y), 'states': wide.error(finals, exact_finals)}
    errors |= {k: wide.error(grads[k], exact[k]) for k in arrays}
    assert all(error < (1e-4 if k == 'A' else 1e-5) for k, error in errors.items()), errors


def test_steps_equal_the_scan(x64):
    """A token at a time from an initial state: outputs, the final state and every gradient."""
    rows, options = [WHOLE] * 2, dict(dt_softplus=True, dt_limit=(0.8, 1.1))
    arrays, cotangents = inputs(rows, 1)

    def by_steps(arrays):
        def step(state, token):
            y, state = ssd_step(state, **token, **{k: arrays[k] for k in SHARED}, **options)
            return state, y

        tokens = {k: jnp.moveaxis(arrays[k], 1, 0) for k in PER_TOKEN}
        state, y = jax.lax.scan(step, arrays['initial_states'][:, 0], tokens)
        return jnp.moveaxis(y, 0, 1), state[:, None]

    ours = jax.jit(functools.partial(with_gradients, by_steps))(arrays, cotangents)
    theirs = results(arrays, cotangents, rows, 'xla', options)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_a_step_keeps_the_dtypes_of_x_and_of_the_state(x64):
    arrays, _ = inputs([WHOLE], 1)
    token = {k: arrays[k][:, 0].astype('bfloat16') for k in PER_TOKEN}
    state = arrays['initial_states'][:, 0].astype('float32')
    y, new = ssd_step(state, A=arrays['A'].astype('float32'), **token)
    assert (y.dtype, new.dtype, new.shape) == ('bfloat16', 'float32', state.shape)


@pytest.mark.parametrize('reverse', [False, True])
def test_a_row_cut_in_two_equals_the_whole(x64, reverse):
    """The state that leaves one window enters the next, though a segment lies across the cut."""
    arrays, _ = inputs(BY_ROW, 1)
    arrays['initial_states'] = arrays['initial_states'][:, 0]
    segment_ids = jnp.asarray(places(BY_ROW)['segment_ids'])
    run = jax.jit(functools.partial(ssd_scan, return_final_states=True, reverse=reverse, implementation='xla'))
    whole_y, whole_state = run(**arrays, segment_ids=segment_ids)
    state, parts = arrays['initial_states'], {}
    for at in (slice(0, 35), slice(35, 70))[::-1 if reverse else 1]:
        window = arrays | {k: arrays[k][:, at] for k in PER_TOKEN} | {'initial_states': state}
        parts[at.start], state = run(**window, segment_ids=segment_ids[:, at])
    np.testing.assert_allclose(jnp.concatenate([parts[0], parts[35]], axis=1), whole_y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state, whole_state, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_shard_map_over_two_devices_equals_one(x64):
    """With replication tracked, values and raw gradients."""
    rows, states, options = CASES['by segment, reversed']
    arrays, cotangents = inputs(rows, states)
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def body(arrays, where, cotangents):
        varying = {k: jax.lax.pcast(arrays[k], 'data', to='varying') for k in SHARED}
        run = functools.partial(scan, where=where, implementation='xla', options=options)
        y, finals, grads = with_gradients(run, arrays | varying, cotangents)
        return y, finals, {k: jax.lax.psum(g, 'data') if k in SHARED else g for k, g in grads.items()}

    by_row = PartitionSpec('data')
    spec = {k: PartitionSpec() if k in SHARED else by_row for k in arrays}
    mapped = jax.shard_map(body, mesh=mesh, in_specs=(spec, by_row, by_row), out_specs=(by_row, by_row, spec))
    ours = jax.jit(mapped)(arrays, places(rows), cotangents)
    jax.tree.map(assert_close, ours, results(arrays, cotangents, rows, 'xla', options))


def test_vmap_equals_a_loop_over_the_mapped_axis(x64):
    rows, states, options = CASES['by sequence']
    many = [inputs(rows, states, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *many)
    mapped = jax.vmap(lambda arrays, cotangents: results(arrays, cotangents, rows, 'xla', options))(*stacked)
    for n, one in enumerate(many):
        of_one = results(*one, rows, 'xla', options)
        jax.tree.map(assert_close, jax.tree.map(lambda a, n=n: a[n], mapped), of_one)


CALL = api.Call((1, 8, 8, 16), jnp.dtype('float32'), (1, 8, 1, 16))


@pytest.mark.parametrize('platform,asked,chosen', [
    ('cpu', ('pallas_tpu', 'xla'), 'xla'), ('tpu', ['pallas_gpu', 'pallas_tpu', 'xla'], 'pallas_tpu'),
    ('tpu', ('xla', 'pallas_tpu'), 'xla'), ('cpu', ('reference',), 'reference'),
])
def test_the_first_of_several_implementations_that_can_serve_is_taken(caplog, platform, asked, chosen):
    api._log_once.cache_clear()
    with caplog.at_level(logging.INFO), tracing_for(platform):
        assert api.choose_implementation(CALL, asked) == chosen
    assert f'ssd_scan runs as {chosen}' in caplog.text


@pytest.mark.parametrize('asked,said', [
    (('pallas_tpu', 'pallas_gpu'), 'pallas_tpu runs on TPUs and this program is for cpu; pallas_gpu runs on NVIDIA'),
    (('xla', 'cuda'), "'cuda' is unknown: there are pallas_tpu, pallas_gpu, xla"), ((), 'names none'),
])
def test_where_none_of_several_can_serve_all_reasons_are_said(asked, said):
    with pytest.raises(ValueError, match=said):
        api.choose_implementation(CALL, asked)


def changed(**change):
    """Arguments of ssd_scan of one row of 8 tokens, 4 heads x 3, 2 groups and state 5, with these in their place."""
    x, B = jnp.zeros((1, 8, 4, 3)), jnp.zeros((1, 8, 2, 5))
    return dict(x=x, dt=jnp.ones((1, 8, 4)), A=-jnp.ones(4), B=B, C=B) | change


@pytest.mark.parametrize('arguments,said', [
    (dict(D=jnp.zeros((4, 2))), r'D has shape \(4, 2\); it must be \[4\] or \[4, 3\]'),
    (dict(z=jnp.zeros((1, 8, 4))), 'z has shape'),
    (dict(dt_bias=jnp.zeros(3)), 'dt_bias has shape'),
    (dict(dt_limit=(1.0, 0.1)), r'dt_limit=\(1.0, 0.1\) must be the least and the most'),
    (dict(initial_states=jnp.zeros((1, 2, 4, 3, 5))), r'initial_states has shape .* it must be \[1, 4, 3, 5\]'),
    (dict(initial_states=jnp.zeros((1, 4, 3, 5)), num_segments=2), r'it must be \[1, 2, 4, 3, 5\]'),
    (dict(num_segments=0), 'num_segments=0 must be at least 1'),
    (dict(cu_seqlens=jnp.asarray([0, 4, 9])), 'end at 8 at most'),
    (dict(cu_seqlens=jnp.asarray([0, 5, 4])), 'never fall'),
    (dict(cu_seqlens=jnp.asarray([1, 8])), 'begin with 0'),
    (dict(cu_seqlens=jnp.asarray([0.0, 8.0])), 'cu_seqlens are float32'),
    (dict(cu_seqlens=jnp.asarray([[0, 8]])), r'cu_seqlens has shape \(1, 2\)'),
    (dict(cu_seqlens=jnp.asarray([0, 8]), num_segments=1), 'num_segments is given with cu_seqlens'),
    (dict(cu_seqlens=jnp.asarray([0, 8]), segment_ids=jnp.zeros((1, 8), jnp.int32)), 'cu_seqlens and segment_ids'),
    (dict(cu_seqlens=jnp.asarray([0, 4, 8]), initial_states=jnp.zeros((1, 4, 3, 5))), r'it must be \[2, 4, 3, 5\]'),
])
def test_options_that_do_not_fit_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        ssd_scan(**changed(**arguments))


def test_cu_seqlens_of_several_rows_are_refused():
    x, B = jnp.zeros((2, 8, 4, 3)), jnp.zeros((2, 8, 2, 5))
    with pytest.raises(ValueError, match='a batch of 2; take segment_ids'):
        ssd_scan(x, jnp.ones((2, 8, 4)), -jnp.ones(4), B, B, cu_seqlens=jnp.asarray([0, 8]))


@pytest.mark.parametrize('change,said', [
    (dict(x=jnp.zeros((1, 1, 4, 3))), r'x has shape \(1, 1, 4, 3\); it must be \[batch, heads, headdim\]'),
    (dict(state=jnp.zeros((1, 4, 5, 3))), r'state has shape \(1, 4, 5, 3\); it must be \[1, 4, 3, 5\]'),
    (dict(dt=jnp.zeros(4)), 'dt has shape'),
    (dict(B=jnp.zeros((1, 3, 5)), C=jnp.zeros((1, 3, 5))), '4 heads cannot be split into the 3 groups of B'),
])
def test_arguments_of_a_step_that_do_not_fit_are_named(change, said):
    token = {k: v if k == 'A' else v[:, 0] for k, v in changed().items()}
    with pytest.raises(ValueError, match=said):
        ssd_step(**dict(state=jnp.zeros((1, 4, 3, 5))) | token | change)
