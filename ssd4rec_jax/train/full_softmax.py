"""Full-softmax cross-entropy over the item catalogue, with at most MAX_SCORES scores in memory at once.

The catalogue may be split over devices (vocabulary parallelism). Each device then computes the scores of its own items
for the readouts of all devices, and the maxima, the sums and the target scores are combined.
"""
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssd4rec_jax.model.dense import transposed_matmul
from ssd4rec_jax.model.scores import MAX_SCORES, scores
from ssd4rec_jax.parallel.table_shard import TableShard


def softmax_loss_sum(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, *, shard: TableShard | None = None,
    max_scores: int = MAX_SCORES,
) -> jax.Array:
    """The sum of -log softmax(readout @ table.T)[target] over this device's real targets: a scalar, float32 or wider.

    readout: [..., D]. table: [items + 1, D]; row 0, the mask item, takes part as in the released code.
    targets: int32 [...]. real: bool [...], False where there is no target.
    shard: how the table is split, where `table` is one device's part of it inside a shard_map. Each device then gets
      the gradient of all devices' losses with respect to its part; this requires the same cotangent on all devices.
    max_scores: the number of scores that may lie in memory at once.

    The caller divides by the number of targets on all devices.
    """
    chex.assert_rank(table, 2)
    chex.assert_shape(readout, (*targets.shape, table.shape[1]))
    chex.assert_equal_shape([targets, real])
    shard = shard or TableShard(table.shape[0])
    # An empty slot may hold anything, even NaN; zeros keep it out of the loss and of the gradients.
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout)).reshape(-1, readout.shape[-1])
    chunk = min(shard.held, max(1, max_scores // (len(readout) * shard.shards)))
    return _loss_sum(chunk, shard, readout, table, targets.reshape(-1), real.reshape(-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sum(chunk, shard, readout, table, targets, real):
    return _loss_sum_fwd(chunk, shard, readout, table, targets, real)[0]


def _loss_sum_fwd(chunk, shard, own_readout, table, own_targets, own_real):
    """The loss and both of its gradients.

    The gradients are linear in the cotangent of the loss, so the backward pass only scales what is computed here.
    """
    gradients = _whole_part if chunk == shard.held else functools.partial(_by_chunks, chunk)
    readout, targets, real = (shard.gather(a) for a in (own_readout, own_targets, own_real))
    at, here = shard.find(targets)
    log_total, target_score, expected_row, dtable = gradients(shard, readout, table, jnp.where(here, at, 0), real)
    loss = jnp.where(real, log_total - shard.sum(jnp.where(here, target_score, 0.0)), 0.0)
    counted = (real & here)[:, None]
    target_rows = jnp.take(table, at, axis=0, mode='clip')
    dreadout = shard.own_sum(expected_row - jnp.where(counted, target_rows, 0.0))
    dtable = dtable.at[at].add(jnp.where(counted, -readout.astype(dtable.dtype), 0.0), mode='drop')
    return jnp.sum(shard.own(loss)), (dreadout.astype(readout.dtype), dtable.astype(table.dtype))


def _whole_part(shard, readout, table, targets, real):
    """The sums and products that the loss and its gradients consist of, with each score computed once.

    readout: [n, D], of all devices. targets: int32 [n], as rows of this device's part. Returns
    (log sum exp of all scores [n], the targets' scores [n], softmax @ table [n, D], softmax^T @ readout [held, D]).
    The last two leave out targets that are not real; all but the first cover only the items of this device.
    """
    logits = shard.hide_padding(scores(readout, table))
    top = jnp.max(logits, axis=-1, initial=_lowest(logits.dtype))
    weights = jnp.exp(logits - top[:, None])
    log_total, scale = _over_shards(shard, top, jnp.sum(weights, axis=-1), real)
    target_score = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    expected_row, dtable = _products(weights, scale, readout, table)
    return log_total, target_score, expected_row, dtable


def _by_chunks(chunk, shard, readout, table, targets, real):
    """The same as _whole_part, for `chunk` items at a time.

    A first pass over the items computes the sums, and a second pass computes the products.
    """
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    size = table.shape[0]
    starts = jnp.arange(0, size, chunk)

    def chunk_scores(start):
        """The scores [n, chunk], the rows and the first row `at` of the chunk that begins at item `start`.

        The last chunk starts early enough to fit; its scores of items before `start` are -inf.
        """
        at = jnp.minimum(start, size - chunk)
        rows = lax.dynamic_slice_in_dim(table, at, chunk)
        new = at + jnp.arange(chunk) >= start
        return jnp.where(new, shard.hide_padding(scores(readout, rows), at), -jnp.inf), rows, at

    def add_up(carry, start):
        top, total, target_score = carry
        logits, _, at = chunk_scores(start)
        new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
        total = total * jnp.exp(top - new_top) + jnp.sum(jnp.exp(logits - new_top[:, None]), axis=-1)
        here = jnp.take_along_axis(logits, jnp.clip(targets - at, 0, chunk - 1)[:, None], axis=-1)[:, 0]
        mine = (targets >= start) & (targets < start + chunk)
        return (new_top, total, jnp.where(mine, here, target_score)), None

    # Zeros made from the inputs vary over the same axes of a shard_map as the inputs do.
    zero = jnp.zeros_like(readout[:, 0] * table[0, 0], wide)
    (top, total, target_score), _ = lax.scan(add_up, (zero + _lowest(wide), zero, zero), starts)
    log_total, scale = _over_shards(shard, top, total, real)

    def multiply(carry, start):
        expected_row, dtable = carry
        logits, rows, at = chunk_scores(start)
        more_expected, more_dtable = _products(jnp.exp(logits - top[:, None]), scale, readout, rows)
        here = lax.dynamic_slice_in_dim(dtable, at, chunk)
        return (expected_row + more_expected, lax.dynamic_update_slice_in_dim(dtable, here + more_dtable, at, 0)), None

    zeros = zero[:, None] * jnp.zeros_like(readout, wide), zero[0] * jnp.zeros_like(table, wide)
    (expected_row, dtable), _ = lax.scan(multiply, zeros, starts)
    return log_total, target_score, expected_row, dtable


def _over_shards(shard, top, total, real):
    """Combines the maxima `top` [n] and the sums `total` [n] of exp(score - top) of all devices.

    Returns (log sum exp of all scores [n], the factor [n, 1] that turns exp(score - top) into the softmax where a
    target is real and into 0 elsewhere).
    """
    highest = shard.max(top)
    ratio = jnp.exp(top - highest)
    all_total = shard.sum(total * ratio)
    return highest + jnp.log(all_total), jnp.where(real, ratio / all_total, 0.0)[:, None]


def _lowest(dtype) -> float:
    """The value at which maxima start: it keeps them finite where there is only padding, whose scores are -inf."""
    return float(jnp.finfo(dtype).min)


def _products(weights, scale, readout, table):
    """(scale * weights) @ table and (scale * weights)^T @ readout, accumulated in float32 or wider."""
    narrow = weights.astype(readout.dtype)
    expected_row = scale * jnp.matmul(narrow, table.astype(readout.dtype), preferred_element_type=weights.dtype)
    dtable = transposed_matmul((scale * readout.astype(scale.dtype)).astype(readout.dtype), narrow).T
    return expected_row, dtable


def _loss_sum_bwd(chunk, shard, gradients, g):
    dreadout, dtable = gradients
    return g.astype(dreadout.dtype) * dreadout, g.astype(dtable.dtype) * dtable, None, None


_loss_sum.defvjp(_loss_sum_fwd, _loss_sum_bwd)
