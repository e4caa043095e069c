"""Sums over tokens of several arrays, as the gradients of what all tokens share need them."""
import math

import jax
import jax.numpy as jnp

from pallas_kernels.target import target

MOST_PIECES = 64  # of a row


def token_sums(*arrays: jax.Array) -> jax.Array:
    """The sums of arrays [..., channels] of one shape over all leading axes: [number of arrays, channels].

    They are summed in float32 or wider. A GPU sums pieces of rows first. The sums of these are one kernel for all
    arrays, since they lie in one array.
    """
    wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
    *leading, channels = arrays[0].shape
    if target().platform != 'gpu':
        return jnp.stack([jnp.sum(a, axis=tuple(range(len(leading))), dtype=wide) for a in arrays])
    # A piece that reached into the next row could not be summed where its values are made.
    pieces = math.prod(leading[:-1]) * math.gcd(leading[-1], MOST_PIECES)
    of_pieces = [jnp.sum(a.reshape(pieces, -1, channels), axis=1, dtype=wide) for a in arrays]
    return jnp.sum(jnp.stack(of_pieces), axis=1)
