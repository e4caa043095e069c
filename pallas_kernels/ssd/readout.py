"""SSD where each segment is read only once, at its last token e: a decayed sum over the segment instead of a scan.

    y_e = sum_j exp(s_e - s_j) dt_j (C_e . B_j) x_j        over the tokens j of e's segment

This takes groups * d_state + heads * headdim multiplications and additions for each token, and keeps no state. The
exponent s_e - s_j is summed from e back to j. It is never the difference of two long sums, so it is as exact for a
segment of 100,000 tokens as for one of ten.
"""
import jax
import jax.numpy as jnp

from pallas_kernels.ssd.decay import sum_to_end
from pallas_kernels.sums import of_segment, segment_sums


def ssd_readout(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, slot: jax.Array, *, reverse: bool = False
) -> jax.Array:
    """What ssd_scan, without D, gives at the last token of each segment, or at the first token if `reverse`.

    A value that is not finite in one segment reaches no other segment, neither in values nor in gradients. Source: the
    quadratic form of Mamba-2 (Dao and Gu 2024), section 3, for one query in each segment.

    Args:
      x: [batch, length, heads, headdim].
      dt: [batch, length, heads], positive (after softplus), float32 or wider.
      A: [heads], negative, float32 or wider.
      B: [batch, length, groups, d_state].
      C: [batch, slots, groups, d_state], the C of the token that reads each segment.
      slot: int32 [batch, length], the slot that a token's segment has in C. Slots never fall along a row. The value
        `slots`, one more than the last slot, marks tokens of no segment, which therefore come last.
      reverse: whether the scan would run from the right.

    Returns [batch, slots, heads, headdim] in x's dtype, zero where a slot has no token. Sums are float32 at least.
    """
    batch, slots, groups, state = C.shape
    heads, headdim = x.shape[2:]
    wide = dt.dtype
    # Each row has one slot more, for tokens of no segment, and in the flat sum each row has slots of its own.
    flat_slot = slot + (slots + 1) * jnp.arange(batch, dtype=slot.dtype)[:, None]
    rows = jnp.pad(C, ((0, 0), (0, 1), (0, 0), (0, 0))).reshape(batch * (slots + 1), groups * state)
    query = of_segment(rows, flat_slot.reshape(-1)).reshape(*slot.shape, groups, state)
    score = jnp.einsum('blgn,blgn->blg', query.astype(wide), B.astype(wide))
    weight = jnp.exp(sum_to_end(dt * A, slot, reverse=reverse)) * dt * jnp.repeat(score, heads // groups, axis=-1)
    # With einsum, the gradient of the weights is a dot too, and XLA's CPU backend sums a dot several times as fast.
    terms = jnp.einsum('blh,blhp->blhp', weight, x.astype(wide)).reshape(-1, heads * headdim)
    sums = segment_sums(terms, flat_slot.reshape(-1), batch * (slots + 1))
    return sums.reshape(batch, slots + 1, heads, headdim)[:, :slots].astype(x.dtype)


def ssd_weights_from_start(dt: jax.Array, A: jax.Array, slot: jax.Array) -> jax.Array:
    """The weight of each token in a scan from the right that is read at the first token of the segment.

    It is dt_k times the decay over the tokens of the segment before k.

    Args:
      dt, A, slot: as in ssd_readout.

    Returns [batch, length, heads] in the dtype of dt.
    """
    return jnp.exp(sum_to_end(dt * A, slot, reverse=True)) * dt
