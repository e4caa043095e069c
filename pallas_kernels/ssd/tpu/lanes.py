"""How the values of several heads are laid out on the lanes of a TPU core, and the matmuls that move them there.

q is the number of tokens of a chunk. A tile is the `tile` heads whose columns of x fill 128 lanes.
"""
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.ssd.tpu.tiling import Tiling

# Dimension numbers of lax.dot_general without batch axes. T marks an operand that is transposed.
Dims = tuple[tuple[tuple[int], tuple[int]], tuple[tuple[()], tuple[()]]]
NT: Dims = (((1,), (1,)), ((), ()))
TN: Dims = (((0,), (0,)), ((), ()))
NN: Dims = (((1,), (0,)), ((), ()))


def matmul(a: jax.Array, b: jax.Array, dims: Dims, wide: DTypeLike) -> jax.Array:
    """The product of two matrices in their own dtype, summed in the dtype `wide`; float32 in full precision."""
    precision = lax.Precision.DEFAULT if a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=wide)


def ones_matmul(a: jax.Array, b: jax.Array, dims: Dims) -> jax.Array:
    """The product, in full precision, of a bfloat16 matrix of ones and zeros and a float32 matrix, in either order.

    It takes one pass over the matrix unit instead of six. A float32 is the sum of three bfloat16, of eight bits each.
    These stand beside one another on the axis that is summed over.
    """
    wide = a.dtype if b.dtype == jnp.bfloat16 else b.dtype
    if wide != jnp.float32:  # float64, in the interpreter
        return matmul(a.astype(wide), b.astype(wide), dims, wide)
    (axis_a,), (axis_b,) = dims[0]
    return matmul(jnp.concatenate(_thirds(a), axis=axis_a), jnp.concatenate(_thirds(b), axis=axis_b), dims, wide)


def _thirds(a: jax.Array) -> list[jax.Array]:
    """Three bfloat16 arrays: for a float32 array those that add up to it, for a bfloat16 array three times itself."""
    if a.dtype == jnp.bfloat16:
        return [a] * 3
    parts = []
    for _ in range(3):
        parts.append(a.astype(jnp.bfloat16))
        a = a - parts[-1].astype(a.dtype)
    return parts


def ones_where(mask: jax.Array) -> jax.Array:
    """1.0 where the mask is true and 0.0 elsewhere, in bfloat16, for ones_matmul."""
    return jnp.where(mask, 1.0, 0.0).astype(jnp.bfloat16)


def over(index: jax.Array, n: int) -> jax.Array:
    """index // n, for a power of two n.

    For a division Mosaic would need to know the generation of the chip, which is unknown when compiling ahead of time.
    """
    return lax.shift_right_logical(index, jnp.int32(n.bit_length() - 1))


def spread(columns: jax.Array, lanes: int) -> jax.Array:
    """[q, 3 * heads] -> [q, heads * lanes]: the column of each head on `lanes` lanes.

    The columns of the heads come three times beside one another, in lanes that would be empty otherwise: a float32 is
    the sum of three bfloat16 (see ones_matmul), and each time one of these takes its place without a move.
    """
    q, heads = columns.shape[0], columns.shape[1] // 3
    if lanes >= 128:
        return joined([jnp.broadcast_to(columns[:, head:head + 1], (q, lanes)) for head in range(heads)])
    # Where heads share a register, each would cost a broadcast and a select. The matrix unit has time for it.
    wide = columns.dtype
    rows = heads if wide != jnp.float32 else 3 * heads
    head = lax.broadcasted_iota(jnp.int32, (rows, heads * lanes), 0)
    head_of = over(lax.broadcasted_iota(jnp.int32, head.shape, 1), lanes)
    mine = (head == head_of) | (head == head_of + heads) | (head == head_of + 2 * heads)
    if wide != jnp.float32:  # float64, in the interpreter
        return matmul(columns[:, :heads], mine.astype(wide), NN, wide)
    high, middle, low = _thirds(columns)
    place = lax.broadcasted_iota(jnp.int32, columns.shape, 1)
    parts = jnp.where(place < heads, high, jnp.where(place < 2 * heads, middle, low))
    return matmul(parts, ones_where(mine), NN, wide)


def spread_together(columns: list[jax.Array], lanes: int) -> list[jax.Array]:
    """`spread` of several arrays, of one row or of q, in one product: most of its time goes to the other operand."""
    rows = [a if a.shape[0] > 1 else jnp.broadcast_to(a, (8, a.shape[1])) for a in columns]
    spread_rows, found = spread(jnp.concatenate(rows, axis=0), lanes), []
    for a, padded in zip(columns, rows, strict=True):
        found.append(spread_rows[:a.shape[0]])
        spread_rows = spread_rows[padded.shape[0]:]
    return found


def sum_seen(seen: jax.Array, a: jax.Array, t: Tiling) -> jax.Array:
    """The sum of a [q, n] over the keys that each query sees, in full precision: [q, n].

    seen: [q, tile * q], 1.0 where a query (row) sees a key (column), repeated for each head of a tile.
    """
    if a.dtype != jnp.float32:
        return matmul(seen[:, :t.chunk], a, NN, a.dtype)
    # As in ones_matmul, but three of the repetitions stand beside one another already.
    thrice = seen[:, :3 * t.chunk] if t.tile >= 3 else joined([seen[:, :t.chunk]] * 3)
    return matmul(ones_where(thrice > 0), jnp.concatenate(_thirds(a), axis=0), NN, a.dtype)


def joined(tiles: list[jax.Array]) -> jax.Array:
    """The arrays beside one another on the lanes."""
    return tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=1)


def block_diagonal(a: jax.Array, t: Tiling) -> jax.Array:
    """[q, 128] of a tile's heads -> [tile * q, 128]: the columns of each head in rows of its own, zeros elsewhere."""
    if a.dtype != jnp.bfloat16:
        head = over(lax.broadcasted_iota(jnp.int32, a.shape, 1), t.headdim)
        return jnp.concatenate([jnp.where(head == k, a, jnp.zeros_like(a)) for k in range(t.tile)], axis=0)
    # Two rows of bfloat16 fill one register row, and a select would take them apart. The bits are masked instead.
    pairs = pltpu.bitcast(a, jnp.int32)
    head = over(lax.broadcasted_iota(jnp.int32, pairs.shape, 1), t.headdim)
    masks = [jnp.where(head == k, jnp.int32(-1), jnp.int32(0)) for k in range(t.tile)]
    return pltpu.bitcast(jnp.concatenate([pairs & mask for mask in masks], axis=0), a.dtype)


def fold_diagonal(a: jax.Array, t: Tiling) -> jax.Array:
    """The transpose of block_diagonal: [tile * q, 128] -> [q, 128]."""
    head = over(lax.broadcasted_iota(jnp.int32, (t.chunk, 128), 1), t.headdim)
    out = a[:t.chunk]
    for k in range(1, t.tile):
        out = jnp.where(head == k, a[k * t.chunk:(k + 1) * t.chunk], out)
    return out


def repeat_rows(a: jax.Array, t: Tiling) -> jax.Array:
    """[q, n] -> [tile * q, n]: the array once for each head of a tile."""
    return a if t.tile == 1 else jnp.concatenate([a] * t.tile, axis=0)
