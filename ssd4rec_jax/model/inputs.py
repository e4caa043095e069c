"""What a layer reads: a vector a token, or rows of a table that is projected instead of the tokens."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd4rec_jax.model.dense import matmul
from ssd4rec_jax.model.layout import take_tokens


class TokenInputs(NamedTuple):
    """u [rows, tokens, D], projected token by token."""

    u: jax.Array

    def at(self, index: jax.Array | None = None) -> jax.Array:
        """u of the tokens index int32 [rows, n], or of all: [rows, n, D]."""
        return self.u if index is None else take_tokens(self.u, index)

    def project(self, kernel: jax.Array, columns: tuple[slice, ...], index: jax.Array | None = None) -> jax.Array:
        """u @ the columns of kernel [D, width], side by side: [rows, n, columns]."""
        return matmul(self.at(index), jnp.concatenate([kernel[:, c] for c in columns], axis=1))


class ProjectedItems(NamedTuple):
    """The first layer's input of every item: vectors [items + 1, D], projected [items + 1, in_proj's width]."""

    vectors: jax.Array
    projected: jax.Array


class ItemInputs(NamedTuple):
    """Tokens as rows of an ProjectedItems: an item's projection depends on the item alone. items int32 [rows, tokens]."""

    table: ProjectedItems
    items: jax.Array

    def at(self, index: jax.Array | None = None) -> jax.Array:
        return self._rows(self.table.vectors, index)

    def project(self, kernel: jax.Array, columns: tuple[slice, ...], index: jax.Array | None = None) -> jax.Array:
        del kernel  # the table was projected by it
        projected = self.table.projected
        return jnp.concatenate([self._rows(projected[:, c], index) for c in columns], axis=-1)

    def _rows(self, table, index):
        items = self.items if index is None else jnp.take_along_axis(self.items, index, axis=1)
        return jnp.take(table, items, axis=0, mode='clip')
