"""Arrays on the host that JAX's CPU devices take over as they are."""
import math

import numpy as np

# Bytes. XLA copies a NumPy array that begins anywhere else, and the array stays until Python next collects garbage.
ALIGNMENT = 64


def host_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at a multiple of ALIGNMENT; once they are on a device they must not be written to."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first:first + size].view(dtype).reshape(shape)
