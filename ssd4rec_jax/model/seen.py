"""The seen-item term: what is added to the score of an item that the history already holds.

It is a learned bias by how long ago the item was last seen and by how often. Logs in which items come back (songs,
edits) learn a positive one. Logs in which nothing is bought twice learn a very negative one, and seen items leave the
ranking by themselves. That the output softmax must treat the items of the history apart is argued in Chang, Agarwal and
McCallum, "To Copy, or not to Copy; That is a Critical Issue of the Output Softmax Layer in Neural Sequential
Recommenders", WSDM 2024.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
_NOWHERE = np.int32(2**30)  # An index beyond every array, where nothing is added.
_AT_ONCE = 2**14  # The number of scores that one trip of a loop adds to.


class Bias(NamedTuple):
    """The learned numbers: age [len(AGES)] and times [len(COUNTS)], one for each bucket, which are added."""

    age: jax.Array
    times: jax.Array


class Seen(NamedTuple):
    """Which scores get which bias.

    Every token counts for some neighbouring readouts, and its age is higher by one for each. A whole history has one
    readout, for which the last occurrence of each of its items counts. Among the readouts of all prefixes a token
    counts for those from its own to the one before its item comes again. All arrays are int32 [tokens] or
    [rows, tokens] of the same shape.

    item: the column of the scores. first, readouts: the first of the readouts, and how many there are. age: the age at
    the first. times: the bucket of the number of occurrences.
    """

    item: jax.Array
    first: jax.Array
    readouts: jax.Array
    age: jax.Array
    times: jax.Array

    @classmethod
    def of_lists(cls, items: jax.Array, readouts: jax.Array, ages: jax.Array, counts: jax.Array) -> 'Seen':
        """What some readouts' histories hold, told by lists int32 [n] with an entry for each item of each history.

        counts: how often the item occurs; an entry with 0 does not count.
        """
        return cls(items, readouts, jnp.minimum(counts, 1), ages, _bucket(counts, COUNTS))

    def one_list(self, slots: int) -> 'Seen':
        """The tokens of all packed rows, [rows, tokens], as one list for readouts [rows * slots]."""
        row = jnp.arange(len(self.first), dtype=jnp.int32)[:, None]
        return Seen(*(a.ravel() for a in self._replace(first=self.first + row * slots)))

    def of_all_devices(self, shard: TableShard, slots: int) -> 'Seen':
        """The tokens of all devices along `model`, for their readouts one after another and this device's columns."""
        if shard.shards == 1:
            return self
        own = self._replace(first=self.first + lax.axis_index(MODEL_AXIS) * slots)
        found = Seen(*map(shard.gather, own))
        return found._replace(item=shard.find(found.item)[0])

    def at_columns(self, columns: jax.Array, items: int) -> 'Seen':
        """The same for scores of the items `columns`, int32 [n] and distinct, instead of the items 0 .. items - 1."""
        place = jnp.full(items, _NOWHERE).at[columns].set(jnp.arange(len(columns), dtype=jnp.int32), mode='drop')
        return self._replace(item=jnp.take(place, self.item, mode='fill', fill_value=_NOWHERE))

    def part(
        self, *, first_readout: jax.Array | int = 0, readouts: int = int(_NOWHERE), first_column: jax.Array | int = 0
    ) -> 'Seen':
        """The same for the part of the scores that begins at a readout, with so many of them, and at a column."""
        at = self.first - first_readout
        before = jnp.maximum(-at, 0)
        left = jnp.minimum(self.readouts - before, readouts - (at + before))
        return Seen(self.item - first_column, at + before, jnp.maximum(left, 0), self.age + before, self.times)

    def add_to(self, scores: jax.Array, bias: Bias) -> jax.Array:
        """scores [readouts, columns] with the bias added; what lies outside the scores is left out."""
        def add(scores, pairs):
            value = (bias.age[pairs.age] + bias.times[pairs.times]).astype(scores.dtype)
            return scores.at[pairs.readout, pairs.item].add(value, mode='drop')

        return self._over_pairs(add, scores)

    def clear(self, scores: jax.Array) -> jax.Array:
        """scores [readouts, columns] with 0 wherever a bias would be added."""
        return self._over_pairs(
            lambda scores, pairs: scores.at[pairs.readout, pairs.item].set(0, mode='drop'), scores
        )

    def sums(self, of_pairs: Callable[[jax.Array, jax.Array], jax.Array], like: Bias) -> Bias:
        """For each number of the bias, the sum of of_pairs(readout [n], item [n]) -> [n] over the scores that get it.

        of_pairs must give 0 for what lies outside the scores. like: decides shapes and dtypes.
        """
        def add(total, pairs):
            value = of_pairs(pairs.readout, pairs.item)

            def by_bucket(sums, bucket):
                in_bucket = jax.nn.one_hot(bucket, len(sums), dtype=value.dtype)
                return sums + (value @ in_bucket).astype(sums.dtype)

            return Bias(by_bucket(total.age, pairs.age), by_bucket(total.times, pairs.times))

        return self._over_pairs(add, jax.tree.map(jnp.zeros_like, like))

    def _over_pairs(self, f: Callable[[Any, '_Pairs'], Any], carry: Any) -> Any:
        """f(carry, pairs) over all pairs of a token and a readout, _AT_ONCE of them at a time.

        How many pairs there are depends on the histories: for all prefixes it is about half the sum of their squares.
        """
        stop = jnp.cumsum(self.readouts)
        size = min(_AT_ONCE, max(64, len(stop)))

        def trip(state):
            number, carry = state
            pair = number * size + jnp.arange(size, dtype=jnp.int32)
            token = jnp.minimum(jnp.searchsorted(stop, pair, side='right'), len(stop) - 1)
            later = pair - (stop - self.readouts)[token]
            readout, item = self.first[token] + later, self.item[token]
            inside = (pair < stop[-1]) & (readout >= 0) & (item >= 0)
            pairs = _Pairs(
                jnp.where(inside, readout, _NOWHERE), jnp.where(inside, item, _NOWHERE),
                _bucket(self.age[token] + later, AGES), self.times[token],
            )
            return number + 1, f(carry, pairs)

        return lax.while_loop(lambda state: state[0] * size < stop[-1], trip, (jnp.zeros_like(stop[-1]), carry))[1]


