"""Full-softmax cross-entropy over the item catalogue."""
import jax
import jax.numpy as jnp


def scores(readout: jax.Array, table: jax.Array) -> jax.Array:
    """Dot products [..., D] x [items + 1, D] -> [..., items + 1], float32 whatever the inputs' dtype (float64 kept)."""
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    return jnp.einsum('...d,vd->...v', readout, table.astype(readout.dtype), preferred_element_type=wide)


def softmax_loss_sum(readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array) -> jax.Array:
    """Sum over real targets of -log softmax(readout @ table.T)[target].

    readout [..., D], table [items + 1, D] (row 0, the mask item, takes part as in the released code), targets
    int32 [...], real bool [...]. The caller divides by the global count of targets.
    """
    # A slot without a history may hold anything, NaN included; zeros keep it out of the gradient as well.
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout))
    logits = scores(readout, table)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(real, jax.nn.logsumexp(logits, axis=-1) - target_logit, 0.0))
