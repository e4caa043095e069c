"""Scores of readouts over the item catalogue, with at most MAX_SCORES of them in memory at once."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from ssd4rec_jax.model.seen import Bias, Seen

# The largest number of elements of a [targets, items + 1] array: 512 MB in float32. Up to this size the loss computes
# the scores once; above it, the loss computes them twice, one part of the catalogue at a time.
MAX_SCORES = 2**27


def scores_at_once(mesh: Mesh) -> int:
    """How many scores a device of the mesh may hold: MAX_SCORES, which the CPU devices of a process share."""
    if mesh.devices.flat[0].platform != 'cpu':
        return MAX_SCORES
    return MAX_SCORES * len({device.process_index for device in mesh.devices.flat}) // mesh.size


def scores(readout: jax.Array, table: jax.Array) -> jax.Array:
    """Dot products of readout [..., D] with table [items + 1, D]: [..., items + 1].

    The result is float32 whatever the dtype of the inputs; float64 is kept.
    """
    wide = jnp.promote_types(readout.dtype, jnp.float32)
    return jnp.einsum('...d,vd->...v', readout, table.astype(readout.dtype), preferred_element_type=wide)


def map_scores(
    f: Callable[..., Any], readout: jax.Array, table: jax.Array, *args: jax.Array,
    seen: tuple[Bias, Seen] | None = None, max_scores: int = MAX_SCORES,
) -> Any:
    """f(scores [n, items + 1], *args [n, ...]), computed for as many rows at a time as max_scores elements allow.

    f must treat each row independently. readout: [n, D]. table: [items + 1, D]. seen: which scores get which bias.
    Returns f's pytree of arrays [n, ...].
    """
    n, at_once = len(readout), max(1, max_scores // table.shape[0])

    def of_rows(first, readout, *args):
        logits = scores(readout, table)
        if seen is not None:
            logits = seen[1].part(first_readout=first, readouts=len(readout)).add_to(logits, seen[0])
        return f(logits, *args)

    if n <= at_once:
        return of_rows(0, readout, *args)
    parts = -(-n // at_once)

    def parted(a):
        return jnp.pad(a, [(0, parts * at_once - n)] + [(0, 0)] * (a.ndim - 1)).reshape(parts, at_once, *a.shape[1:])

    padded = jax.tree.map(parted, (readout, *args))
    found = lax.map(lambda part: of_rows(*part), (jnp.arange(parts) * at_once, *padded))
    return jax.tree.map(lambda a: a.reshape(parts * at_once, *a.shape[2:])[:n], found)
