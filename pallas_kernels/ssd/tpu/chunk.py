"""The arithmetic of one chunk on a TPU core, forward and backward, on values in VMEM.

The formulas are those of pallas_kernels/ssd/xla.py. What differs is the layout: heads stand beside one another on the
lanes, [tokens, heads * headdim], because a headdim of 16 alone would leave seven eighths of each register and of the
matrix unit empty. For the same reason the within-chunk matrices of all heads in 128 lanes of x stand beside one
another, [q, heads * q], and meet x in one matmul whose other operand is block-diagonal.

Let s be the running sum of dt * A in float32, and r what rounding took from it. The decay from token j to token i is
exp(r_i) exp(s_i - s_j) exp(-r_j). Only the middle factor is a matrix for each head. The other two factors are applied
once for each token, to the output, to the gradient of the output and to the input. In this file u is exp(-r) dt x, and
in backward_chunk g is exp(r) times the gradient of y.

In the shapes, q is the number of tokens of a chunk, heads are those of a program, width is heads * headdim, and a tile
is the heads whose x fills 128 lanes. "Wide" values have the dtype of dt: float32, or float64 in the interpreter.

A token that is not finite, called bad, enters as zeros, and NaN is put back at the tokens that depend on it. Whether a
state depends on such a token is carried beside it, as its mark [1, 1]: 1.0 if it does, else 0.0. A state in HBM has NaN
as its mark; its first row tells, see `marked`.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.ssd.decay import exact_parts, log_decay, log_decay_gradient, vanishes
from pallas_kernels.ssd.tpu import lanes
from pallas_kernels.ssd.tpu.lanes import NN, NT, TN, matmul, ones_matmul
from pallas_kernels.ssd.tpu.tiling import Tiling


class Chunk(NamedTuple):
    """What one chunk reads. Tokens that are bad or lie beyond the row's end are zeros.

    x [q, width], dt [q, 3 * heads] as lanes.spread takes it, B and C [q, d_state]. run [q, 1]: the run of each token,
    where 0 is the run that enters the chunk, and negative values lie beyond the row's end. last_run [1, 1]: the run of
    the last token in scan direction. seen [q, tile * q]: 1.0 where a query (row) sees a key (column), else 0.0,
    repeated for each head of a tile. seen_by [q, q]: the transpose of seen for one head. bad [q, 1]: 1.0 where a token
    is bad, else 0.0. Of a bad token's dt only the values that are bad are zeros.
    """

    x: jax.Array
    dt: jax.Array
    B: jax.Array
    C: jax.Array
    run: jax.Array
    last_run: jax.Array
    seen: jax.Array
    seen_by: jax.Array
    bad: jax.Array


class Decays(NamedTuple):
    """The decays of one chunk for each head, [q, 3 * heads] as lanes.spread takes them, zero where no run connects.

    s: the sum of dt * A since the run began. after, before: exp(r) and exp(-r), where r is what rounding took from s.
    dt: before * dt. entry: the decay from the chunk's entry to a token, without `after`. exit: that from a token to the
    chunk's exit, without `before`. through [1, 3 * heads]: that from entry to exit.
    """

    s: jax.Array
    before: jax.Array
    after: jax.Array
    dt: jax.Array
    entry: jax.Array
    exit: jax.Array
    through: jax.Array

    def spread(self, t: Tiling, reverse: bool) -> 'Decays':
        """after, dt, entry and exit [q, width] and through [1, width]; the others as they are."""
        per_head = [self.after, self.dt, self.entry, self.exit]
        after, dt, entry, exit_ = lanes.spread_together(per_head, t.headdim)
        last = last_token(t, reverse)
        return self._replace(after=after, dt=dt, entry=entry, exit=exit_, through=entry[last] * after[last])


class ChunkGradients(NamedTuple):
    """dx [q, width], ddt [q, heads], dB and dC [q, d_state], dA [1, heads]; dh and dh_marked at the chunk's entry.

    All are wide.
    """

    dx: jax.Array
    ddt: jax.Array
    dB: jax.Array
    dC: jax.Array
    dA: jax.Array
    dh: jax.Array
    dh_marked: jax.Array


def as_float(mask: jax.Array, dtype: DTypeLike) -> jax.Array:
    """1.0 where the mask is true and 0.0 elsewhere."""
    return jnp.where(mask, jnp.ones(mask.shape, dtype), jnp.zeros(mask.shape, dtype))


def any_bad(a: jax.Array) -> jax.Array:
    """[q, n] -> [q, 1]: 1.0 where a row holds a value that is not finite, else 0.0, in float32 or wider."""
    wide = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    return jnp.max(jnp.where(jnp.abs(wide) < jnp.inf, jnp.zeros_like(wide), jnp.ones_like(wide)), axis=1, keepdims=True)


def unless(bad: jax.Array, a: jax.Array) -> jax.Array:
    """a, with zeros in the rows where bad > 0. This is a select, because 0 * NaN is NaN."""
    return jnp.where(jnp.broadcast_to(bad, a.shape) > 0, jnp.zeros_like(a), a)


def nan_where(bad: jax.Array, a: jax.Array) -> jax.Array:
    """a, with NaN in the rows where bad > 0."""
    return jnp.where(jnp.broadcast_to(bad, a.shape) > 0, jnp.full_like(a, jnp.nan), a)


def marked(h: jax.Array) -> jax.Array:
    """[1, 1]: 1.0 if the state h [d_state, width], or its gradient, depends on a bad token, else 0.0."""
    return any_bad(h[:1])


def last_token(t: Tiling, reverse: bool) -> slice:
    """The rows of the chunk's last token in scan direction."""
    return slice(0, 1) if reverse else slice(t.chunk - 1, t.chunk)


