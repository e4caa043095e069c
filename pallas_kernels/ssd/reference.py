"""The SSD recurrence, one token at a time, with JAX's own gradients: the oracle for all other implementations."""
import jax
import jax.numpy as jnp


def ssd_scan_reference(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, run: jax.Array, *, reverse: bool
) -> jax.Array:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T and y_t = h_t C_t, where h is zero at the start of each run.

    All arithmetic is in x's dtype, so float64 inputs make a float64 oracle. Source: Mamba-2 (Dao and Gu 2024), eq. 3.

    Args:
      x: [batch, length, heads, headdim].
      dt: [batch, length, heads].
      A: [heads].
      B, C: [batch, length, groups, d_state].
      run: int32 [batch, length], from segments.run_ids.
      reverse: whether the scan runs from the right.

    Returns y, with the shape and dtype of x.
    """
    per_group = x.shape[2] // B.shape[2]
    starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    if reverse:
        starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (0, 1)), constant_values=True)

    def step(h, token):
        x, dt, B, C, starts = token
        B, C = (jnp.repeat(a, per_group, axis=1) for a in (B, C))
        # A select and not a product with 0, because the state of the run before may be NaN.
        h = jnp.where(starts[:, None, None, None], jnp.zeros_like(h), h)
        h = h * jnp.exp(dt * A)[..., None, None] + (dt[..., None] * x)[..., None] * B[:, :, None, :]
        return h, jnp.sum(h * C[:, :, None, :], axis=-1)

    tokens = tuple(jnp.moveaxis(a, 1, 0) for a in (x, dt.astype(x.dtype), B, C, starts))
    # Zeros made from the inputs vary over the axes of a shard_map as the inputs do.
    h = jnp.zeros_like(x[:, 0, :, :, None] * jnp.repeat(B[:, 0], per_group, axis=1)[:, :, None, :])
    _, y = jax.lax.scan(step, h, tokens, reverse=reverse)
    return jnp.moveaxis(y, 0, 1)
