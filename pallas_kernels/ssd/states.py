"""The states that enter and leave a row's runs, for every implementation of the scan.

An implementation starts each run at a zero state and returns y alone. The scan is linear in its states, so what they
add is computed beside it. Let s_t be the sum of dt A over the tokens of a run up to and including t, in scan direction,
and e the run's last token. Then a state h that enters the run gives

    y_t += exp(s_t) h C_t        and the run leaves        exp(s_e) h + sum_j exp(s_e - s_j) dt_j x_j B_j^T

Both are matmuls over the tokens of a run. Rows hold many runs of any length, so a row is cut into pieces: a piece is
what lies in one chunk and in one run. There are as many pieces as chunks and runs together, less one, and chunks are as
long as the average run, so that the matmuls do at most twice the work. A single run is a single piece.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.ssd.decay import log_decay, sum_to_end
from pallas_kernels.ssd.segments import run_ids, running_sum

LEAST_CHUNK = 32  # shorter matmuls are not worth their overhead


class Slots(NamedTuple):
    """Which states the runs of a row take in and leave.

    run: int32 [batch, length], from segments.run_ids. entering, leaving: int32 [batch, length], the number of the state
    that enters or leaves a token's run, or `states` where there is none. The tokens of one number stand together, and
    numbers rise along the row. passes: bool [batch, states], whether the state that enters under a number also leaves
    under it. states: how many a row has.
    """

    run: jax.Array
    entering: jax.Array
    leaving: jax.Array
    passes: jax.Array
    states: int

    @classmethod
    def of_rows(cls, segment_ids: jax.Array | None, batch: int, length: int, *, reverse: bool) -> 'Slots':
        """One state for each row: it enters the row's first run in scan direction, and the last run leaves it."""
        run = run_ids(segment_ids, batch, length)
        left, right = ((run != run[:, at]).astype(jnp.int32) for at in (slice(0, 1), slice(-1, None)))
        entering, leaving = (right, left) if reverse else (left, right)
        return cls(run, entering, leaving, run[:, :1] == run[:, -1:], 1)

    @classmethod
    def of_segments(cls, segment_ids: jax.Array | None, batch: int, length: int, count: int) -> 'Slots':
        """A state for each of the first `count` runs of a row, counted from the left."""
        run = run_ids(segment_ids, batch, length)
        slot = jnp.minimum(run, count)
        return cls(run, slot, slot, jnp.ones((batch, count), bool), count)

    @classmethod
    def of_sequences(cls, cu_seqlens: jax.Array, length: int) -> 'Slots':
        """A state for each sequence of the one row that cu_seqlens [sequences + 1] cut, also for those without tokens.

        Tokens from cu_seqlens[-1] on are a run of their own.
        """
        count = cu_seqlens.size - 1
        ends = jnp.zeros(length, jnp.int32).at[cu_seqlens[1:]].add(1, mode='drop')
        sequence = jnp.cumsum(ends)[None]
        return cls(run_ids(sequence, 1, length), sequence, sequence, jnp.ones((1, count), bool), count)


