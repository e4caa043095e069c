"""Packed rows with a mask token behind each history, for networks that are asked what belongs in its place."""
import jax
import jax.numpy as jnp

from pallas_kernels.hashing import mix
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout


def with_mask_token(items: jax.Array, layout: Layout, draws: Draws | None) -> tuple[jax.Array, Layout, Draws | None]:
    """(items, layout, draws) of rows in which each history has one more item at its end, item 0.

    items: int32 [rows, tokens]; the new rows have [rows, tokens + segments]. The layout has no features. The draws of a
    mask token are made from those of the item before it.
    """
    (rows, tokens), segments = items.shape, layout.lengths.shape[1]
    slots = jnp.arange(segments, dtype=jnp.int32)
    row = jnp.arange(rows)[:, None]
    moved = jnp.arange(tokens) + layout.slot  # Each token moves past the mask tokens of the histories before its own.
    real = layout.lengths > 0
    added = jnp.where(real, layout.ends + slots + 1, tokens + segments)  # An empty slot writes nowhere.

    def widened(x, at_masks):
        wide = jnp.zeros((rows, tokens + segments), x.dtype).at[row, moved].set(x)
        return wide.at[row, added].set(at_masks, mode='drop')

    batch = PackedBatch(
        items=widened(items, 0), segment_ids=widened(layout.segment_ids, slots + 1),
        starts=jnp.where(real, layout.starts + slots, 0), lengths=jnp.where(real, layout.lengths + 1, 0),
        targets=None, example_ids=jnp.take_along_axis(layout.example, layout.ends, axis=1),
    )
    if draws is not None:
        draws = Draws(widened(draws.token_keys, mix(draws.at(layout.ends).token_keys)))
    return batch.items, Layout.of(batch), draws
