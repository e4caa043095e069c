"""The arithmetic of one chunk on a TPU core, forward and backward, on values in VMEM.

The formulas are those of pallas_kernels/ssd/xla.py. What differs is the layout: heads stand beside one another on the
lanes, [tokens, heads * headdim], because a headdim of 16 alone would leave seven eighths of each register and of the
matrix unit empty. For the same reason the within-chunk matrices of all heads in 128 lanes of x stand beside one another,
[q, heads * q], and meet x in one matmul whose other operand is block-diagonal.

A state that holds NaN in its first row says that a token before it was not finite; see `poisoned`.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ssd.tpu.tiling import Tiling

NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))
NN = (((1,), (0,)), ((), ()))


class Chunk(NamedTuple):
    """What one chunk of q tokens reads, zero at tokens that are not finite or lie beyond the row's end.

    x [q, heads * headdim], dt [q, heads], B and C [q, state]; run [q, 1] the run of each token, 0 the one that entered;
    seen [q, tile * q] whether a query sees a key, repeated for each head of a tile; `seen_by` its transpose likewise;
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
    """s [q, heads] and its transpose repeated a tile's heads [heads, tile * q]: sums of dt * A since the run began.

    entry, exit [q, width]: from the chunk's entry to a token, from a token to the chunk's exit; through [1, width].
    Zero where no run connects.
    """

    s: jax.Array
    s_rows: jax.Array
    entry: jax.Array
    exit: jax.Array
    through: jax.Array


def matmul(a, b, dims, wide):
    """Operands as they are, products summed in `wide`; float32 operands in full precision."""
    precision = lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=wide)


def over(index: jax.Array, n: int) -> jax.Array:
    """index // n for a power of two: Mosaic would ask for the chip to divide, which nobody knows when compiling ahead."""
    return lax.shift_right_logical(index, jnp.int32(n.bit_length() - 1))


def spread(columns: jax.Array, lanes: int) -> jax.Array:
    """[q, heads] -> [q, heads * lanes], each head's column over `lanes` lanes."""
    q, heads = columns.shape
    side = max(1, 128 // lanes)
    out = []
    for first in range(0, heads, side):
        value = jnp.broadcast_to(columns[:, first:first + 1], (q, side * lanes))
        head = over(lax.broadcasted_iota(jnp.int32, value.shape, 1), lanes)
        for k in range(1, side):
            value = jnp.where(head >= k, columns[:, first + k:first + k + 1], value)
        out.append(value)
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def rows_of_tile(s_rows: jax.Array, first: int, t: Tiling) -> jax.Array:
    """[1, tile * q]: s of the tile's heads at each key, from their rows in s_rows."""
    row = s_rows[first:first + 1]
    head = over(lax.broadcasted_iota(jnp.int32, row.shape, 1), t.chunk)
    for k in range(1, t.tile):
        row = jnp.where(head >= k, s_rows[first + k:first + k + 1], row)
    return row


def block_diagonal(a: jax.Array, t: Tiling) -> jax.Array:
    """[q, 128] of a tile's heads -> [tile * q, 128]: each head's columns in rows of its own."""
    head = over(lax.broadcasted_iota(jnp.int32, a.shape, 1), t.headdim)
    return jnp.concatenate([jnp.where(head == k, a, jnp.zeros_like(a)) for k in range(t.tile)], axis=0)


def fold_diagonal(a: jax.Array, t: Tiling) -> jax.Array:
    """The transpose of block_diagonal: [tile * q, 128] -> [q, 128]."""
    head = over(lax.broadcasted_iota(jnp.int32, (t.chunk, 128), 1), t.headdim)
    out = a[:t.chunk]
    for k in range(1, t.tile):
        out = jnp.where(head == k, a[k * t.chunk:(k + 1) * t.chunk], out)
    return out


def repeat_rows(a: jax.Array, t: Tiling) -> jax.Array:
    return a if t.tile == 1 else jnp.concatenate([a] * t.tile, axis=0)


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
        as_float(same & ordered), as_float(same & transposed), jnp.where(beyond > 0, jnp.zeros_like(bad), bad),
    )


