"""The inputs of a layer: one vector per token, or rows of an item table that was projected in place of the tokens."""
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.ssd.gpu.short_conv import COLUMNS
from ssd4rec_jax.model.dense import matmul
from ssd4rec_jax.model.layout import take_tokens


class TokenInputs(NamedTuple):
    """Inputs that are projected token by token. u: [rows, tokens, D]."""

    u: jax.Array

    def at(self, index: jax.Array | None = None) -> jax.Array:
        """The vectors [rows, n, D] of the tokens that index int32 [rows, n] selects; of all tokens where it is None."""
        return self.u if index is None else take_tokens(self.u, index)

    def project(
        self, kernel: jax.Array, parts: Sequence[Sequence[slice]], index: jax.Array | None = None, *,
        apart: bool = False,
    ) -> list[jax.Array]:
        """The products of `at(index)` and columns of kernel [D, width], those of each part side by side in an array.

        Each array is [rows, n, columns]. apart: as products of their own, for kernels of a GPU, to which what is cut
        out of a whole would be copied. Such a kernel copies tiles of 64 columns, so zeros make each array's columns a
        multiple of 64.
        """
        u, products = self.at(index), []
        if not apart:
            return _cut(matmul(u, jnp.concatenate(_runs(kernel, parts), axis=1)), parts)
        for part in parts:
            products.append(matmul(u, _whole_tiles(kernel, part)))
            u = jax.lax.optimization_barrier(u)  # XLA makes one product of all that have the same operand.
        return products


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

    def project(
        self, kernel: jax.Array, parts: Sequence[Sequence[slice]], index: jax.Array | None = None, *,
        apart: bool = False,
    ) -> list[jax.Array]:
        """The same as TokenInputs.project, read from the table."""
        del kernel  # The table has already been multiplied by it.
        if apart:
            return [self._rows(_whole_tiles(self.table.projected, part), index) for part in parts]
        runs = _runs(self.table.projected, parts)
        return _cut(jnp.concatenate([self._rows(run, index) for run in runs], axis=-1), parts)

    def _rows(self, table, index):
        items = self.items if index is None else jnp.take_along_axis(self.items, index, axis=1)
        return jnp.take(table, items, axis=0, mode='clip')


def _runs(a, parts):
    """The columns of all parts of a [n, width], in order; those that lie side by side are one array."""
    runs: list[slice] = []
    for columns in itertools.chain(*parts):
        follows = runs and runs[-1].stop == columns.start
        runs.append(slice(runs.pop().start, columns.stop) if follows else columns)
    return [a[:, run] for run in runs]


def _whole_tiles(a, part):
    """The columns of a part of a [n, width], with zeros up to whole tiles."""
    columns = jnp.concatenate(_runs(a, [part]), axis=1)
    return jnp.pad(columns, ((0, 0), (0, -columns.shape[1] % COLUMNS)))


def _cut(whole, parts):
    """The array cut into its parts."""
    widths = (sum(columns.stop - columns.start for columns in part) for part in parts)
    return jnp.split(whole, tuple(itertools.accumulate(widths))[:-1], axis=-1)
