"""The small arrays of a state as one vector, which a GPU updates in one kernel instead of one for each of them."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from ssd4rec_jax.parallel.mesh import replicated
from ssd4rec_jax.train.state import TrainState

# Larger ones gain nothing: cutting them out of the vector again takes kernels of its own.
_MOST = 4096
# XLA hands a part of the vector to a kernel as it lies there, and kernels want it at a multiple of 256 bytes.
_ALIGNED = 64


class Carried(NamedTuple):
    """A state as train steps hand it on.

    vector: float32 [n], its small arrays one after another, each from a multiple of _ALIGNED on. others: the rest.
    """

    vector: Any
    others: list[jax.Array]


class SmallArrays:
    """The small float32 arrays, of those that every device holds whole, of states that look like one state.

    like: a state that holds shapes, dtypes and shardings; carried_like: the same for it once it is packed.
    """

    def __init__(self, like: TrainState, mesh: Mesh):
        self._leaves, self._tree = jax.tree.flatten(like)
        self._is_small = [
            leaf.dtype == jnp.float32 and leaf.ndim > 0 and leaf.size <= _MOST and leaf.sharding.is_fully_replicated
            for leaf in self._leaves
        ]
        self._whole = replicated(mesh)
        small, others = self._split(self._leaves)
        size = sum(_room(leaf.size) for leaf in small)
        self.carried_like = Carried(jax.ShapeDtypeStruct((size,), jnp.float32, sharding=self._whole), others)

    def pack(self, state: TrainState) -> Carried:
        """The state with its small arrays in one vector; the others are the same arrays."""
        small, others = self._split(jax.tree.leaves(state))
        filled = [jnp.pad(leaf.ravel(), (0, _room(leaf.size) - leaf.size)) for leaf in small]
        vector = jnp.concatenate([jnp.zeros(0, jnp.float32), *filled])
        return Carried(lax.with_sharding_constraint(vector, self._whole), others)

    def unpack(self, carried: Carried) -> TrainState:
        """The inverse of pack."""
        others, leaves, at = iter(carried.others), [], 0
        for like, is_small in zip(self._leaves, self._is_small, strict=True):
            if is_small:
                leaves.append(carried.vector[at:at + like.size].reshape(like.shape))
                at += _room(like.size)
            else:
                leaves.append(next(others))
        return jax.tree.unflatten(self._tree, leaves)

    def _split(self, leaves: list) -> tuple[list, list]:
        """The leaves that are small, and the others."""
        parts: tuple[list, list] = [], []
        for leaf, is_small in zip(leaves, self._is_small, strict=True):
            parts[not is_small].append(leaf)
        return parts


def _room(size: int) -> int:
    """The numbers of the vector that an array of this size takes up."""
    return -(-size // _ALIGNED) * _ALIGNED
