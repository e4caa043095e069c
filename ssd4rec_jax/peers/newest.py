"""The newest items of each history, for networks that read no more of it than a fixed number."""
import jax.numpy as jnp

from ssd4rec_jax.model.layout import Layout


def newest(layout: Layout, length: int) -> Layout:
    """The same layout with each longer history cut in two: what is too old, and the newest `length` items.

    Both have segment ids, positions and remaining tokens of their own, so that neither reads the other. starts and
    lengths are those of the newest items, and mirror is as it was.
    """
    excess = jnp.maximum(layout.position + layout.remaining + 1 - length, 0)
    old = layout.position < excess
    return layout._replace(
        segment_ids=jnp.where(layout.segment_ids > 0, 2 * layout.segment_ids - old, 0),
        position=jnp.where(old, layout.position, layout.position - excess),
        remaining=jnp.where(old, excess - 1 - layout.position, layout.remaining),
        starts=layout.starts + jnp.maximum(layout.lengths - length, 0),
        lengths=jnp.minimum(layout.lengths, length),
    )