def read_chunk(
    x: jax.Array, dt: jax.Array, B: jax.Array, C: jax.Array, run_rows: jax.Array, t: Tiling, reverse: bool
) -> Chunk:
    """Mask a chunk's inputs.

    run_rows [1, tile * q]: the run of each key, as in Chunk.run, repeated for each head of a tile.
    """
    q, wide = t.chunk, dt.dtype
    column = lax.broadcasted_iota(jnp.int32, (q, t.tile * q), 1)
    key, query = column & (q - 1), lax.broadcasted_iota(jnp.int32, column.shape, 0)
    rows = jnp.broadcast_to(run_rows, key.shape)
    run = jnp.sum(jnp.where(column == query, rows, jnp.zeros_like(rows)), axis=1, keepdims=True)
    same = rows == run
    ordered, transposed = (key >= query, key <= query) if reverse else (key <= query, key >= query)
    beyond = as_float(run < 0, wide)
    bad = jnp.maximum(jnp.maximum(any_bad(x), any_bad(dt)), jnp.maximum(any_bad(B), any_bad(C)))
    clear = jnp.maximum(bad, beyond)
    return Chunk(
        # dt alone decides on the decays, so it does not wait for what the others hold.
        x=unless(clear, x), dt=jnp.where(jnp.abs(dt) < jnp.inf, dt, jnp.zeros_like(dt)), B=unless(clear, B),
        C=unless(clear, C), run=run, last_run=run_rows[:, last_token(t, reverse)],
        seen=as_float(same & ordered, wide), seen_by=as_float(same & transposed, wide)[:, :q],
        bad=jnp.where(beyond > 0, jnp.zeros_like(bad), bad),
    )


