"""Sums over segments that come out the same each time on a GPU, where XLA is told to be deterministic.

XLA makes a scatter that adds of float32 atomics, whose order differs from run to run. With
--xla_gpu_deterministic_ops it makes it of a sort and of log2(n) passes over all n values. Here a segment is cut where
chunks begin instead: its head lies in its first chunk, its tail in its last one, and what is between them are whole
chunks, whose sums are the values of a shorter list. Values are added in the same order each time. Without that flag,
and on other platforms, the scatter stays, which reads each value once.
"""
import functools
import os
import re

import jax
import jax.numpy as jnp

from pallas_kernels.target import target

_SHORT = 64  # a list of so few values is read whole for each segment
_ASKED = re.compile(r'--xla_gpu_(deterministic_ops|exclude_nondeterministic_ops)(=(?i:true|1)?)?(\s|$)')


def segment_sums(values: jax.Array, segment: jax.Array, count: int) -> jax.Array:
    """The sum of the values of each segment.

    A value that is not finite reaches only the sum of its own segment.

    Args:
      values: [n, channels], floating point.
      segment: int32 [n], the segment of each value; it never falls. Values of segments that are not below `count`
        are left out.
      count: the number of segments.

    Returns [count, channels] in the dtype of the values, 0 where a segment has none.
    """
    if _in_order():
        return _segment_sums(values, segment, count)
    return jax.ops.segment_sum(values, segment, num_segments=count, indices_are_sorted=True)


def of_segment(rows: jax.Array, segment: jax.Array) -> jax.Array:
    """The row of each value's segment: [n, channels]. Its gradient is a `segment_sums`.

    Args:
      rows: [count, channels].
      segment: int32 [n], the segment of each value, from 0 to count - 1; it never falls.
    """
    return _of_segment(rows, segment) if _in_order() else rows[segment]


def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of table [rows, channels] at ids, int32 of any shape: [*ids.shape, channels].

    Ids beyond the table mean its first or last row. The gradient sums what belongs to one row, as add_rows does.
    """
    if _in_order():
        return _of_ids(table, jnp.clip(ids, 0, len(table) - 1))
    return jnp.take(table, ids, axis=0, mode='clip')


def add_rows(table: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """table [rows, channels] with values [n, channels] added to the rows that ids, int32 [n], name.

    Several values may belong to one row. Values whose ids are not below the number of rows are left out.
    """
    if _in_order():
        return table + _sums_of_ids(values, ids, len(table))
    return table.at[ids].add(values, mode='drop')


def _in_order() -> bool:
    return target().platform == 'gpu' and bool(_ASKED.search(os.environ.get('XLA_FLAGS', '')))


def _rows_at(rows, segment):
    return rows.at[segment].get(mode='fill', fill_value=0)


_of_segment = jax.custom_vjp(_rows_at)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _segment_sums(values, segment, count):
    bounds = jnp.searchsorted(segment, jnp.arange(count + 1, dtype=segment.dtype), method='scan_unrolled')
    # Short segments make short chunks, of which less is read that lies outside.
    return _sums_of_ranges(values, bounds[:-1], bounds[1:], 32 if len(values) >= 32 * count else 8)


_segment_sums.defvjp(
    lambda values, segment, count: (_segment_sums(values, segment, count), segment),
    lambda count, segment, g: (_of_segment(g, segment), None),
)

_of_segment.defvjp(
    lambda rows, segment: (_rows_at(rows, segment), (segment, len(rows))),
    lambda kept, g: (_segment_sums(g, *kept), None),
)

_of_ids = jax.custom_vjp(_rows_at)
_of_ids.defvjp(
    lambda table, ids: (_rows_at(table, ids), (ids.ravel(), len(table))),
    lambda kept, g: (_sums_of_ids(g.reshape(-1, g.shape[-1]), *kept), None),
)


def _sums_of_ids(values, ids, count):
    order = jnp.argsort(ids)
    return _segment_sums(values[order], ids[order], count)


def _sums_of_ranges(values, start, stop, chunk):
    """The sums [ranges, channels] of values[start:stop], for ranges in any order with start <= stop."""
    n = len(values)
    if n <= _SHORT:
        return _sum_between(values[None], jnp.arange(n), start, stop)
    chunks = -(-n // chunk)
    sums = jnp.pad(values, ((0, chunks * chunk - n), (0, 0))).reshape(chunks, chunk, -1).sum(1)
    first, last = -(-start // chunk), stop // chunk  # The whole chunks; a range within one chunk has first > last.

    def part(begin, start, stop):
        at = begin[:, None] + jnp.arange(chunk)
        return _sum_between(_rows_at(values, at), at, start, stop)

    head = part(start, start, jnp.minimum(first * chunk, stop))
    tail = part(last * chunk, jnp.where(first > last, stop, last * chunk), stop)
    return head + tail + _sums_of_ranges(sums, first, jnp.maximum(first, last), chunk)


def _sum_between(values, at, start, stop):
    """The sum over the second axis of values [ranges or 1, n, channels], where `at` is from start to before stop."""
    inside = (at >= start[:, None]) & (at < stop[:, None])
    return jnp.where(inside[..., None], values, 0).sum(1)
