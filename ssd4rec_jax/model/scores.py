"""Scores of readouts over the item catalogue, with at most MAX_SCORES of them in memory at once."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# The largest number of elements of a [targets, items + 1] array: 512 MB in float32. Up to this size the loss computes
# the scores once; above it, the loss computes them twice, one part of the catalogue at a time.
MAX_SCORES = 2**27


def scores(readout: jax.Array, table: jax.Array) -> jax.Array:
    """Dot products of readout [..., D] with table [items + 1, D]: [..., items + 1].

    The result is float32 whatever the dtype of the inputs; float64 is kept.
    """
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    return jnp.einsum('...d,vd->...v', readout, table.astype(readout.dtype), preferred_element_type=wide)


def map_scores(
    f: Callable[..., Any], readout: jax.Array, table: jax.Array, *args: jax.Array, max_scores: int = MAX_SCORES
) -> Any:
    """f(scores [n, items + 1], *args [n, ...]), computed for as many rows at a time as max_scores elements allow.

    f must treat each row independently. readout: [n, D]. table: [items + 1, D]. Returns f's pytree of arrays [n, ...].
    """
    at_once = max(1, max_scores // table.shape[0])
    if len(readout) <= at_once:
        return f(scores(readout, table), *args)

    def of_one(row):
        return jax.tree.map(lambda a: a[0], f(scores(row[0][None], table), *(a[None] for a in row[1:])))

    return lax.map(of_one, (readout, *args), batch_size=at_once)
