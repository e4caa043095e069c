"""The small arrays of a state as one vector, which a GPU updates in one kernel instead of one for each of them."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd4rec_jax.train.state import TrainState

# Larger ones gain nothing: cutting them out of the vector again takes kernels of its own.
_MOST = 4096


class Carried(NamedTuple):
    """A state as train steps hand it on. vector: float32 [n], its small arrays one after another. others: the rest."""

    vector: jax.Array
    others: list[jax.Array]


class SmallArrays:
    """The small float32 arrays of states that look like one state."""

    def __init__(self, like: TrainState):
        """like: a state of arrays or of their shapes."""
        self._leaves, self._tree = jax.tree.flatten(like)

    def pack(self, state: TrainState) -> Carried:
        """The state with its small arrays in one vector; the others are the same arrays."""
        leaves = jax.tree.leaves(state)
        small = [leaf.ravel() for leaf in leaves if _is_small(leaf)]
        return Carried(jnp.concatenate(small), [leaf for leaf in leaves if not _is_small(leaf)])

    def unpack(self, carried: Carried) -> TrainState:
        """The inverse of pack."""
        others, leaves, at = iter(carried.others), [], 0
        for like in self._leaves:
            if _is_small(like):
                leaves.append(carried.vector[at:at + like.size].reshape(like.shape))
                at += like.size
            else:
                leaves.append(next(others))
        return jax.tree.unflatten(self._tree, leaves)


def _is_small(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    return leaf.dtype == jnp.float32 and leaf.ndim > 0 and leaf.size <= _MOST
