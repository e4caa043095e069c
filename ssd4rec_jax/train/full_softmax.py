"""Full-softmax cross-entropy over the item catalogue, with at most MAX_SCORES scores in memory at once.

A CPU takes few readouts at a time, whose scores stay in its caches, and none behind the last one with a target.

The catalogue may be split over devices (vocabulary parallelism). Each device then computes the scores of its own items
for the readouts of all devices, and the maxima, the sums and the target scores are combined.
"""
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import add_rows
from pallas_kernels.target import target
from ssd4rec_jax.model.dense import transposed_matmul
from ssd4rec_jax.model.scores import MAX_SCORES, scores
from ssd4rec_jax.model.seen import Bias, Seen, no_gradient
from ssd4rec_jax.parallel.table_shard import TableShard

TILE = 128  # So many readouts does a CPU take at a time.


def softmax_loss_sum(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, *, seen: tuple[Bias, Seen] | None = None,
    shard: TableShard | None = None, max_scores: int = MAX_SCORES,
) -> jax.Array:
    """The sum of -log softmax(readout @ table.T)[target] over this device's real targets: a scalar, float32 or wider.

    readout: [..., D]. table: [items + 1, D]; row 0, the mask item, takes part as in the released code.
    targets: int32 [...]. real: bool [...], False where there is no target.
    seen: which of the scores of readouts [rows, slots, D] get which bias.
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
    seen = seen and (seen[0], seen[1].one_list(targets.shape[-1]))
    return _loss_sum(chunk, shard, readout, table, seen, targets.reshape(-1), real.reshape(-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sum(chunk, shard, readout, table, seen, targets, real):
    return _loss_sum_fwd(chunk, shard, readout, table, seen, targets, real)[0]


def _loss_sum_fwd(chunk, shard, own_readout, table, own_seen, own_targets, own_real):
    """The loss and its gradients.

    The gradients are linear in the cotangent of the loss, so the backward pass only scales what is computed here.
    """
    if chunk < shard.held:
        gradients = functools.partial(_by_chunks, chunk)
    elif target().platform == 'cpu' and shard.shards == 1 and len(own_readout) > TILE:
        gradients = _by_tiles
    else:
        gradients = _whole_part
    readout, targets, real = (shard.gather(a) for a in (own_readout, own_targets, own_real))
    seen = own_seen and (own_seen[0], own_seen[1].of_all_devices(shard, len(own_readout)))
    at, here = shard.find(targets)
    counted = real & here
    log_total, target_score, expected_row, dtable, dseen = gradients(
        shard, readout, table, seen, jnp.where(here, at, 0), real, counted
    )
    loss = jnp.where(real, log_total - shard.sum(jnp.where(here, target_score, 0.0)), 0.0)
    target_rows = jnp.take(table, at, axis=0, mode='clip')
    dreadout = shard.own_sum(expected_row - jnp.where(counted[:, None], target_rows, 0.0))
    dtable = add_rows(dtable, at, jnp.where(counted[:, None], -readout.astype(dtable.dtype), 0.0))
    of_seen = None if own_seen is None else (dseen, own_seen[1])
    return jnp.sum(shard.own(loss)), (dreadout.astype(readout.dtype), dtable.astype(table.dtype), of_seen)


def _whole_part(shard, readout, table, seen, targets, real, counted):
    """The sums and products that the loss and its gradients consist of, with each score computed once.

    readout: [n, D], of all devices. targets: int32 [n], as rows of this device's part. counted: bool [n], whether the
    target is real and in this part. Returns (log sum exp of all scores [n], the targets' scores [n], softmax @ table
    [n, D], softmax^T @ readout [held, D], the gradient of the bias of `seen` or None).
    The products leave out targets that are not real; all but the first cover only the items of this device.
    """
    logits = shard.hide_padding(_with_seen(scores(readout, table), seen))
    top = jnp.max(logits, axis=-1, initial=_lowest(logits.dtype))
    weights = jnp.exp(logits - top[:, None])
    log_total, scale = _over_shards(shard, top, jnp.sum(weights, axis=-1), real)
    target_score = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    expected_row, dtable = _products(weights, scale, readout, table)
    return log_total, target_score, expected_row, dtable, _of_seen(seen, weights, scale, targets, counted)


def _by_tiles(shard, readout, table, seen, targets, real, counted):
    """The same as _whole_part, for TILE readouts at a time until no real target is left, and zero for the others.

    `seen` counts the readouts in their own order. Without it those with a real target come first.
    """
    n = len(readout)
    order = jnp.arange(n) if seen is not None else jnp.argsort(~real, stable=True)
    own = [
        jnp.pad(jnp.take(a, order, axis=0), [(0, -n % TILE)] + [(0, 0)] * (a.ndim - 1))
        for a in (readout, targets, real, counted)
    ]

    def of_tile(number, sums):
        first = number * TILE
        here = seen and (seen[0], seen[1].part(first_readout=first, readouts=TILE))
        readout, *rest = (lax.dynamic_slice_in_dim(a, first, TILE) for a in own)
        *of_readouts, dtable, dseen = _whole_part(shard, readout, table, here, *rest)
        of_all, all_dtable, all_dseen = sums
        of_all = [lax.dynamic_update_slice_in_dim(a, b, first, 0) for a, b in zip(of_all, of_readouts, strict=True)]
        return of_all, all_dtable + dtable, jax.tree.map(jnp.add, all_dseen, dseen)

    # Zeros made from the inputs vary over the same axes of a shard_map as the inputs do.
    zero = jnp.zeros_like(own[0] * table[0], jnp.promote_types(readout.dtype, jnp.float32))
    none = None if seen is None else jax.tree.map(jnp.zeros_like, seen[0])
    zeros = [zero[:, 0], zero[:, 0], zero], zero[0] * jnp.zeros_like(table, zero.dtype), none
    last = jnp.max(jnp.where(own[2], jnp.arange(len(zero)), -1))
    of_all, dtable, dseen = lax.fori_loop(0, last // TILE + 1, of_tile, zeros)
    return *(jnp.zeros_like(a[:n]).at[order].set(a[:n]) for a in of_all), dtable, dseen


def _by_chunks(chunk, shard, readout, table, seen, targets, real, counted):
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
        return jnp.where(new, shard.hide_padding(_with_seen(scores(readout, rows), seen, at), at), -jnp.inf), rows, at

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
        expected_row, dtable, dseen = carry
        logits, rows, at = chunk_scores(start)
        weights = jnp.exp(logits - top[:, None])
        more_expected, more_dtable = _products(weights, scale, readout, rows)
        here = lax.dynamic_slice_in_dim(dtable, at, chunk)
        dtable = lax.dynamic_update_slice_in_dim(dtable, here + more_dtable, at, 0)
        if seen is not None:
            mine = counted & (targets >= start) & (targets < start + chunk)
            more_dseen = _of_seen(seen, weights, scale, targets - at, mine, at)
            dseen = jax.tree.map(jnp.add, dseen, more_dseen)
        return (expected_row + more_expected, dtable, dseen), None

    zeros = zero[:, None] * jnp.zeros_like(readout, wide), zero[0] * jnp.zeros_like(table, wide)
    none = None if seen is None else jax.tree.map(jnp.zeros_like, seen[0])
    (expected_row, dtable, dseen), _ = lax.scan(multiply, (*zeros, none), starts)
    return log_total, target_score, expected_row, dtable, dseen


def _with_seen(logits, seen, first=0):
    """The scores of this device's items first, first + 1, ... with what `seen` adds to them."""
    return logits if seen is None else seen[1].part(first_column=first).add_to(logits, seen[0])


def _of_seen(seen, weights, scale, targets, counted, first=0):
    """The gradient of the loss with respect to the bias of `seen`, or None.

    scale * weights: [n, columns], the softmax for the items first, first + 1, ... targets: their columns; counted: bool
    [n], whether the target is among these.
    """
    if seen is None:
        return None

    def dscore(readout, item):
        share = weights.at[readout, item].get(mode='fill', fill_value=0)
        row = jnp.minimum(readout, len(targets) - 1)
        return share * scale[row, 0] - ((item == targets[row]) & (readout == row) & counted[row])

    return seen[1].part(first_column=first).sums(dscore, seen[0])


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
    scaled = jax.tree.map(lambda a: g.astype(a.dtype) * a, gradients[:2])
    of_seen = None
    if gradients[2] is not None:
        dbias, seen = gradients[2]
        of_seen = jax.tree.map(lambda a: g.astype(a.dtype) * a, dbias), no_gradient(seen)
    return *scaled, of_seen, None, None


_loss_sum.defvjp(_loss_sum_fwd, _loss_sum_bwd)
