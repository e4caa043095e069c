"""The positions of the histories in packed rows, as arrays that every layer reads."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.errors import ConfigError


class Layout(NamedTuple):
    """The positions of the tokens and histories of a packed step.

    segment_ids: int32 [rows, tokens], 1, 2, ... in each row; 0 in padding.
    slot: int32 [rows, tokens], the slot of the token's history; in padding `segments`, one more than the last slot.
    position: int32 [rows, tokens], the token's index in its own history; 0 in padding.
    remaining: int32 [rows, tokens], the number of tokens that follow in the token's own history; 0 in padding.
    mirror: int32 [rows, tokens], the index in the row of the token that is as far from the history's end as this token
      is from its start; the token's own index in padding. Applying it twice gives the original order.
    starts, ends: int32 [rows, segments], the index in the row of each history's first and last token; 0 in empty slots.
    lengths: int32 [rows, segments], the number of tokens of each history; 0 in empty slots.
    example: int32 [rows, tokens], the example that a token belongs to; arbitrary in padding.
    features: {name: float32 [rows, tokens]} of the event features that the network reads; None where it reads none.
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
    features: dict[str, jax.Array] | None = None

    def feature(self, name: str) -> jax.Array:
        """float32 [rows, tokens], an event feature: a number, NaN where it is missing, or a category's code, 0 where it
        is missing; 0 in padding. ConfigError where the histories have no such feature."""
        if self.features is None or name not in self.features:
            raise ConfigError(
                f'the network reads the feature {name}, and these histories have only items: histories of prepared '
                "data have the features that the network's setting `features` names"
            )
        return self.features[name]

    def gaps(self, *, reverse: bool) -> jax.Array:
        """float32 [rows, tokens], the gap in time between each token and the one that is read before it: the token
        before or, with reverse, the token after it in its history.

        See ssd4rec_jax.data.gaps.Gaps.numbers. It is 0, which stands for the typical gap, at the token that is read
        first, in padding, and everywhere where the histories have items alone.
        """
        if self.features is None or TIME_GAP not in self.features:
            return jnp.zeros(self.position.shape, jnp.float32)
        gap = jnp.where(self.position > 0, self.features[TIME_GAP], 0)
        return jnp.where(self.remaining > 0, jnp.roll(gap, -1, axis=1), 0) if reverse else gap

    @classmethod
    def of(cls, batch: PackedBatch) -> 'Layout':
        """The layout of a packed batch."""
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
            features=batch.features,
        )


def take_tokens(x: jax.Array, index: jax.Array) -> jax.Array:
    """Selects tokens of x [rows, tokens, ...] by their indices [rows, n] in each row: [rows, n, ...]."""
    return jax.vmap(lambda row, at: row[at])(x, index)


def of_history(x: jax.Array, slot: jax.Array, *index: jax.Array) -> jax.Array:
    """For each token the entry of x that belongs to its history: [rows, tokens, ...], 0 in padding.

    x: [rows, segments, ...]. slot: int32 [rows, tokens] as in Layout. index: further indices [rows, tokens] into the
    axes of x after `segments`.
    """
    return jax.vmap(lambda row, *at: row.at[at].get(mode='fill', fill_value=0))(x, slot, *index)


@jax.custom_vjp
def mirror_within_segment(x: jax.Array, mirror: jax.Array) -> jax.Array:
    """x [rows, tokens, channels] with each history reversed in place; the dtype is kept. mirror: as in Layout.

    The mirror is its own inverse, so the gradient is the same gather instead of a scatter.
    """
    return take_tokens(x, mirror)


def _mirror_fwd(x, mirror):
    return mirror_within_segment(x, mirror), mirror


def _mirror_bwd(mirror, g):
    return mirror_within_segment(g, mirror), None


mirror_within_segment.defvjp(_mirror_fwd, _mirror_bwd)
