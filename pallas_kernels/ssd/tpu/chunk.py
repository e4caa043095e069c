"""The arithmetic of one chunk on a TPU core, forward and backward, on values in VMEM.

The formulas are those of pallas_kernels/ssd/xla.py. What differs is the layout: heads stand beside one another on the
lanes, [tokens, heads * headdim], because a headdim of 16 alone would leave seven eighths of each register and of the
matrix unit empty. For the same reason the within-chunk matrices of all heads in 128 lanes of x stand beside one
another, [q, heads * q], and meet x in one matmul whose other operand is block-diagonal.

Let s be the running sum of dt * A in float32, and r what rounding took from it. The decay from token j to token i is
exp(r_i) exp(s_i - s_j) exp(-r_j). Only the middle factor is a matrix for each head. The other two are applied once a
token, to the output, to the gradient of the output and to the input. In this file u is exp(-r) dt x, and in
backward_chunk g is exp(r) times the gradient of y.

A state that holds NaN in its first row says that a token before it was not finite; see `poisoned`.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ssd.decay import exact_parts, log_decay, log_decay_gradient, vanishes
from pallas_kernels.ssd.tpu import lanes
from pallas_kernels.ssd.tpu.lanes import NN, NT, TN, matmul, ones_matmul
from pallas_kernels.ssd.tpu.tiling import Tiling

class Chunk(NamedTuple):
    """What one chunk of q tokens reads, zero at tokens that are not finite or lie beyond the row's end.

    x [q, heads * headdim], dt [q, heads], B and C [q, state]; run [q, 1] the run of each token, 0 the one that entered;
    seen [q, tile * q] whether a query sees a key, repeated for each head of a tile; seen_by [q, q] its transpose;
    bad [q, 1] 1.0 where a token was not finite.
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
    """The decays of one chunk, zero where no run connects.

    s [q, heads]: the sum of dt * A since the run began. s_rows [heads, tile * q]: its transpose, repeated for each head
    of a tile. after, before [q, heads]: exp(r) and exp(-r), where r is what rounding took from s. entry [q, width]: from
    the chunk's entry to a token, without `after`. exit [q, width]: from a token to the chunk's exit, without `before`.
    through [1, width]: from entry to exit.
    """

    s: jax.Array
    s_rows: jax.Array
    after: jax.Array
    before: jax.Array
    entry: jax.Array
    exit: jax.Array
    through: jax.Array


def any_bad(a: jax.Array) -> jax.Array:
    """[q, n] -> [q, 1]: 1.0 where a row holds a value that is not finite."""
    wide = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    return jnp.max(jnp.where(jnp.abs(wide) < jnp.inf, jnp.zeros_like(wide), jnp.ones_like(wide)), axis=1, keepdims=True)


def unless(bad: jax.Array, a: jax.Array) -> jax.Array:
    """a, zero in rows where bad > 0. A select, because 0 * NaN is NaN."""
    return jnp.where(jnp.broadcast_to(bad, a.shape) > 0, jnp.zeros_like(a), a)


