"""ssd_step: one token on a state, as a model decodes."""
import jax
import jax.numpy as jnp

from pallas_kernels.ssd.arguments import check_step
from pallas_kernels.ssd.decay import log_decay
from pallas_kernels.ssd.pointwise import Limit, skip_and_gate, step_sizes


def ssd_step(
    state: jax.Array, x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *,
    D: jax.Array | None = None, z: jax.Array | None = None, dt_bias: jax.Array | None = None,
    dt_softplus: bool = False, dt_limit: Limit | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token of ssd_scan on the state that the tokens before it left.

    All arithmetic is in float32 at least. It runs on every platform, and has JAX's own gradients. Source: the
    recurrence of Mamba-2 (Dao and Gu 2024), eq. 3, which its selective_state_update computes in place.

    Args:
      state: [batch, heads, headdim, d_state], such as ssd_scan's final states, or zeros.
      x: [batch, heads, headdim].
      dt: [batch, heads].
      A: [heads], negative.
      B, C: [batch, groups, d_state], in x's dtype. groups divides heads.
      D, z, dt_bias, dt_softplus, dt_limit: as in ssd_scan; z has x's shape.

    Returns (y with the shape and dtype of x, the new state with the shape and dtype of `state`).

    Raises ValueError that names the argument that does not fit.
    """
    check_step(state, x, dt, A, B, C, D, z, dt_bias, dt_limit)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dt = step_sizes(dt, dt_bias, dt_softplus, dt_limit, wide)
    B, C = (jnp.repeat(a.astype(wide), x.shape[1] // a.shape[1], axis=1) for a in (B, C))
    decay = jnp.exp(log_decay(dt, A.astype(wide)))[..., None, None]
    new = decay * state.astype(wide) + (dt[..., None] * x.astype(wide))[..., None] * B[:, :, None, :]
    y = jnp.sum(new * C[:, :, None, :], axis=-1)
    return skip_and_gate(y, x, D, z, wide), new.astype(state.dtype)