def decays(c: Chunk, A: jax.Array, t: Tiling, reverse: bool) -> Decays:
    """A [1, heads]. Sums restart with each run, by matmul: differences stay as exact as the run is short."""
    a = c.dt * A
    s = matmul(c.seen[:, :t.chunk], a, NN, a.dtype)
    s_rows = matmul(a, c.seen_by, TN, a.dtype)
    s_last = s[:1] if reverse else s[t.chunk - 1:]
    zeros = jnp.zeros_like(s)
    at_entry = jnp.broadcast_to(c.run, s.shape) == 0
    at_exit = jnp.broadcast_to(c.run, s.shape) == c.last_run
    entry = jnp.where(at_entry, jnp.exp(s), zeros)
    exit_ = jnp.where(at_exit, jnp.exp(jnp.where(at_exit, s_last - s, zeros)), zeros)
    through = entry[:1] if reverse else entry[t.chunk - 1:]
    return Decays(s, s_rows, *(spread(a, t.headdim) for a in (entry, exit_, through)))


def within(c: Chunk, d: Decays, columns: jax.Array, tile: int, t: Tiling) -> jax.Array:
    """[q, tile * q]: the decay from key to query for the heads of one tile; columns is spread(s, q)."""
    width = t.tile * t.chunk
    difference = columns[:, tile * width:(tile + 1) * width] - rows_of_tile(d.s_rows, tile * t.tile, t)
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
    scores = matmul(c.C, repeat_rows(c.B, t), NT, wide)
    key = lax.broadcasted_iota(jnp.int32, scores.shape, 1) & (t.chunk - 1)
    return jnp.where(key == lax.broadcasted_iota(jnp.int32, scores.shape, 0), jnp.zeros_like(scores), scores)


def own(c: Chunk, wide) -> jax.Array:
    """C . B of each token [q, 1]: the weight of its own u in y, which no decay touches."""
    return jnp.sum(c.C.astype(wide) * c.B.astype(wide), axis=1, keepdims=True)


def outputs(c: Chunk, d: Decays, u: jax.Array, h: jax.Array, t: Tiling) -> jax.Array:
    """y [q, width], wide, without marks."""
    narrow, wide = c.x.dtype, h.dtype
    scores = between_tokens(c, t, wide)
    columns, u = spread(d.s, t.chunk), u.astype(narrow)
    tiles = []
    for tile in range(t.width // 128):
        weights = (scores * within(c, d, columns, tile, t)).astype(narrow)
        tiles.append(matmul(weights, block_diagonal(u[:, tile * 128:(tile + 1) * 128], t), NN, wide))
    y = tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=1)
    return y + own(c, wide) * u.astype(wide) + d.entry * matmul(c.C, h.astype(narrow), NN, wide)


def reach(mask: jax.Array, bad: jax.Array, t: Tiling) -> jax.Array:
    """[q, 1]: 1.0 where a bad token stands among those that mask [q, tile * q] lets a token see."""
    shape = t.chunk, t.chunk
    diagonal = lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)
    row = jnp.max(jnp.where(diagonal, jnp.broadcast_to(bad, shape), jnp.zeros(shape, bad.dtype)), axis=0, keepdims=True)
    return jnp.max(mask[:, :t.chunk] * row, axis=1, keepdims=True)


def forward_chunk(c: Chunk, A, h, t: Tiling, reverse: bool):
    """(y [q, width] wide, the state [state, width] at the chunk's exit), both marked where a token was not finite."""
    h_bad = poisoned(h)
    h = unless(h_bad, h)
    d = decays(c, A, t, reverse)
    u = spread(c.dt, t.headdim) * c.x.astype(h.dtype)
    entered = jnp.where(c.run == 0, jnp.ones_like(c.bad), jnp.zeros_like(c.bad)) * h_bad
    bad = jnp.maximum(reach(c.seen, c.bad, t), entered)
    return nan_where(bad, outputs(c, d, u, h, t)), next_state(c, d, u, h, h_bad)


