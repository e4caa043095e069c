"""The SSD recurrence one token at a time: the oracle of every other implementation. Plain autodiff."""
import jax
import jax.numpy as jnp


def ssd_scan_reference(x, dt, A, B, C, run, *, reverse: bool) -> jax.Array:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T, y_t = h_t C_t, h zero at the start of a run (Mamba-2, eq. 3).

    x [batch, length, heads, headdim], dt [batch, length, heads], A [heads], B and C [batch, length, groups, state],
    run int32 [batch, length]; y as x. Everything in x's dtype, so float64 inputs give a float64 oracle.
    """
    per_group = x.shape[2] // B.shape[2]
    starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    if reverse:
        starts = jnp.pad(run[:, 1:] != run[:, :-1], ((0, 0), (0, 1)), constant_values=True)

    def step(h, token):
        x, dt, B, C, starts = token
        B, C = (jnp.repeat(a, per_group, axis=1) for a in (B, C))
        # where, not a product with 0: the state of the run before may be NaN.
        h = jnp.where(starts[:, None, None, None], jnp.zeros_like(h), h)
        h = h * jnp.exp(dt * A)[..., None, None] + (dt[..., None] * x)[..., None] * B[:, :, None, :]
        return h, jnp.sum(h * C[:, :, None, :], axis=-1)

    tokens = tuple(jnp.moveaxis(a, 1, 0) for a in (x, dt.astype(x.dtype), B, C, starts))
    # A broadcast of the inputs' own zeros varies over a shard_map's axes as they do.
    h = jnp.zeros_like(x[:, 0, :, :, None] * jnp.repeat(B[:, 0], per_group, axis=1)[:, :, None, :])
    _, y = jax.lax.scan(step, h, tokens, reverse=reverse)
    return jnp.moveaxis(y, 0, 1)
