"""The small arrays of a state in one vector for each dtype, which a GPU updates in one kernel instead of many."""
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
_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.int32))


class Carried(NamedTuple):
    """A state as train steps hand it on.

    vectors: for each of _DTYPES, [n], its small arrays one after another, each from a multiple of _ALIGNED on.
    others: the rest.
    """

    vectors: list[Any]
    others: list[jax.Array]


class SmallArrays:
    """The small arrays and numbers, of those that every device holds whole, of states that look like one state.

    like: a state that holds shapes, dtypes and shardings; carried_like: the same for it once it is packed.
    """

    def __init__(self, like: TrainState, mesh: Mesh):
        self._leaves, self._tree = jax.tree.flatten(like)
        # For each leaf the number of its vector, or -1 for one of the others.
        self._vector = [
            _DTYPES.index(leaf.dtype)
            if leaf.dtype in _DTYPES and leaf.size <= _MOST and leaf.sharding.is_fully_replicated else -1
            for leaf in self._leaves
        ]
        self._whole = replicated(mesh)
        *small, others = self._split(self._leaves)
        sizes = (sum(_room(leaf.size) for leaf in leaves) for leaves in small)
        self.carried_like = Carried([
            jax.ShapeDtypeStruct((size,), dtype, sharding=self._whole)
            for size, dtype in zip(sizes, _DTYPES, strict=True)
        ], others)

    def pack(self, state: TrainState) -> Carried:
        """The state with its small arrays in vectors; the others are the same arrays."""
        *small, others = self._split(jax.tree.leaves(state))
        vectors = [
            jnp.concatenate([
                jnp.zeros(0, dtype), *(jnp.pad(leaf.ravel(), (0, _room(leaf.size) - leaf.size)) for leaf in leaves)
            ])
            for leaves, dtype in zip(small, _DTYPES, strict=True)
        ]
        return Carried([lax.with_sharding_constraint(vector, self._whole) for vector in vectors], others)

    def unpack(self, carried: Carried) -> TrainState:
        """The inverse of pack."""
        others, leaves, at = iter(carried.others), [], [0] * len(_DTYPES)
        for like, number in zip(self._leaves, self._vector, strict=True):
            if number < 0:
                leaves.append(next(others))
            else:
                first = at[number]
                leaves.append(carried.vectors[number][first:first + like.size].reshape(like.shape))
                at[number] += _room(like.size)
        return jax.tree.unflatten(self._tree, leaves)

    def _split(self, leaves: list) -> list[list]:
        """The leaves of each vector, and the others."""
        parts: list[list] = [[] for _ in range(len(_DTYPES) + 1)]
        for leaf, number in zip(leaves, self._vector, strict=True):
            parts[number].append(leaf)
        return parts


def _room(size: int) -> int:
    """The numbers of the vector that an array of this size takes up."""
    return -(-size // _ALIGNED) * _ALIGNED
