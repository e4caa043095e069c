"""The seen-item term: what is added to the score of an item that the history already holds.

It is a learned bias by how long ago the item was last seen and by how often. Logs in which items come back (songs,
edits) learn a positive one. Logs in which nothing is bought twice learn a very negative one, and seen items leave the
ranking by themselves. That the output softmax must treat the items of the history apart is argued in Chang, Agarwal and
McCallum, "To Copy, or not to Copy; That is a Critical Issue of the Output Softmax Layer in Neural Sequential
Recommenders", WSDM 2024.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.parallel.mesh import MODEL_AXIS
from ssd4rec_jax.parallel.table_shard import TableShard

# Where the buckets begin: an age of 1 means that the item is the last of the history.
AGES = (1, 2, 3, 5, 9, 17, 33, 65)
COUNTS = (1, 2, 3, 5)
_NOWHERE = np.int32(2**30)  # An index beyond every array, whose entry is dropped.
_BLOCK = 64


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['row', 'item', 'value'], meta_fields=['running']
)
@dataclasses.dataclass(frozen=True)
class SeenEntries:
    """A matrix [readouts, items] that is added to scores, as the list of its entries.

    row: int32 [..., m], the readout that an entry belongs to. item: int32 [..., m], its column. Entries whose row or
    column does not exist are dropped. value: [..., m]. running: whether the matrix is the running sum over the readouts
    of these entries, instead of the entries themselves.
    """

    row: jax.Array
    item: jax.Array
    value: jax.Array
    running: bool

    def one_list(self, slots: int) -> 'SeenEntries':
        """The entries of all packed rows, [rows, m], as one list for readouts [rows * slots]."""
        first = jnp.arange(len(self.row), dtype=jnp.int32)[:, None] * slots
        row = jnp.where(self.row == _NOWHERE, _NOWHERE, self.row + first)
        return SeenEntries(row.ravel(), self.item.ravel(), self.value.ravel(), self.running)

    def gathered(self, shard: TableShard, readouts: int) -> 'SeenEntries':
        """The entries [m] of all devices along `model`, each with `readouts` readouts; columns of this device."""
        first = lax.axis_index(MODEL_AXIS) * readouts if shard.shards > 1 else 0
        row = shard.gather(jnp.where(self.row == _NOWHERE, _NOWHERE, self.row + first))
        return SeenEntries(row, shard.find(shard.gather(self.item))[0], shard.gather(self.value), self.running)

    def at_columns(self, columns: jax.Array, rows: int) -> 'SeenEntries':
        """The same for scores of the items `columns`, int32 [n] and distinct, instead of the items 0 .. rows - 1."""
        place = jnp.full(rows, _NOWHERE).at[columns].set(jnp.arange(len(columns), dtype=jnp.int32), mode='drop')
        return dataclasses.replace(self, item=jnp.take(place, self.item, mode='fill', fill_value=_NOWHERE))

    def from_row(self, first: jax.Array | int) -> 'SeenEntries':
        """The same for the readouts first, first + 1, ...; not for a running sum."""
        return dataclasses.replace(self, row=jnp.where(self.row < first, _NOWHERE, self.row - first))

    def matrix(self, shape: tuple[int, int], first: jax.Array | int = 0) -> jax.Array:
        """The columns first, first + 1, ... of the matrix, [readouts, columns] of this shape, in the dtype of value."""
        # A column before the first must not be counted from the end.
        item = jnp.where(self.item < first, _NOWHERE, self.item - first)
        entries = jnp.zeros(shape, self.value.dtype).at[self.row, item].add(self.value, mode='drop')
        return _running_sum(entries) if self.running else entries


class SeenBias(nnx.Module):
    """The learned bias: one number for each bucket of ages and one for each bucket of counts, which are added.

    It starts at zero, where it changes no score.
    """

    def __init__(self, param_dtype: jax.typing.DTypeLike):
        self.age = nnx.Param(jnp.zeros(len(AGES), param_dtype))
        self.count = nnx.Param(jnp.zeros(len(COUNTS), param_dtype))

    def of_histories(self, items: jax.Array, layout: Layout) -> SeenEntries:
        """What is added to the scores of whole histories, [rows, m] for readouts [rows, segments].

        items: int32 [rows, tokens], without masks. Each distinct item of a history has one entry, by its last
        occurrence and by how often it occurs.
        """
        occurrences = _Occurrences.of(items, layout)
        is_last = occurrences.end == jnp.arange(items.shape[1]) + layout.remaining + 1
        age = jnp.sum(layout.remaining[..., None] + 1 >= jnp.asarray(AGES), axis=-1) - 1
        value = self.age[...][age] + self.count[...][occurrences.count]
        row = jnp.where(is_last & (layout.segment_ids > 0), layout.slot, _NOWHERE)
        return SeenEntries(row, items, value, running=False)

    def of_prefixes(self, items: jax.Array, layout: Layout) -> SeenEntries:
        """The same for every prefix of every history: [rows, m] for readouts [rows, tokens].

        An occurrence of an item counts for the prefixes that end at it or after it, until the item occurs again or the
        history ends. Its bias changes where its age reaches another bucket, and each change is an entry of a running
        sum. The entries are then a few for each token, where those of all prefixes would be the square of a history.
        """
        occurrences = _Occurrences.of(items, layout)
        token = jnp.arange(items.shape[1], dtype=jnp.int32)[:, None]
        end = occurrences.end[..., None]
        changes = token + jnp.asarray(AGES, jnp.int32) - 1
        by_age = self.age[...]
        steps = jnp.concatenate([by_age[:1], jnp.diff(by_age)])
        value = jnp.broadcast_to(steps, changes.shape[:1] + steps.shape)
        value = jnp.broadcast_to(value, (*items.shape, len(AGES)))
        of_count = self.count[...][occurrences.count]
        value = value.at[..., 0].add(of_count)
        last_age = jnp.sum(end - token >= jnp.asarray(AGES), axis=-1) - 1
        closing = -(by_age[last_age] + of_count)
        real = (layout.segment_ids > 0)[..., None]
        row = jnp.concatenate([jnp.where(changes < end, changes, _NOWHERE), end], axis=-1)
        row = jnp.where(real, row, _NOWHERE)
        value = jnp.concatenate([value, closing[..., None]], axis=-1)
        item = jnp.broadcast_to(items[..., None], row.shape)
        rows = len(items)
        return SeenEntries(row.reshape(rows, -1), item.reshape(rows, -1), value.reshape(rows, -1), running=True)


@dataclasses.dataclass(frozen=True)
class _Occurrences:
    """For each token, when its item occurs next in its history, and its bucket of occurrences so far.

    end: int32 [rows, tokens], the index in the row of the next occurrence, or of the first token after the history.
    count: int32 [rows, tokens], the bucket in COUNTS of the number of occurrences up to this one.
    """

    end: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, items: jax.Array, layout: Layout) -> '_Occurrences':
        def of_row(items, slot, stop):
            token = jnp.arange(len(items), dtype=jnp.int32)
            slot, items, token, stop = lax.sort((slot, items, token, stop), num_keys=2, is_stable=True)

            def same(distance):
                """Whether the entry `distance` before this one is the same item of the same history."""
                equal = (slot[distance:] == slot[:-distance]) & (items[distance:] == items[:-distance])
                return jnp.pad(equal, (min(distance, len(items)), 0))

            count = sum((same(least - 1).astype(jnp.int32) for least in COUNTS[1:]), jnp.zeros_like(token))
            follows = jnp.append(same(1)[1:], False)
            end = jnp.where(follows, jnp.roll(token, -1), stop)
            return end, count, token

        stop = jnp.arange(items.shape[1], dtype=jnp.int32) + layout.remaining + 1
        end, count, token = jax.vmap(of_row)(items, layout.slot, stop)
        back = jnp.arange(len(items))[:, None], token
        return cls(jnp.zeros_like(end).at[back].set(end), jnp.zeros_like(count).at[back].set(count))


def _running_sum(x: jax.Array) -> jax.Array:
    """The running sum of x [n, columns] down its rows, by products with a triangle of ones."""
    n, columns = x.shape
    blocks = -(-n // _BLOCK)
    x = jnp.pad(x, ((0, blocks * _BLOCK - n), (0, 0))).reshape(blocks, _BLOCK, columns)
    triangle = jnp.tril(jnp.ones((_BLOCK, _BLOCK), x.dtype))
    within = jnp.einsum('ij,bjv->biv', triangle, x, precision=lax.Precision.HIGHEST)
    before = jnp.pad(jnp.cumsum(within[:-1, -1], axis=0), ((1, 0), (0, 0)))
    return (within + before[:, None]).reshape(-1, columns)[:n]
