"""The logarithms of decays, a = dt * A, summed and differentiated without losing digits where decays underflow.

Within a chunk the decay from token j to a later token i is exp(s_i - s_j), where s is the running sum of a. One token
with a large |a| makes |s| large at all tokens after it, and float32 keeps few digits of the difference of two large
numbers. Three things prevent that loss: a has a lower bound, s is summed in two parts of which the large one is exact,
and the sums of the gradient end at every token whose decay vanishes.
"""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.ssd.segments import running_sum

# exp(-100) is below the smallest normal number of float32. The bound keeps every sum finite: the difference of two
# infinite sums would be NaN.
FLOOR = -100.0


def log_decay(dt: jax.Array, A: jax.Array) -> jax.Array:
    """dt * A, but at least FLOOR. The shapes broadcast, and NaN stays NaN."""
    return jnp.maximum(dt * A, FLOOR)


def exact_parts(a: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
    """(coarse, fine), two arrays that add up to `a`, for sums over at most `tokens` values between FLOOR and 0.

    coarse holds multiples of a power of two, chosen so that float32 adds and subtracts the sums without rounding, in
    any order. fine holds the rest. It is so small that the rounding of its sums over a few hundred tokens is below the
    precision of a decay.
    """
    scale = 2.0 ** (24 - math.ceil(math.log2(-FLOOR * tokens)))
    coarse = jnp.round(a * scale) / scale
    return coarse, a - coarse


def vanishes(a: jax.Array) -> jax.Array:
    """bool, a's shape: whether exp(a) is so small that what lies before the token is lost in rounding after it."""
    return a < math.log(jnp.finfo(a.dtype).eps / 16)


def log_decay_gradient(
    ds: jax.Array, counts: jax.Array, token: jax.Array, size: int, *, reverse: bool,
    roll: Callable[[jax.Array, int], jax.Array],
) -> jax.Array:
    """The gradient of a, within one chunk, from the gradient of s: the sum of ds over a token and those after it.

    In that sum the pairs of tokens that do not span the token cancel, up to rounding. Where the token's decay vanishes,
    nothing but this rounding would be left, and its factor in the gradient of A, dt, is largest there. So the gradient
    is 0 at such a token, and sums from tokens before it end at it.

    Args:
      ds: the gradient of s, in float32 or float64, any shape with one axis of `size` tokens.
      counts: 1.0 where the token's decay does not vanish and has something to act on, that is, where the token before
        it in scan direction, or the state that enters the chunk, belongs to its run. 0.0 elsewhere. Its shape and dtype
        are those of ds.
      token: int, the index of each token in the chunk, broadcastable against ds.
      size: tokens of the chunk, a power of two or not.
      reverse: whether the scan runs from the right.
      roll: roll(array, n) moves each token's value n places to the right and the last n values to the front.

    Returns an array of ds's shape and dtype.
    """
    def ahead(values: jax.Array, n: int) -> jax.Array:
        """The value of the token n places further on, at each token. Behind the last token come the first ones."""
        return roll(values, n if reverse else size - n)

    # Each step doubles the tokens that `total` covers. `joined` says whether the sum that follows them belongs to it.
    first = token == (size - 1 if reverse else 0)
    total, joined, covered = ds, ahead(jnp.where(first, 0, counts), 1), 1
    while covered < size:
        total = total + jnp.where(joined > 0, ahead(total, covered), 0)
        joined = joined * ahead(joined, covered)
        covered *= 2
    return jnp.where(counts > 0, total, 0)


def sum_to_end(a: jax.Array, run: jax.Array, *, reverse: bool) -> jax.Array:
    """The sum of `a` over the tokens of the run after each token, or before each token if `reverse`.

    It is summed towards the token, and is never the difference of two longer sums.

    Args:
      a: [batch, length, heads].
      run: int32 [batch, length], as in segments.running_sum.
      reverse: whether the scan runs from the right.

    Returns an array of a's shape and dtype.
    """
    same = (run[:, 1:] == run[:, :-1])[..., None]
    edge = ((0, 0), (1, 0) if reverse else (0, 1), (0, 0))
    nearer = jnp.pad(jnp.where(same, a[:, :-1] if reverse else a[:, 1:], 0), edge)
    return running_sum(nearer, run, reverse=not reverse)
