"""Where the histories lie in packed rows, as the arrays every layer reads."""
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """Per-token and per-history positions of a packed step.

    segment_ids: int32 [rows, tokens], 1, 2, ... per row, 0 = padding.
    slot: int32 [rows, tokens], slot of the token's history, `segments` (one too many) in padding.
    position: int32 [rows, tokens], index of the token in its own history; 0 in padding.
    remaining: int32 [rows, tokens], tokens that follow in its own history; 0 in padding.
    mirror: int32 [rows, tokens], index in the row of the token as far from the history's end as this
      one is from its start; its own index in padding. An involution.
    starts, ends: int32 [rows, segments], index in the row of each history's first and last token, 0 where absent.
    lengths: int32 [rows, segments], 0 where absent.
    example: int32 [rows, tokens], example a token belongs to; arbitrary in padding.
    """

    segment_ids: jax.Array
    slot: jax.Array
    position: jax.Array
    remaining: jax.Array
    mirror: jax.Array
    starts: jax.Array
    ends: jax.Array
    lengths: jax.Array
    example: jax.Array

    @classmethod
    def of(cls, batch) -> 'Layout':
        """Layout of a PackedBatch (see ssd4rec_jax.data.packing)."""
        index = jnp.arange(batch.segment_ids.shape[-1], dtype=jnp.int32)
        real = batch.segment_ids > 0
        slot = jnp.maximum(batch.segment_ids - 1, 0)
        start, length, example = (
            jnp.take_along_axis(field, slot, axis=-1)
            for field in (batch.starts, batch.lengths, batch.example_ids)
        )
        last = start + length - 1
        return cls(
            segment_ids=batch.segment_ids,
            slot=jnp.where(real, slot, batch.starts.shape[-1]),
            position=jnp.where(real, index - start, 0),
            remaining=jnp.where(real, last - index, 0),
            mirror=jnp.where(real, start + last - index, index),
            starts=batch.starts,
            ends=jnp.maximum(batch.starts + batch.lengths - 1, 0),
            lengths=batch.lengths,
            example=example,
        )


def take_tokens(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [rows, tokens, ...] at token indices [rows, n]: [rows, n, ...]."""
    return jax.vmap(lambda row, at: row[at])(x, index)


def of_history(x: jax.Array, slot: jax.Array, *index: jax.Array) -> jax.Array:
    """What each token's history holds: x [rows, segments, ...] at slot and further indices [rows, tokens]; 0 in padding."""
    return jax.vmap(lambda row, *at: row.at[at].get(mode='fill', fill_value=0))(x, slot, *index)


@jax.custom_vjp
def mirror_within_segment(x: jax.Array, mirror: jax.Array) -> jax.Array:
    """x [rows, tokens, channels] with each history reversed in place, dtype of x.

    The mirror is its own inverse, so the gradient is the same gather instead of a scatter.
    """
    return take_tokens(x, mirror)


def _mirror_fwd(x, mirror):
    return mirror_within_segment(x, mirror), mirror


def _mirror_bwd(mirror, g):
    return mirror_within_segment(g, mirror), None


mirror_within_segment.defvjp(_mirror_fwd, _mirror_bwd)
