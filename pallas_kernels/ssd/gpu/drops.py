"""Which elements dropout drops, drawn in a kernel as ssd4rec_jax.model.draws draws them outside.

An element of a token's channel is dropped where mix(key of the token ^ word of the channel) is below a threshold.
"""
import jax
import numpy as np

from pallas_kernels.hashing import mix


def dropped(keys: jax.Array, words: jax.Array, probability: float) -> jax.Array:
    """Booleans that are True with the given probability; keys and words are uint32, of one shape or scalars."""
    return mix(keys ^ words) < np.uint32(round(probability * 2**32))
