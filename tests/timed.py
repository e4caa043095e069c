"""Gaps between interactions, and networks whose scales of them are no longer zero."""
from typing import Any

import jax
import numpy as np


def gaps(example: int, length: int) -> np.ndarray:
    """float32 [length], random numbers for the gaps before each item of a history, the meaningless first one too."""
    return np.random.default_rng([7, example]).normal(size=length).astype(np.float32)


def drawn(params: Any) -> Any:
    """The parameters of a network with random values for those that scale by gaps."""
    rng = np.random.default_rng(11)

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf + rng.normal(size=leaf.shape) if 'gap_scales' in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(draw, params)