def exit_state(c: Chunk, A, h, t: Tiling, reverse: bool) -> jax.Array:
    """forward_chunk's state alone."""
    h_bad = poisoned(h)
    u = spread(c.dt, t.headdim) * c.x.astype(h.dtype)
    return next_state(c, decays(c, A, t, reverse), u, unless(h_bad, h), h_bad)


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
    x, dt = c.x.astype(wide), spread(c.dt, t.headdim)
    u = dt * x
    u_n, g_n, h_n, dh_n = u.astype(narrow), g.astype(narrow), h.astype(narrow), dh.astype(narrow)
    g_wide, u_wide = g_n.astype(wide), u_n.astype(wide)
    g_entry, u_exit = (d.entry * g_wide).astype(narrow), (d.exit * u).astype(narrow)

    B_rows, scores = repeat_rows(c.B, t), between_tokens(c, t, wide)
    columns = spread(d.s, t.chunk)
    y_tiles, du_tiles, dscores = [], [], None
    for tile in range(t.width // 128):
        lanes = slice(tile * 128, (tile + 1) * 128)
        decay = within(c, d, columns, tile, t)
        weights = (scores * decay).astype(narrow)
        u_diagonal = block_diagonal(u_n[:, lanes], t)
        y_tiles.append(matmul(weights, u_diagonal, NN, wide))
        du_tiles.append(fold_diagonal(matmul(weights, g_n[:, lanes], TN, wide), t))
        ours = matmul(g_n[:, lanes], u_diagonal, NT, wide) * decay
        dscores = ours if dscores is None else dscores + ours
    joined = lambda tiles: tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=1)  # noqa: E731
    dscores = dscores.astype(narrow)
    from_others = joined(y_tiles) + d.entry * matmul(c.C, h_n, NN, wide)
    du_exit = d.exit * matmul(c.B, dh_n, NN, wide)
    du = joined(du_tiles) + du_exit
    dC = matmul(dscores, B_rows, NN, wide) + matmul(g_entry, h_n, NT, wide)
    dB_rows = matmul(dscores, c.C, TN, wide)
    dB = matmul(u_exit, dh_n, NT, wide)
    for k in range(t.tile):
        dB = dB + dB_rows[k * t.chunk:(k + 1) * t.chunk]

    at_last = jnp.sum(u_wide * du_exit, axis=0, keepdims=True) + d.through * jnp.sum(dh * h, axis=0, keepdims=True)
    last = lax.broadcasted_iota(jnp.int32, du.shape, 0) == (0 if reverse else t.chunk - 1)
    to_s = g_wide * from_others - u_wide * du + jnp.where(last, jnp.broadcast_to(at_last, du.shape), jnp.zeros_like(du))
    du = du + own(c, wide) * g_wide
    head_of = over(lax.broadcasted_iota(jnp.int32, (t.width, t.heads), 0), t.headdim)
    sums = jnp.where(head_of == lax.broadcasted_iota(jnp.int32, head_of.shape, 1), 1.0, 0.0).astype(wide)
    ds = matmul(to_s, sums, NN, wide)
    da = matmul(c.seen_by[:, :t.chunk], ds, NN, wide)
    ddt = A * da + matmul(du * x, sums, NN, wide)

    ones, zeros = jnp.ones_like(c.bad), jnp.zeros_like(c.bad)
    either = jnp.maximum(c.bad, g_bad)
    entered, leaves = jnp.where(c.run == 0, ones, zeros), jnp.where(c.run == c.last_run, ones, zeros)
    bad = jnp.maximum(
        jnp.maximum(reach(c.seen, c.bad, t), entered * h_bad), jnp.maximum(reach(c.seen_by, either, t), leaves * dh_bad)
    )
    open_ = jnp.where(c.last_run == 0, jnp.ones_like(h_bad), jnp.zeros_like(h_bad))
    before_bad = jnp.maximum(jnp.max(entered * either, axis=0, keepdims=True), open_ * dh_bad)
    dh = nan_where(before_bad, d.through * dh + matmul(c.C, g_entry, TN, wide))
    any_token = jnp.max(bad, axis=0, keepdims=True)
    dA = nan_where(any_token, jnp.sum(c.dt * da, axis=0, keepdims=True))
    return ChunkGradients(*(nan_where(bad, a) for a in (dt * du, ddt, dB, dC)), dA, dh)