class _Pairs(NamedTuple):
    """Scores [readout, item] that get the bias of the buckets age and times; int32 [n]."""

    readout: jax.Array
    item: jax.Array
    age: jax.Array
    times: jax.Array


@jax.custom_vjp
def add_seen(scores: jax.Array, bias: Bias, seen: Seen) -> jax.Array:
    """seen.add_to(scores, bias), which has gradients with respect to scores and bias."""
    return seen.add_to(scores, bias)


def _add_seen_fwd(scores, bias, seen):
    return seen.add_to(scores, bias), (bias, seen)


def _add_seen_bwd(residuals, g):
    bias, seen = residuals
    of_bias = seen.sums(lambda readout, item: g.at[readout, item].get(mode='fill', fill_value=0), bias)
    return g, of_bias, no_gradient(seen)


def no_gradient(integers: Any) -> Any:
    """The cotangents that JAX wants for arrays of integers."""
    return jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), integers)


add_seen.defvjp(_add_seen_fwd, _add_seen_bwd)


class SeenBias(nnx.Module):
    """The parameters of the term, which start at zero, where they change no score."""

    def __init__(self, param_dtype: jax.typing.DTypeLike):
        self.age = nnx.Param(jnp.zeros(len(AGES), param_dtype))
        self.times = nnx.Param(jnp.zeros(len(COUNTS), param_dtype))

    @property
    def bias(self) -> Bias:
        """The learned numbers as arrays."""
        return Bias(self.age[...], self.times[...])


def seen_by_histories(items: jax.Array, layout: Layout) -> Seen:
    """What whole histories hold, for readouts [rows, segments]; items int32 [rows, tokens] without masks."""
    occurrences = _Occurrences.of(items, layout)
    is_last = occurrences.end == jnp.arange(items.shape[1]) + layout.remaining + 1
    counts = is_last & (layout.segment_ids > 0)
    return Seen(items, layout.slot, counts.astype(jnp.int32), layout.remaining + 1, occurrences.times)


def seen_by_prefixes(items: jax.Array, layout: Layout) -> Seen:
    """What every prefix of every history holds, for readouts [rows, tokens]; items int32 [rows, tokens]."""
    occurrences = _Occurrences.of(items, layout)
    token = jnp.broadcast_to(jnp.arange(items.shape[1], dtype=jnp.int32), items.shape)
    readouts = jnp.where(layout.segment_ids > 0, occurrences.end - token, 0)
    return Seen(items, token, readouts, jnp.ones_like(items), occurrences.times)


def _bucket(value: jax.Array, begins: tuple[int, ...]) -> jax.Array:
    """The number of the last bucket that begins at or below each value, which is at least the first."""
    return functools.reduce(jnp.add, [(value >= least).astype(jnp.int32) for least in begins[1:]])


class _Occurrences(NamedTuple):
    """For each token, when its item occurs next in its history, and its bucket of occurrences so far.

    end: int32 [rows, tokens], the index in the row of the next occurrence, or of the first token after the history.
    times: int32 [rows, tokens], the bucket in COUNTS of the number of occurrences up to this one.
    """

    end: jax.Array
    times: jax.Array

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
