"""Inputs whose decays range from 1 to far below the smallest float32, shared by the tests of all implementations."""
import jax.numpy as jnp
import numpy as np

LENGTH = 300
# Segments that begin and end inside chunks, one of one token, one over many chunks, and padding (0).
IDS = jnp.asarray(np.stack([
    np.repeat([1, 2, 3, 4, 5, 0], [40, 1, 150, 3, 70, 36]), np.repeat([1, 2, 0], [5, 285, 10]),
]), jnp.int32)
# name: (smallest dt, largest dt, A of the first head, shape)
CASES = {
    'dt from 1e-7 to 80': (1e-7, 80, None, dict(heads=8, headdim=16)),
    'dt from 1e-8 to 1,000': (1e-8, 1e3, None, dict(heads=2, headdim=64, state=24)),
    'four groups': (1e-8, 1e3, None, dict(heads=8, headdim=16, groups=4)),
    'state 256': (1e-7, 80, None, dict(heads=4, headdim=32, state=256)),
    'headdim 128': (1e-8, 1e3, None, dict(heads=2, headdim=128)),
    'A dt beyond float32': (1e-8, 1e3, -3e38, dict(heads=8, headdim=16)),
    'moderate dt': (1e-3, 0.1, None, dict(heads=8, headdim=16)),
}
# (case, reverse): a case is compiled anew for each direction, so one each, and both of the shape that three share.
DIRECTIONS = [(case, n % 2 == 1) for n, case in enumerate(CASES)]


def inputs(case, seed=0):
    """(float64 arguments of ssd_scan by name, cotangent of y), of values that bfloat16 (dt, A and D: float32) holds."""
    smallest, largest, first_A, shape = CASES[case]
    heads, headdim, groups, state = (shape.get(k, n) for k, n in dict(heads=1, headdim=16, groups=1, state=16).items())
    rng = np.random.default_rng(seed)
    tokens = 2, LENGTH
    dt = np.exp(rng.uniform(np.log(smallest), np.log(largest), (*tokens, heads)))
    A = -rng.uniform(0.5, 4, heads)
    if first_A is not None:
        A[0] = first_A
    x, cotangent = rng.normal(size=(2, *tokens, heads, headdim)).astype(jnp.bfloat16)
    B, C = rng.normal(size=(2, *tokens, groups, state)).astype(jnp.bfloat16)
    D = rng.normal(size=heads).astype(np.float32)
    arrays = dict(x=x, dt=dt.astype(np.float32), A=A.astype(np.float32), B=B, C=C, D=D)
    return {k: jnp.asarray(v, jnp.float64) for k, v in arrays.items()}, jnp.asarray(cotangent, jnp.float64)


def error(ours, exact):
    """The largest difference as a share of the largest entry."""
    return float(np.abs(np.asarray(ours, np.float64) - exact).max() / np.abs(exact).max())


def error_by_head(ours, exact):
    """The same of each head's entry for itself; 0 where both are 0."""
    difference = np.abs(np.asarray(ours, np.float64) - exact)
    return float(np.divide(difference, np.abs(exact), where=difference != 0, out=np.zeros_like(difference)).max())
