"""What the tests of ssd_scan share: inputs, values with gradients, the recurrence as a loop, how results compare."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ssd_scan, tracing_for
from pallas_kernels.ssd.api import IMPLEMENTATIONS

INPUTS = ('x', 'dt', 'A', 'B', 'C', 'D')
GPU = 'pallas_gpu', 'pallas_gpu_fused'
PLATFORMS = {'pallas_tpu': 'tpu'} | dict.fromkeys(GPU, 'gpu')  # whose kernels are interpreted here
# Mosaic GPU's interpreter came with JAX 0.11.
HERE = [name for name in IMPLEMENTATIONS if name not in GPU or jax.__version_info__ >= (0, 11)]
NOT_GPU = [name for name in HERE if name not in GPU]  # test_pallas_gpu.py has the GPU kernels' own segments and shapes.


def each_of(names, slow):
    """A mark for each implementation of `names`; the tests of those in `slow` are slow ones."""
    return pytest.mark.parametrize('implementation', [
        pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names
    ])


# Mosaic GPU's interpreter takes seconds a call: its tests are slow ones, but for that against float64. Pallas's takes
# seconds for gradients that the tests of segments, goldens and underflow also see.
implementations = each_of(HERE, GPU)
quick_on_a_cpu = each_of(HERE, PLATFORMS)

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


TWO = segments([60, 70], [3, 127])


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
