"""Scores over the item catalogue and full-softmax cross-entropy, never more of the scores in memory than MAX_SCORES."""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ssd4rec_jax.dense import transposed_matmul

# Elements of a [targets, items + 1] array, 512 MB in float32. Below it the loss computes the scores once; above it
# it computes them twice, a part of the catalogue at a time.
MAX_SCORES = 2**27


def scores(readout: jax.Array, table: jax.Array) -> jax.Array:
    """Dot products [..., D] x [items + 1, D] -> [..., items + 1], float32 whatever the inputs' dtype (float64 kept)."""
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    return jnp.einsum('...d,vd->...v', readout, table.astype(readout.dtype), preferred_element_type=wide)


def map_scores(f: Callable, readout: jax.Array, table: jax.Array, *args: jax.Array, max_scores: int = MAX_SCORES):
    """f(scores [n, items + 1], *args [n, ...]), which treats rows alone, on as many of the rows at a time as fit.

    readout [n, D], table [items + 1, D]; returns f's pytree of [n, ...] arrays.
    """
    at_once = max(1, max_scores // table.shape[0])
    if len(readout) <= at_once:
        return f(scores(readout, table), *args)

    def of_one(row):
        return jax.tree.map(lambda a: a[0], f(scores(row[0][None], table), *(a[None] for a in row[1:])))

    return lax.map(of_one, (readout, *args), batch_size=at_once)


def softmax_loss_sum(
    readout: jax.Array, table: jax.Array, targets: jax.Array, real: jax.Array, *, max_scores: int = MAX_SCORES
) -> jax.Array:
    """Sum over real targets of -log softmax(readout @ table.T)[target].

    readout [..., D], table [items + 1, D] (row 0, the mask item, takes part as in the released code), targets
    int32 [...], real bool [...]. The caller divides by the global count of targets. max_scores: elements of the
    scores that may lie in memory at a time.
    """
    # A slot without a history may hold anything, NaN included; zeros keep it out of the gradient as well.
    readout = jnp.where(real[..., None], readout, jnp.zeros_like(readout)).reshape(-1, readout.shape[-1])
    chunk = min(table.shape[0], max(1, max_scores // len(readout)))
    return _loss_sum(chunk, readout, table, targets.reshape(-1), real.reshape(-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_sum(chunk, readout, table, targets, real):
    return _loss_sum_fwd(chunk, readout, table, targets, real)[0]


def _loss_sum_fwd(chunk, readout, table, targets, real):
    """The loss and, since it is linear in its cotangent, both gradients, which are all the backward pass needs."""
    gradients = _whole_catalogue if chunk == table.shape[0] else functools.partial(_by_chunks, chunk)
    log_total, target_score, expected_row, dtable = gradients(readout, table, targets, real)
    loss = jnp.sum(jnp.where(real, log_total - target_score, 0.0))
    target_rows = jnp.take(table, targets, axis=0, mode='clip')
    dreadout = expected_row - jnp.where(real[:, None], target_rows, 0.0)
    dtable = dtable.at[targets].add(jnp.where(real[:, None], -readout.astype(dtable.dtype), 0.0))
    return loss, (dreadout.astype(readout.dtype), dtable.astype(table.dtype))


def _whole_catalogue(readout, table, targets, real):
    """log sum exp of the scores [n], the targets' scores [n], softmax @ table [n, D], softmax^T @ readout [items + 1, D].

    The latter two count real targets alone. The scores are computed once.
    """
    logits = scores(readout, table)
    top = jnp.max(logits, axis=-1)
    weights = jnp.exp(logits - top[:, None])
    total = jnp.sum(weights, axis=-1)
    target_score = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    scale = jnp.where(real, 1.0 / total, 0.0)[:, None]  # turns weights into the softmax of real targets
    expected_row, dtable = _products(weights, scale, readout, table)
    return top + jnp.log(total), target_score, expected_row, dtable


def _by_chunks(chunk, readout, table, targets, real):
    """The same from `chunk` items at a time: a first pass for the sums, a second one for the products."""
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    size = table.shape[0]
    starts = jnp.arange(0, size, chunk)

    def chunk_scores(start):
        """Scores of items start, ..., and from where they lie in the table: the last chunk reaches back over others'."""
        at = jnp.minimum(start, size - chunk)
        rows = lax.dynamic_slice_in_dim(table, at, chunk)
        new = at + jnp.arange(chunk) >= start
        return jnp.where(new, scores(readout, rows), -jnp.inf), rows, at

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
    (top, total, target_score), _ = lax.scan(add_up, (zero - jnp.inf, zero, zero), starts)
    scale = jnp.where(real, 1.0 / total, 0.0)[:, None]

    def multiply(carry, start):
        expected_row, dtable = carry
        logits, rows, at = chunk_scores(start)
        more_expected, more_dtable = _products(jnp.exp(logits - top[:, None]), scale, readout, rows)
        here = lax.dynamic_slice_in_dim(dtable, at, chunk)
        return (expected_row + more_expected, lax.dynamic_update_slice_in_dim(dtable, here + more_dtable, at, 0)), None

    zeros = zero[:, None] * jnp.zeros_like(readout, wide), zero[0] * jnp.zeros_like(table, wide)
    (expected_row, dtable), _ = lax.scan(multiply, zeros, starts)
    return top + jnp.log(total), target_score, expected_row, dtable


def _products(weights, scale, readout, table):
    """(scale weights) @ table and its transpose @ readout, accumulated in float32 at least."""
    narrow = weights.astype(readout.dtype)
    expected_row = scale * jnp.matmul(narrow, table.astype(readout.dtype), preferred_element_type=weights.dtype)
    dtable = transposed_matmul((scale * readout.astype(scale.dtype)).astype(readout.dtype), narrow).T
    return expected_row, dtable


def _loss_sum_bwd(chunk, gradients, g):
    dreadout, dtable = gradients
    return g.astype(dreadout.dtype) * dreadout, g.astype(dtable.dtype) * dtable, None, None


_loss_sum.defvjp(_loss_sum_fwd, _loss_sum_bwd)