def decays(c: Chunk, A: jax.Array, t: Tiling, reverse: bool) -> Decays:
    """The decays of a chunk, from A [1, 3 * heads]. The sums restart with each run, by matmul."""
    a = log_decay(c.dt, A)
    coarse, fine = (lanes.sum_seen(c.seen, part, t) for part in exact_parts(a, t.chunk))
    s = coarse + fine
    rest = (coarse - s) + fine
    zeros, last = jnp.zeros_like(s), last_token(t, reverse)
    run = jnp.broadcast_to(c.run, s.shape)
    at_entry, at_exit = run == 0, run == c.last_run
    entry = jnp.where(at_entry, jnp.exp(s), zeros)
    exit_ = jnp.where(at_exit, jnp.exp(jnp.where(at_exit, s[last] - s + rest[last], zeros)), zeros)
    after, before = jnp.exp(rest), jnp.exp(-rest)
    return Decays(s, before, after, before * c.dt, entry, exit_, through=entry[last] * after[last])


def counted(c: Chunk, A: jax.Array, t: Tiling, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """(counts wide, token int32), both [q, heads], the arguments of log_decay_gradient."""
    dt, A = c.dt[:, :t.heads], A[:, :t.heads]
    runs = jnp.broadcast_to(c.run, dt.shape)
    token = lax.broadcasted_iota(jnp.int32, runs.shape, 0)
    first = token == (t.chunk - 1 if reverse else 0)
    run_before = jnp.where(first, jnp.zeros_like(runs), pltpu.roll(runs, t.chunk - 1 if reverse else 1, 0))
    return as_float((runs == run_before) & ~vanishes(log_decay(dt, A)), dt.dtype), token


def within(c: Chunk, columns: jax.Array, tile: int, t: Tiling) -> jax.Array:
    """[q, tile * q]: the decay from key (column) to query (row), for the heads of one tile.

    columns [q, heads * q] is lanes.spread(s, q). tile is the number of the tile.
    """
    width = t.tile * t.chunk
    of_query = columns[:, tile * width:(tile + 1) * width]
    key = lax.broadcasted_iota(jnp.int32, of_query.shape, 1) & (t.chunk - 1)
    own = key == lax.broadcasted_iota(jnp.int32, of_query.shape, 0)
    of_key = jnp.sum(jnp.where(own, of_query, jnp.zeros_like(of_query)), axis=0, keepdims=True)
    # Where a query does not see a key, the exponential may be infinite.
    return jnp.where(c.seen > 0, jnp.exp(of_query - of_key), jnp.zeros_like(of_query))


def next_state(
    c: Chunk, exit_: jax.Array, through: jax.Array, u: jax.Array, h: jax.Array, h_marked: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The state [d_state, width] at the chunk's exit, without a mark, and [1, 1] whether it depends on a bad token.

    exit_ and through are spread. h and h_marked are the same at the entry.
    """
    added = matmul(c.B, (exit_ * u).astype(c.x.dtype), TN, h.dtype)
    # If the run that entered also leaves, the mark must go on, even where the run's decay has underflowed.
    leaves = as_float(c.last_run == 0, h.dtype)
    at_exit = jnp.where(c.run == c.last_run, c.bad, jnp.zeros_like(c.bad))
    bad = jnp.maximum(jnp.max(at_exit, axis=0, keepdims=True), leaves * h_marked)
    return through * h + added, bad


def between_tokens(c: Chunk, t: Tiling, wide: DTypeLike) -> jax.Array:
    """C B^T [q, tile * q], repeated for each head of a tile, with zeros where query and key are the same token."""
    scores = matmul(c.C, lanes.repeat_rows(c.B, t), NT, wide)
    key = lax.broadcasted_iota(jnp.int32, scores.shape, 1) & (t.chunk - 1)
    return jnp.where(key == lax.broadcasted_iota(jnp.int32, scores.shape, 0), jnp.zeros_like(scores), scores)


def own(c: Chunk, wide: DTypeLike) -> jax.Array:
    """C . B of each token [q, 1]: the weight in y of the token's own input, which has no decay."""
    return jnp.sum(c.C.astype(wide) * c.B.astype(wide), axis=1, keepdims=True)


def outputs(c: Chunk, d: Decays, u: jax.Array, h: jax.Array, t: Tiling) -> jax.Array:
    """y [q, width], wide, without NaN."""
    narrow, wide = c.x.dtype, h.dtype
    scores = between_tokens(c, t, wide)
    columns, u = lanes.spread(d.s, t.chunk), u.astype(narrow)
    tiles = []
    for tile in range(t.width // 128):
        weights = (scores * within(c, columns, tile, t)).astype(narrow)
        tiles.append(matmul(weights, lanes.block_diagonal(u[:, tile * 128:(tile + 1) * 128], t), NN, wide))
    y = lanes.joined(tiles) + own(c, wide) * u.astype(wide) + d.entry * matmul(c.C, h.astype(narrow), NN, wide)
    return d.after * y


def reach(mask: jax.Array, bad: jax.Array, t: Tiling) -> jax.Array:
    """[q, 1]: 1.0 where a token (row) sees a bad token, else 0.0.

    mask [q, q]: 1.0 where a row sees a column. bad [q, 1]: 1.0 at bad tokens.
    """
    shape = t.chunk, t.chunk
    diagonal = lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)
    row = jnp.max(jnp.where(diagonal, jnp.broadcast_to(bad, shape), jnp.zeros(shape, bad.dtype)), axis=0, keepdims=True)
    return jnp.max(mask * row, axis=1, keepdims=True)


def forward_chunk(
    c: Chunk, A: jax.Array, h: jax.Array, h_marked: jax.Array, t: Tiling, reverse: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The forward pass over one chunk.

    Args:
      c: the chunk.
      A: [1, 3 * heads], wide.
      h: the state [d_state, width] at the chunk's entry, wide, without a mark.
      h_marked: [1, 1], 1.0 where this state depends on a bad token, else 0.0.
      t: the tiling.
      reverse: whether the scan runs from the right.

    Returns (y [q, width], h and h_marked at the exit). y is wide, and NaN at tokens that depend on a bad token.
    """
    d = decays(c, A, t, reverse).spread(t, reverse)
    u = d.dt * c.x.astype(h.dtype)
    bad = jnp.maximum(reach(c.seen[:, :t.chunk], c.bad, t), as_float(c.run == 0, h.dtype) * h_marked)
    return nan_where(bad, outputs(c, d, u, h, t)), *next_state(c, d.exit, d.through, u, h, h_marked)


def exit_state(
    c: Chunk, A: jax.Array, h: jax.Array, h_marked: jax.Array, t: Tiling, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Only the state that forward_chunk returns: h and h_marked at the exit."""
    d = decays(c, A, t, reverse)
    dt, exit_, through = lanes.spread_together([d.dt, d.exit, d.through], t.headdim)
    return next_state(c, exit_, through, dt * c.x.astype(h.dtype), h, h_marked)


def backward_chunk(
    c: Chunk, A: jax.Array, h: jax.Array, h_marked: jax.Array, g: jax.Array, dh: jax.Array, dh_marked: jax.Array,
    t: Tiling, reverse: bool,
) -> ChunkGradients:
    """The backward pass over one chunk.

    The gradient of s needs no sums over the within-chunk matrices: the sum of y's terms over the keys is y . g, and the
    sum over the queries is u . du. Both leave out the term of a token with itself (see xla.py), and both are made of
    the same rounded numbers.

    Args:
      c, A, h, h_marked, t, reverse: as in forward_chunk.
      g: the gradient of y, [q, width].
      dh, dh_marked: the gradient of the state at the chunk's exit, [d_state, width], wide, without a mark, and [1, 1]
        whether it depends on a bad token.
    """
    narrow, wide = c.x.dtype, h.dtype
    beyond = as_float(c.run < 0, wide)
    g_bad = jnp.where(beyond > 0, jnp.zeros_like(c.bad), any_bad(g))
    g = unless(jnp.maximum(g_bad, beyond), g)
    d = decays(c, A, t, reverse).spread(t, reverse)
    x, dt = c.x.astype(wide), d.dt
    g = d.after * g.astype(wide)
    u = dt * x
    u_n, g_n, h_n, dh_n = u.astype(narrow), g.astype(narrow), h.astype(narrow), dh.astype(narrow)
    g_wide, u_wide = g_n.astype(wide), u_n.astype(wide)
    g_entry, u_exit = (d.entry * g_wide).astype(narrow), (d.exit * u).astype(narrow)

    B_rows, scores = lanes.repeat_rows(c.B, t), between_tokens(c, t, wide)
    columns = lanes.spread(d.s, t.chunk)
    y_tiles, du_tiles, dscores = [], [], jnp.zeros_like(scores)
    for tile in range(t.width // 128):
        its = slice(tile * 128, (tile + 1) * 128)
        decay = within(c, columns, tile, t)
        weights = (scores * decay).astype(narrow)
        u_diagonal = lanes.block_diagonal(u_n[:, its], t)
        y_tiles.append(matmul(weights, u_diagonal, NN, wide))
        du_tiles.append(lanes.fold_diagonal(matmul(weights, g_n[:, its], TN, wide), t))
        dscores = dscores + matmul(g_n[:, its], u_diagonal, NT, wide) * decay
    dscores = dscores.astype(narrow)
    from_others = lanes.joined(y_tiles) + d.entry * matmul(c.C, h_n, NN, wide)
    du_exit = d.exit * matmul(c.B, dh_n, NN, wide)
    du = lanes.joined(du_tiles) + du_exit
    dC = matmul(dscores, B_rows, NN, wide) + matmul(g_entry, h_n, NT, wide)
    dB_rows = matmul(dscores, c.C, TN, wide)
    dB = matmul(u_exit, dh_n, NT, wide)
    for k in range(t.tile):
        dB = dB + dB_rows[k * t.chunk:(k + 1) * t.chunk]

    at_last = jnp.sum(u_wide * du_exit, axis=0, keepdims=True)
    at_last += d.through * jnp.sum(dh * h, axis=0, keepdims=True)
    last = lax.broadcasted_iota(jnp.int32, du.shape, 0) == (0 if reverse else t.chunk - 1)
    to_s = g_wide * from_others - u_wide * du + jnp.where(last, jnp.broadcast_to(at_last, du.shape), jnp.zeros_like(du))
    du = du + own(c, wide) * g_wide
    head_of = lanes.over(lax.broadcasted_iota(jnp.int32, (t.width, t.heads), 0), t.headdim)
    of_head = lanes.ones_where(head_of == lax.broadcasted_iota(jnp.int32, head_of.shape, 1))
    ds = ones_matmul(to_s, of_head, NN)
    counts, token = counted(c, A, t, reverse)
    roll = functools.partial(pltpu.roll, axis=0)
    da = log_decay_gradient(ds, counts, token, t.chunk, reverse=reverse, roll=roll)
    ddt = A[:, :t.heads] * da + d.before[:, :t.heads] * ones_matmul(du * x, of_head, NN)

    either = jnp.maximum(c.bad, g_bad)
    entered, leaving = as_float(c.run == 0, wide), as_float(c.run == c.last_run, wide)
    from_inputs = jnp.maximum(reach(c.seen[:, :t.chunk], c.bad, t), entered * h_marked)
    from_gradients = jnp.maximum(reach(c.seen_by, either, t), leaving * dh_marked)
    bad = jnp.maximum(from_inputs, from_gradients)
    through_marked = as_float(c.last_run == 0, wide) * dh_marked
    entry_marked = jnp.maximum(jnp.max(entered * either, axis=0, keepdims=True), through_marked)
    dh = d.through * dh + matmul(c.C, g_entry, TN, wide)
    dA = jnp.sum(c.dt[:, :t.heads] * da, axis=0, keepdims=True)
    dA = nan_where(jnp.max(bad, axis=0, keepdims=True), dA)
    dx, ddt, dB, dC = (nan_where(bad, a) for a in (dt * du, ddt, dB, dC))
    return ChunkGradients(dx, ddt, dB, dC, dA, dh, entry_marked)
