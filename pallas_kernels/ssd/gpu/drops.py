"""Which elements dropout drops, drawn in a kernel as ssd4rec_jax.model.draws draws them outside.

An element of a token's channel is dropped where mix(key of the token ^ word of the channel) is below a threshold.
"""
import jax
import numpy as np

from pallas_kernels.hashing import mix


def channel_words(channels: int) -> np.ndarray:
    """The words of channels 0, 1, ...: uint32 [channels], constants that a kernel takes as an argument."""
    return mix(np.arange(1, channels + 1, dtype=np.uint32))


def dropped(keys: jax.Array, words: jax.Array, probability: float) -> jax.Array:
    """Booleans that are True with the given probability; keys and words are uint32, of one shape or scalars."""
    return mix(keys ^ words) < np.uint32(round(probability * 2**32))
