"""A hash of integers for random draws that kernels and plain programs make alike."""
from typing import TypeVar

import jax
import numpy as np

Words = TypeVar('Words', jax.Array, np.ndarray)


def mix(x: Words) -> Words:
    """A bijective hash of uint32 values with low bias ("lowbias32" of C. Wellons' hash-prospector); shape kept."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def channel_words(channels: int) -> np.ndarray:
    """The words of channels 0, 1, ...: uint32 [channels], constants that a token's key is mixed with."""
    return mix(np.arange(1, channels + 1, dtype=np.uint32))
