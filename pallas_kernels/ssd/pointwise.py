"""What Mamba-2 does to each value of a token before and after the recurrence, alike for a scan and for one step."""
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# The lower and the upper bound of dt.
Limit = tuple[float, float]


def step_sizes(
    dt: jax.Array, bias: jax.Array | None, softplus: bool, limit: Limit | None, wide: DTypeLike
) -> jax.Array:
    """dt as the recurrence takes it: plus the bias, through softplus, between the limits, each where it is asked for.

    Args:
      dt: [..., heads].
      bias: [heads] or None.
      softplus: whether to apply softplus.
      limit: (least, most) or None.
      wide: the dtype to compute in.

    Returns an array of dt's shape in the dtype `wide`.
    """
    dt = dt.astype(wide)
    if bias is not None:
        dt = dt + bias.astype(wide)
    if softplus:
        dt = jax.nn.softplus(dt)
    return dt if limit is None else jnp.clip(dt, *limit)


def skip_and_gate(
    y: jax.Array, x: jax.Array, D: jax.Array | None, z: jax.Array | None, wide: DTypeLike
) -> jax.Array:
    """(y + D x) silu(z), each part where it is given.

    It is computed in the dtype `wide`, so that D's gradient is not summed in bfloat16.

    Args:
      y, x: [..., heads, headdim].
      D: [heads], [heads, headdim] or None.
      z: of x's shape, or None.
      wide: the dtype to compute in.

    Returns an array with the shape and dtype of x.
    """
    y = y.astype(wide)
    if D is not None:
        y = y + (D if D.ndim == 2 else D[:, None]).astype(wide) * x.astype(wide)
    if z is not None:
        y = y * jax.nn.silu(z.astype(wide))
    return y.astype(x.dtype)
