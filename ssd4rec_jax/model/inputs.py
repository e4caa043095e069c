"""The inputs of a layer: one vector per token, or rows of an item table that was projected in place of the tokens."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd4rec_jax.model.dense import matmul
from ssd4rec_jax.model.layout import take_tokens


class TokenInputs(NamedTuple):
    """Inputs that are projected token by token. u: [rows, tokens, D]."""

    u: jax.Array

    def at(self, index: jax.Array | None = None) -> jax.Array:
        """The vectors [rows, n, D] of the tokens that index int32 [rows, n] selects; of all tokens where it is None."""
        return self.u if index is None else take_tokens(self.u, index)

    def project(self, kernel: jax.Array, columns: tuple[slice, ...], index: jax.Array | None = None) -> jax.Array:
        """The product of `at(index)` and the given columns of kernel [D, width], side by side: [rows, n, columns]."""
        return matmul(self.at(index), jnp.concatenate([kernel[:, c] for c in columns], axis=1))


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

    def project(self, kernel: jax.Array, columns: tuple[slice, ...], index: jax.Array | None = None) -> jax.Array:
        """The same as TokenInputs.project, read from the table."""
        del kernel  # The table has already been multiplied by it.
        projected = self.table.projected
        return jnp.concatenate([self._rows(projected[:, c], index) for c in columns], axis=-1)

    def _rows(self, table, index):
        items = self.items if index is None else jnp.take_along_axis(self.items, index, axis=1)
        return jnp.take(table, items, axis=0, mode='clip')
