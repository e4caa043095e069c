"""Full-softmax cross-entropy over the item catalogue, never more of the scores in memory than MAX_SCORES.

The catalogue may be split over devices (vocabulary-parallel): each computes its rows' scores for the readouts of all, and
maxima, sums and target scores are combined.
"""
import functools

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
    """Sum over this device's real targets of -log softmax(readout @ table.T)[target].

    readout [..., D], table [items + 1, D] (row 0, the mask item, takes part as in the released code), targets
    int32 [...], real bool [...]. The caller divides by the global count of targets. max_scores: elements of the
    scores that may lie in memory at a time. shard: how the table is split where `table` is a device's part of it, within
    a shard_map; each device then gets the gradient of all devices' losses with respect to its part, for which their
    cotangents have to be the same.
    """
    shard = shard or TableShard(table.shape[0])
    # A slot without a history may hold anything, NaN included; zeros keep it out of the gradient as well.
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout)).reshape(-1, readout.shape[-1])
    chunk = min(shard.held, max(1, max_scores // (len(readout) * shard.shards)))
    return _loss_sum(chunk, shard, readout, table, targets.reshape(-1), real.reshape(-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sum(chunk, shard, readout, table, targets, real):
    return _loss_sum_fwd(chunk, shard, readout, table, targets, real)[0]


def _loss_sum_fwd(chunk, shard, own_readout, table, own_targets, own_real):
    """The loss and, since it is linear in its cotangent, both gradients, which are all the backward pass needs."""
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
    """Of all devices' readouts [n, D] and targets as rows of this device's part:

    log sum exp of the scores [n], the targets' scores [n], softmax @ table [n, D], softmax^T @ readout [held, D]. The
    latter two count real targets alone; all but the first are of this device's rows. The scores are computed once.
    """
    logits = shard.hide_padding(scores(readout, table))
    top = jnp.max(logits, axis=-1, initial=_lowest(logits.dtype))
    weights = jnp.exp(logits - top[:, None])
    log_total, scale = _over_shards(shard, top, jnp.sum(weights, axis=-1), real)
    target_score = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    expected_row, dtable = _products(weights, scale, readout, table)
    return log_total, target_score, expected_row, dtable


def _by_chunks(chunk, shard, readout, table, targets, real):
    """The same from `chunk` items at a time: a first pass for the sums, a second one for the products."""
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    size = table.shape[0]
    starts = jnp.arange(0, size, chunk)

    def chunk_scores(start):
        """Scores of items start, ..., and from where they lie in the table: the last chunk reaches back over others'."""
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

    # A broadcast of the inputs' own zeros varies over a shard_map's axes as they do.
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
    """From this device's max [n] and sum of exp(score - max): log sum exp over all devices' scores, and the factor
    [n, 1] that turns exp(score - its own max) into the softmax of real targets."""
    highest = shard.max(top)
    ratio = jnp.exp(top - highest)
    all_total = shard.sum(total * ratio)
    return highest + jnp.log(all_total), jnp.where(real, ratio / all_total, 0.0)[:, None]


def _lowest(dtype) -> float:
    """Where maxima begin: of nothing but padding, whose scores are -inf, the maximum is still a number."""
    return float(jnp.finfo(dtype).min)


def _products(weights, scale, readout, table):
    """(scale weights) @ table and its transpose @ readout, accumulated in float32 at least."""
    narrow = weights.astype(readout.dtype)
    expected_row = scale * jnp.matmul(narrow, table.astype(readout.dtype), preferred_element_type=weights.dtype)
    dtable = transposed_matmul((scale * readout.astype(scale.dtype)).astype(readout.dtype), narrow).T
    return expected_row, dtable


def _loss_sum_bwd(chunk, shard, gradients, g):
    dreadout, dtable = gradients
    return g.astype(dreadout.dtype) * dreadout, g.astype(dtable.dtype) * dtable, None, None


_loss_sum.defvjp(_loss_sum_fwd, _loss_sum_bwd)
