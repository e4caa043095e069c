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