def nan_where(bad: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.where(jnp.broadcast_to(bad, a.shape) > 0, jnp.full_like(a, jnp.nan), a)


def poisoned(h: jax.Array) -> jax.Array:
    """[1, 1]: 1.0 if the state h [state, width] was marked by a token that is not finite."""
    return any_bad(h[:1])


def read_chunk(x, dt, B, C, run_rows, t: Tiling, reverse: bool) -> Chunk:
    """Mask a chunk's inputs. run_rows [1, tile * q]: the run of each key, repeated; negative beyond the row's end."""
    q = t.chunk
    wide = dt.dtype
    column = lax.broadcasted_iota(jnp.int32, (q, t.tile * q), 1)
    key, query = column & (q - 1), lax.broadcasted_iota(jnp.int32, column.shape, 0)
    on_diagonal = column == query
    rows = jnp.broadcast_to(run_rows, key.shape)
    run = jnp.sum(jnp.where(on_diagonal, rows, jnp.zeros_like(rows)), axis=1, keepdims=True)
    same = rows == run
    ordered, transposed = (key >= query, key <= query) if reverse else (key <= query, key >= query)
    as_float = lambda mask: jnp.where(mask, jnp.ones(mask.shape, wide), jnp.zeros(mask.shape, wide))  # noqa: E731
    beyond = jnp.where(run < 0, jnp.ones_like(run), jnp.zeros_like(run))
    bad = jnp.maximum(jnp.maximum(any_bad(x), any_bad(dt)), jnp.maximum(any_bad(B), any_bad(C)))
    clear = jnp.maximum(bad, beyond)
    return Chunk(
        *(unless(clear, a) for a in (x, dt, B, C)), run, run_rows[:, :1] if reverse else run_rows[:, q - 1:q],
        as_float(same & ordered), as_float(same & transposed)[:, :q], jnp.where(beyond > 0, jnp.zeros_like(bad), bad),
    )


def decays(c: Chunk, A: jax.Array, t: Tiling, reverse: bool) -> Decays:
    """A [1, heads]. The sums restart with each run, by matmul."""
    a = log_decay(c.dt, A)
    seen_by = lanes.ones_where(c.seen_by > 0)
    coarse, fine = (ones_matmul(seen_by, part, TN) for part in exact_parts(a, t.chunk))
    s = coarse + fine
    rest = (coarse - s) + fine
    zeros, last = jnp.zeros_like(s), last_token(t, reverse)
    run = jnp.broadcast_to(c.run, s.shape)
    at_entry, at_exit = run == 0, run == c.last_run
    entry = jnp.where(at_entry, jnp.exp(s), zeros)
    exit_ = jnp.where(at_exit, jnp.exp(jnp.where(at_exit, s[last] - s + rest[last], zeros)), zeros)
    after = jnp.exp(rest)
    through = entry[last] * after[last]
    entry, exit_, through = (lanes.spread(decay, t.headdim) for decay in (entry, exit_, through))
    return Decays(s, lanes.in_rows(s, t), after, jnp.exp(-rest), entry, exit_, through)


def last_token(t: Tiling, reverse: bool) -> slice:
    """Of the chunk, in scan direction."""
    return slice(0, 1) if reverse else slice(t.chunk - 1, t.chunk)


def counted(c: Chunk, A: jax.Array, t: Tiling, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """(counts, token) [q, heads], as log_decay_gradient wants them."""
    runs = jnp.broadcast_to(c.run, c.dt.shape)
    token = lax.broadcasted_iota(jnp.int32, runs.shape, 0)
    first = token == (t.chunk - 1 if reverse else 0)
    before = jnp.where(first, jnp.zeros_like(runs), pltpu.roll(runs, t.chunk - 1 if reverse else 1, 0))
    counts = (runs == before) & ~vanishes(log_decay(c.dt, A))
    return jnp.where(counts, jnp.ones_like(runs), jnp.zeros_like(runs)), token


def within(c: Chunk, d: Decays, columns: jax.Array, tile: int, t: Tiling) -> jax.Array:
    """[q, tile * q]: the decay from key to query for the heads of one tile; columns is spread(s, q)."""
    width = t.tile * t.chunk
    difference = columns[:, tile * width:(tile + 1) * width] - lanes.rows_of_tile(d.s_rows, tile * t.tile, t)
    seen = c.seen > 0
    return jnp.where(seen, jnp.exp(jnp.where(seen, difference, jnp.zeros_like(difference))), jnp.zeros_like(difference))


def next_state(c: Chunk, d: Decays, u: jax.Array, h: jax.Array, h_bad: jax.Array) -> jax.Array:
    """The state at the chunk's exit; h is clean, h_bad [1, 1] whether it was marked."""
    added = matmul(c.B, (d.exit * u).astype(c.x.dtype), TN, h.dtype)
    # Whether the run that entered leaves: where its decay underflowed as well, NaN must go on.
    open_ = jnp.where(c.last_run == 0, jnp.ones_like(h_bad), jnp.zeros_like(h_bad))
    at_exit = jnp.where(c.run == c.last_run, c.bad, jnp.zeros_like(c.bad))
    bad = jnp.maximum(jnp.max(at_exit, axis=0, keepdims=True), open_ * h_bad)
    return nan_where(bad, d.through * h + added)


def between_tokens(c: Chunk, t: Tiling, wide) -> jax.Array:
    """C B^T [q, tile * q], repeated for each head of a tile, zero where query and key are the same token."""
    scores = matmul(c.C, lanes.repeat_rows(c.B, t), NT, wide)
    key = lax.broadcasted_iota(jnp.int32, scores.shape, 1) & (t.chunk - 1)
    return jnp.where(key == lax.broadcasted_iota(jnp.int32, scores.shape, 0), jnp.zeros_like(scores), scores)


def own(c: Chunk, wide) -> jax.Array:
    """C . B of each token [q, 1]: the weight of its own u in y, which no decay touches."""
    return jnp.sum(c.C.astype(wide) * c.B.astype(wide), axis=1, keepdims=True)


def outputs(c: Chunk, d: Decays, u: jax.Array, h: jax.Array, t: Tiling) -> jax.Array:
    """y [q, width], wide, without marks."""
    narrow, wide = c.x.dtype, h.dtype
    scores = between_tokens(c, t, wide)
    columns, u = lanes.spread(d.s, t.chunk), u.astype(narrow)
    tiles = []
    for tile in range(t.width // 128):
        weights = (scores * within(c, d, columns, tile, t)).astype(narrow)
        tiles.append(matmul(weights, lanes.block_diagonal(u[:, tile * 128:(tile + 1) * 128], t), NN, wide))
    y = lanes.joined(tiles) + own(c, wide) * u.astype(wide) + d.entry * matmul(c.C, h.astype(narrow), NN, wide)
    return lanes.spread(d.after, t.headdim) * y


def reach(mask: jax.Array, bad: jax.Array, t: Tiling) -> jax.Array:
    """[q, 1]: 1.0 where a bad token stands among those that mask [q, q] lets a token see."""
    shape = t.chunk, t.chunk
    diagonal = lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)
    row = jnp.max(jnp.where(diagonal, jnp.broadcast_to(bad, shape), jnp.zeros(shape, bad.dtype)), axis=0, keepdims=True)
    return jnp.max(mask * row, axis=1, keepdims=True)


def forward_chunk(c: Chunk, A, h, t: Tiling, reverse: bool):
    """(y [q, width] wide, the state [state, width] at the chunk's exit), both marked where a token was not finite."""
    h_bad = poisoned(h)
    h = unless(h_bad, h)
    d = decays(c, A, t, reverse)
    u = lanes.spread(d.before * c.dt, t.headdim) * c.x.astype(h.dtype)
    entered = jnp.where(c.run == 0, jnp.ones_like(c.bad), jnp.zeros_like(c.bad)) * h_bad
    bad = jnp.maximum(reach(c.seen[:, :t.chunk], c.bad, t), entered)
    return nan_where(bad, outputs(c, d, u, h, t)), next_state(c, d, u, h, h_bad)


def exit_state(c: Chunk, A, h, t: Tiling, reverse: bool) -> jax.Array:
    """forward_chunk's state alone."""
    h_bad = poisoned(h)
    d = decays(c, A, t, reverse)
    u = lanes.spread(d.before * c.dt, t.headdim) * c.x.astype(h.dtype)
    return next_state(c, d, u, unless(h_bad, h), h_bad)


class ChunkGradients(NamedTuple):
    """dx [q, width], ddt [q, heads], dB and dC [q, state], dA [1, heads], and dh at the chunk's entry, all wide."""

    dx: jax.Array
    ddt: jax.Array
    dB: jax.Array
    dC: jax.Array
    dA: jax.Array
    dh: jax.Array


def backward_chunk(c: Chunk, A, h, g, dh, t: Tiling, reverse: bool) -> ChunkGradients:
    """h is the state at entry, dh its gradient at exit, both perhaps marked; g [q, width] the gradient of y.

    The gradient of s needs no sums over the within-chunk matrices: over the keys of y's terms it is y . g, over the
    queries u . du, both without a token's own term (xla.py) and made of the same rounded numbers.
    """
    narrow, wide = c.x.dtype, h.dtype
    g_bad = jnp.where(c.run < 0, jnp.zeros_like(c.bad), any_bad(g))
    g = unless(jnp.maximum(g_bad, jnp.where(c.run < 0, jnp.ones_like(c.bad), jnp.zeros_like(c.bad))), g)
    h_bad, dh_bad = poisoned(h), poisoned(dh)
    h, dh = unless(h_bad, h), unless(dh_bad, dh)
    d = decays(c, A, t, reverse)
    x, dt = c.x.astype(wide), lanes.spread(d.before * c.dt, t.headdim)
    g = lanes.spread(d.after, t.headdim) * g.astype(wide)
    u = dt * x
    u_n, g_n, h_n, dh_n = u.astype(narrow), g.astype(narrow), h.astype(narrow), dh.astype(narrow)
    g_wide, u_wide = g_n.astype(wide), u_n.astype(wide)
    g_entry, u_exit = (d.entry * g_wide).astype(narrow), (d.exit * u).astype(narrow)

    B_rows, scores = lanes.repeat_rows(c.B, t), between_tokens(c, t, wide)
    columns = lanes.spread(d.s, t.chunk)
    y_tiles, du_tiles, dscores = [], [], None
    for tile in range(t.width // 128):
        its = slice(tile * 128, (tile + 1) * 128)
        decay = within(c, d, columns, tile, t)
        weights = (scores * decay).astype(narrow)
        u_diagonal = lanes.block_diagonal(u_n[:, its], t)
        y_tiles.append(matmul(weights, u_diagonal, NN, wide))
        du_tiles.append(lanes.fold_diagonal(matmul(weights, g_n[:, its], TN, wide), t))
        ours = matmul(g_n[:, its], u_diagonal, NT, wide) * decay
        dscores = ours if dscores is None else dscores + ours
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
    ddt = A * da + d.before * ones_matmul(du * x, of_head, NN)

    ones, zeros = jnp.ones_like(c.bad), jnp.zeros_like(c.bad)
    either = jnp.maximum(c.bad, g_bad)
    entered, leaves = jnp.where(c.run == 0, ones, zeros), jnp.where(c.run == c.last_run, ones, zeros)
    bad = jnp.maximum(
        jnp.maximum(reach(c.seen[:, :t.chunk], c.bad, t), entered * h_bad), jnp.maximum(reach(c.seen_by, either, t), leaves * dh_bad)
    )
    open_ = jnp.where(c.last_run == 0, jnp.ones_like(h_bad), jnp.zeros_like(h_bad))
    before_bad = jnp.maximum(jnp.max(entered * either, axis=0, keepdims=True), open_ * dh_bad)
    dh = nan_where(before_bad, d.through * dh + matmul(c.C, g_entry, TN, wide))
    any_token = jnp.max(bad, axis=0, keepdims=True)
    dA = nan_where(any_token, jnp.sum(c.dt * da, axis=0, keepdims=True))
    return ChunkGradients(*(nan_where(bad, a) for a in (dt * du, ddt, dB, dC)), dA, dh)
