"""Full-softmax cross-entropy over the item catalogue."""
import jax
import jax.numpy as jnp

from ssd4rec_jax.dense import transposed_matmul


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
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout)).reshape(-1, readout.shape[-1])
    return _loss_sum(readout, table, targets.reshape(-1), real.reshape(-1))


@jax.custom_vjp
def _loss_sum(readout, table, targets, real):
    return _loss_sum_fwd(readout, table, targets, real)[0]


def _loss_sum_fwd(readout, table, targets, real):
    """One pass over the logits gives the loss and, being linear in the cotangent, both gradients."""
    logits = scores(readout, table)
    top = jnp.max(logits, axis=-1)
    weights = jnp.exp(logits - top[:, None])
    total = jnp.sum(weights, axis=-1)
    target_rows = jnp.take(table, targets, axis=0, mode='clip')
    target_logit = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    loss = jnp.sum(jnp.where(real, top + jnp.log(total) - target_logit, 0.0))

    scale = jnp.where(real, 1.0 / total, 0.0)[:, None]  # turns weights into the softmax of real targets
    narrow = weights.astype(readout.dtype)
    dreadout = scale * jnp.matmul(narrow, table.astype(readout.dtype), preferred_element_type=logits.dtype)
    dreadout = dreadout - jnp.where(real[:, None], target_rows, 0.0)
    wide_readout = readout.astype(logits.dtype)
    dtable = transposed_matmul((scale * wide_readout).astype(readout.dtype), narrow).T
    dtable = dtable.at[targets].add(jnp.where(real[:, None], -wide_readout, 0.0))
    return loss, (dreadout.astype(readout.dtype), dtable.astype(table.dtype))


def _loss_sum_bwd(gradients, g):
    dreadout, dtable = gradients
    return g.astype(dreadout.dtype) * dreadout, g.astype(dtable.dtype) * dtable, None, None


_loss_sum.defvjp(_loss_sum_fwd, _loss_sum_bwd)