class _Pieces(NamedTuple):
    """How one row is cut, for one kind of slots.

    chunk, slot: int32 [pieces]; those that are not needed lie in a chunk beyond the last and have the slot `count`.
    mine: bool [pieces, size], which tokens of the chunk are the piece's. chunks: their number. size: their tokens.
    """

    chunk: jax.Array
    slot: jax.Array
    mine: jax.Array
    chunks: int
    size: int

    @classmethod
    def of(cls, slot: jax.Array, count: int) -> '_Pieces':
        """The pieces of a row whose tokens have these slots [length]."""
        length = slot.size
        size = min(length, max(LEAST_CHUNK, -(-length // count)))
        chunks = -(-length // size)
        slot = jnp.pad(slot, (0, chunks * size - length), constant_values=count)
        opens = jnp.pad(slot[1:] != slot[:-1], (1, 0)) | (jnp.arange(slot.size) % size == 0)
        (first,) = jnp.nonzero(opens & (slot < count), size=chunks + count - 1, fill_value=slot.size)
        chunk, owner = first // size, slot.at[first].get(mode='fill', fill_value=count)
        tokens = slot.reshape(chunks, size).at[chunk].get(mode='fill', fill_value=count + 1)
        return cls(chunk, owner, tokens == owner[:, None], chunks, size)

    def cut(self, a: jax.Array) -> jax.Array:
        """[length, ...] -> [pieces, size, ...], with zeros at the tokens that are not the piece's."""
        a = jnp.pad(a, ((0, self.chunks * self.size - a.shape[0]),) + ((0, 0),) * (a.ndim - 1))
        a = a.reshape(self.chunks, self.size, *a.shape[1:]).at[self.chunk].get(mode='fill', fill_value=0)
        return self._own(a)

    def join(self, a: jax.Array, length: int) -> jax.Array:
        """[pieces, size, ...] -> [length, ...], with zeros at the tokens of no piece."""
        a = jax.ops.segment_sum(self._own(a), self.chunk, num_segments=self.chunks, indices_are_sorted=True)
        return a.reshape(-1, *a.shape[2:])[:length]

    def _own(self, a: jax.Array) -> jax.Array:
        # A select and not a product, because the tokens of other runs may be NaN, and so may their gradients.
        return jnp.where(self.mine.reshape(*self.mine.shape, *(1,) * (a.ndim - 2)), a, 0)


def _matmul(formula: str, a: jax.Array, b: jax.Array, narrow: DTypeLike, wide: DTypeLike) -> jax.Array:
    """einsum with operands in the dtype `narrow`, summed in `wide`; float32 in full precision."""
    precision = lax.Precision.DEFAULT if narrow == jnp.bfloat16 else lax.Precision.HIGHEST
    return jnp.einsum(formula, a.astype(narrow), b.astype(narrow), precision=precision, preferred_element_type=wide)


def _read_row(count: int, states: jax.Array, C: jax.Array, slot: jax.Array) -> jax.Array:
    """h C_t at each token of a row, for states [count, heads, headdim, d_state]: [length, heads, headdim], wide."""
    pieces = _Pieces.of(slot, count)
    h = states.at[pieces.slot].get(mode='fill', fill_value=0)
    h = h.reshape(h.shape[0], C.shape[1], -1, *h.shape[2:])
    y = _matmul('mqgn,mgrpn->mqgrp', pieces.cut(C), h, C.dtype, states.dtype)
    return pieces.join(y.reshape(*y.shape[:2], -1, y.shape[-1]), slot.size)


def _sum_row(count: int, u: jax.Array, B: jax.Array, slot: jax.Array) -> jax.Array:
    """The sum of u_j B_j^T over the tokens of each slot, for u [length, heads, headdim], wide."""
    pieces = _Pieces.of(slot, count)
    cut = pieces.cut(u)
    cut = cut.reshape(*cut.shape[:2], B.shape[1], -1, cut.shape[-1])
    parts = _matmul('mqgrp,mqgn->mgrpn', cut, pieces.cut(B), B.dtype, u.dtype)
    sums = jax.ops.segment_sum(parts, pieces.slot, num_segments=count, indices_are_sorted=True)
    return sums.reshape(count, -1, *sums.shape[3:])


def from_initial(
    states: jax.Array, dt: jax.Array, A: jax.Array, C: jax.Array, slots: Slots, *, reverse: bool
) -> jax.Array:
    """What the states that enter add to y.

    Args:
      states: [batch, count, heads, headdim, d_state], in the dtype of dt.
      dt, A: as the implementations take them, float32 or wider.
      C: as in ssd_scan.
      slots: which run each state enters.
      reverse: whether the scan runs from the right.

    Returns [batch, length, heads, headdim] in the dtype of dt, zeros in runs that no state enters.
    """
    y = jax.vmap(functools.partial(_read_row, slots.states))(states, C, slots.entering)
    return jnp.exp(running_sum(log_decay(dt, A), slots.run, reverse=reverse))[..., None] * y


def final_states(
    initial: jax.Array | None, x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, slots: Slots, *, reverse: bool
) -> jax.Array:
    """The states that leave. A slot without tokens keeps its initial state, or zeros without one.

    Args:
      initial: [batch, count, heads, headdim, d_state] in the dtype of dt, or None for zeros.
      x, B: as in ssd_scan.
      dt, A: as the implementations take them, float32 or wider.
      slots: which run each state leaves.
      reverse: whether the scan runs from the right.

    Returns [batch, count, heads, headdim, d_state] in the dtype of dt.
    """
    a = log_decay(dt, A)
    weights = jnp.exp(sum_to_end(a, slots.run, reverse=reverse)) * dt
    u = weights[..., None] * x.astype(dt.dtype)
    states = jax.vmap(functools.partial(_sum_row, slots.states))(u, B, slots.leaving)
    if initial is None:
        return states
    through = jnp.where(slots.entering == slots.leaving, slots.leaving, slots.states)
    total = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=slots.states))(a, through)
    carried = jnp.exp(total)[..., None, None] * initial
    return states + jnp.where(slots.passes[..., None, None, None], carried, 0)
