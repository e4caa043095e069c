"""Whether an implementation of ssd_scan agrees with the float32 reference on this machine's device."""
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import ssd_scan
from pallas_kernels.ssd.workloads import Workload

TOLERANCE = 0.02  # of the largest value: bfloat16 keeps 8 bits, and sums of products keep some of them.
CALLS = 3  # A race between a kernel's copies and its matmuls may spare the first call.
SHAPES = (
    Workload(1, 64, 4, 16, 1, 16, 64),
    Workload(1, 70, 4, 16, 1, 64, 9),
    Workload(1, 300, 2, 128, 1, 256, 60),
    Workload(1, 1000, 6, 32, 2, 64, 300),
    Workload(1, 1000, 8, 64, 1, 128, 300),
    Workload(7, 2048, 32, 16, 1, 64, 50),
)


def disagreement(w: Workload, reverse: bool, implementation: str) -> dict[str, float]:
    """The largest error of y and of each gradient in CALLS calls, as a share of the largest value of the reference.

    x, B and C are bfloat16, and the reference computes with the same numbers in float32.
    """
    numpy_arrays, numpy_ids = w.arrays(seed=1)
    ids = jnp.asarray(numpy_ids)
    arrays = {k: jnp.asarray(a, jnp.bfloat16 if k in 'xBC' else jnp.float32) for k, a in numpy_arrays.items()}
    g = jnp.asarray(np.random.default_rng(2).normal(size=arrays['x'].shape), jnp.bfloat16)

    def both(arrays: dict[str, jax.Array], name: str) -> dict[str, jax.Array]:
        y, vjp = jax.vjp(lambda a: ssd_scan(**a, segment_ids=ids, reverse=reverse, implementation=name), arrays)
        return {'y': y, **vjp(g.astype(y.dtype))[0]}

    run = jax.jit(both, static_argnums=1)
    expected = run({k: a.astype(jnp.float32) for k, a in arrays.items()}, 'reference')
    return largest_errors(lambda: run(arrays, implementation), expected)


def largest_errors(call: Callable[[], dict[str, jax.Array]], expected: dict[str, jax.Array]) -> dict[str, float]:
    """The largest error of each array in CALLS calls, as a share of its largest expected value.

    A value that is not finite counts as an infinite error.
    """
    errors = dict.fromkeys(expected, 0.0)
    for _ in range(CALLS):
        for name, a in call().items():
            error = float(jnp.max(jnp.abs(a.astype(jnp.float32) - expected[name])) / jnp.max(jnp.abs(expected[name])))
            errors[name] = max(errors[name], error if np.isfinite(error) else np.inf)
    return errors


def agrees(w: Workload, reverse: bool, implementation: str) -> bool:
    """Whether every error is within TOLERANCE; an implementation that raises an error does not agree."""
    try:
        return max(disagreement(w, reverse, implementation).values()) <= TOLERANCE
    except Exception:  # Whatever a compiler or driver raises is what this looks for.
        return False


def compare(implementation: str, shapes: tuple[Workload, ...] = SHAPES) -> dict[str, Any]:
    """Every shape in both directions: {'cases': [...], 'smallest_failing': a case or None}."""
    cases, failing = [], []
    for w in shapes:
        for reverse in (False, True):
            case: dict[str, Any] = {'shape': list(w), 'reverse': reverse}
            try:
                errors = disagreement(w, reverse, implementation)
                case |= {'errors': errors, 'agrees': max(errors.values()) <= TOLERANCE}
            except Exception as error:
                case |= {'error': ' '.join(str(error).split())[:500], 'agrees': False}
            cases.append(case)
            if not case['agrees']:
                failing.append((w, reverse))
    smallest = min(failing, key=lambda f: size(f[0]), default=None)
    if smallest is not None:
        w, reverse = smallest
        smallest = shrunk(w, reverse, implementation), reverse
    return {'cases': cases, 'smallest_failing': smallest and {'shape': list(smallest[0]), 'reverse': smallest[1]}}


def size(w: Workload) -> int:
    """The elements of x and of the states, by which shapes are compared."""
    return w.batch * w.length * w.heads * (w.headdim + w.state)


def shrunk(w: Workload, reverse: bool, implementation: str) -> Workload:
    """A failing shape made smaller for as long as it fails."""
    return next(
        (shrunk(less, reverse, implementation) for less in _smaller(w) if not agrees(less, reverse, implementation)), w
    )


def _smaller(w: Workload) -> Iterator[Workload]:
    if w.batch > 1:
        yield w._replace(batch=1)
    if w.groups > 1:
        yield w._replace(groups=1, heads=w.heads // w.groups)
    for field, least in (('length', 1), ('heads', w.groups), ('state', 16), ('headdim', 16)):
        half = getattr(w, field) // 2
        if half >= least and (field != 'heads' or half % w.groups == 0):
            yield w._replace(**{field: half})
