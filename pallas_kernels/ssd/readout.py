"""SSD where each segment is read once, at its last token: a decayed segment-sum instead of a scan.

    y_e = sum_j exp(s_e - s_j) dt_j (C_e . B_j) x_j        over the tokens j of e's segment

costs state + heads * headdim multiply-adds a token and keeps no state. s_e - s_j is summed from e back to j, never
taken as a difference of long sums, so it is as exact for a segment of 100,000 tokens as for one of ten.
"""
import jax
import jax.numpy as jnp

from pallas_kernels.ssd.segments import running_sum


def ssd_readout(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, slot: jax.Array, *, reverse: bool = False
) -> jax.Array:
    """What ssd_scan gives at the last token of each segment (the first, if reverse), without D.

    Args:
      x: [batch, length, heads, headdim].
      dt: [batch, length, heads] after softplus; A: [heads], negative. Both float32 or wider.
      B: [batch, length, groups, state].
      C: [batch, slots, groups, state], the query of each segment.
      slot: int32 [batch, length], the slot whose segment a token belongs to, never falling along a row. `slots` (one
        too many) marks tokens of no segment, which so come last.

    Returns [batch, slots, heads, headdim] in x's dtype, zero where a slot has no token. Sums are float32 at least. A
    value that is not finite in one segment reaches no other, in values and gradients.
    """
    batch, slots, groups, state = C.shape
    heads, headdim = x.shape[2:]
    wide = dt.dtype
    # One slot more a row, for tokens of no segment; rows get slots of their own in the flat sum.
    flat_slot = slot + (slots + 1) * jnp.arange(batch, dtype=slot.dtype)[:, None]
    query = jnp.pad(C, ((0, 0), (0, 1), (0, 0), (0, 0))).reshape(batch * (slots + 1), groups, state)[flat_slot]
    score = jnp.einsum('blgn,blgn->blg', query.astype(wide), B.astype(wide))
    weight = jnp.exp(_decay_to_end(dt * A, slot, reverse)) * dt * jnp.repeat(score, heads // groups, axis=-1)
    # einsum: the gradient of the weights is then a dot too, which XLA's CPU backend sums several times as fast.
    terms = jnp.einsum('blh,blhp->blhp', weight, x.astype(wide)).reshape(-1, heads * headdim)
    sums = jax.ops.segment_sum(
        terms, flat_slot.reshape(-1), num_segments=batch * (slots + 1), indices_are_sorted=True
    )
    return sums.reshape(batch, slots + 1, heads, headdim)[:, :slots].astype(x.dtype)


def ssd_weights_from_start(dt: jax.Array, A: jax.Array, slot: jax.Array) -> jax.Array:
    """What each token weighs in a scan from the right that is read at its segment's first token: [batch, length, heads].

    dt_k times the decay over the tokens before k. dt, A and slot as in ssd_readout.
    """
    return jnp.exp(_decay_to_end(dt * A, slot, reverse=True)) * dt


def _decay_to_end(a: jax.Array, slot: jax.Array, reverse: bool) -> jax.Array:
    """[batch, length, heads]: sum of `a` over the tokens after each one in its segment (before it, if reverse)."""
    same = (slot[:, 1:] == slot[:, :-1])[..., None]
    edge = ((0, 0), (1, 0) if reverse else (0, 1), (0, 0))
    nearer = jnp.pad(jnp.where(same, a[:, :-1] if reverse else a[:, 1:], 0), edge)
    return running_sum(nearer, slot, reverse=not reverse)
