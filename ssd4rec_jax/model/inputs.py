"""The inputs of a layer: one vector per token, or rows of an item table that was projected in place of the tokens."""
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.target import target
from ssd4rec_jax.model.dense import matmul
from ssd4rec_jax.model.layout import take_tokens



class TokenInputs(NamedTuple):
    """Inputs that are projected token by token. u: [rows, tokens, D]."""

    u: jax.Array

    def at(self, index: jax.Array | None = None) -> jax.Array:
        """The vectors [rows, n, D] of the tokens that index int32 [rows, n] selects; of all tokens where it is None."""
        return self.u if index is None else take_tokens(self.u, index)

    def project(self, kernel: jax.Array, parts: tuple[slice, ...], index: jax.Array | None = None) -> list[jax.Array]:
        """The products of `at(index)` and parts of the columns of kernel [D, width], each [rows, n, columns]."""
        kernels = [kernel[:, part] for part in parts]
        if target().platform == 'gpu':
            # What is cut out of a whole, or put together for its gradient, is copied there. XLA would make one product of
            # all that have the same operand, and takes what lies behind a barrier for another one.
            u, products = self.at(index), []
            for part in kernels:
                products.append(matmul(u, part))
                u = jax.lax.optimization_barrier(u)
            return products
        whole = matmul(self.at(index), jnp.concatenate(kernels, axis=1))
        return jnp.split(whole, tuple(itertools.accumulate(part.shape[1] for part in kernels))[:-1], axis=-1)


class ProjectedItems(NamedTuple):
    """The first layer's input for every item: vectors [items + 1, D], and projected [items + 1, width of in_proj]."""

    vectors: jax.Array
    projected: jax.Array


class ItemInputs(NamedTuple):
    """Tokens given as rows of a ProjectedItems table, since the projection of an item depends on the item alone.

    items: int32 [rows, tokens].
    """

    table: ProjectedItems
    items: jax.Array

    def at(self, index: jax.Array | None = None) -> jax.Array:
        """The same as TokenInputs.at."""
        return self._rows(self.table.vectors, index)

    def project(self, kernel: jax.Array, parts: tuple[slice, ...], index: jax.Array | None = None) -> list[jax.Array]:
        """The same as TokenInputs.project, read from the table."""
        del kernel  # The table has already been multiplied by it.
        return [self._rows(self.table.projected[:, part], index) for part in parts]

    def _rows(self, table, index):
        items = self.items if index is None else jnp.take_along_axis(self.items, index, axis=1)
        return jnp.take(table, items, axis=0, mode='clip')
