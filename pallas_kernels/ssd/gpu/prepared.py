"""What XLA does around the scan's GPU kernels: what they read, and the gradients made of what they return."""
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.ssd.decay import log_decay, vanishes
from pallas_kernels.ssd.finite import at_tokens
from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Tiles, plgpu

HEADDIMS = (16, 32, 64, 128)


def why_not(
    name: str, memory: Mapping[str, Callable[[Tiles], tuple[int, int]]], x_dtype: DTypeLike, headdim: int, state: int,
    chunk_size: int | None,
) -> str | None:
    """The reason why an implementation by GPU kernels cannot serve such a call of ssd_scan, or None if it can.

    name: that of the implementation. memory: for each of its kernels, the bytes of shared memory (once, for each stage
    of the pipeline). state: d_state. The device is not looked at.
    """
    take_xla = "take implementation='xla'"
    if plgpu is None or jax.__version_info__ < (0, 11):
        return f'{name} needs JAX 0.11 or later and this is {jax.__version__}; {take_xla}'
    if jnp.dtype(x_dtype) != jnp.bfloat16:
        return f'{name} computes in bfloat16 and x is {jnp.dtype(x_dtype)}; cast x, B and C or {take_xla}'
    if headdim not in HEADDIMS:
        return f'{name} serves headdim {", ".join(map(str, HEADDIMS))} and x has {headdim}; {take_xla}'
    if not 16 <= state <= 256:
        return f'{name} serves states of 16 to 256 and B has {state}; {take_xla}'
    if chunk_size not in (None, CHUNK):
        return f'{name} has chunks of {CHUNK} tokens, the rows of a wgmma, and chunk_size={chunk_size}; {take_xla}'
    t = Tiles.of(1, CHUNK, 1, headdim, 1, state)
    needed = {kernel: sum(of_kernel(t)) for kernel, of_kernel in memory.items()}
    kernel = max(needed, key=needed.__getitem__)
    if needed[kernel] > tiles.SHARED_MEMORY - tiles.RESERVED:
        return (f'{name} needs {needed[kernel] // 1024} KB of shared memory in {kernel} for headdim {headdim} and '
                f'state {state}, and a program has {tiles.SHARED_MEMORY // 1024} KB; {take_xla}')
    return None


def filled_up(
    x: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(D, B, C) as the kernels take them: D [heads, P], zeros where None, and a multiple of 16 columns in B and C."""
    gap = [(0, 0)] * 3 + [(0, Tiles.of(*x.shape, *B.shape[2:]).state - B.shape[3])]
    # 0 A varies over the same mesh axes as A, which zeros do not.
    D = 0 * A if D is None else D.astype(A.dtype)
    D = jnp.broadcast_to(D.reshape(len(A), -1), x.shape[2:])
    return D, jnp.pad(B, gap), jnp.pad(C, gap)


def chunked(t: Tiles, a: jax.Array, fill: int = 0) -> jax.Array:
    """[batch, length, ...] -> [M, Q, ...], filled up with `fill` beyond the end."""
    gap = t.chunks * CHUNK - a.shape[1]
    if gap:
        a = jnp.pad(a, ((0, 0), (0, gap)) + ((0, 0),) * (a.ndim - 2), constant_values=fill)
    return a.reshape(t.all_chunks, CHUNK, *a.shape[2:])


def unchunked(t: Tiles, a: jax.Array, length: int) -> jax.Array:
    """[M, Q, ...] -> [batch, length, ...]."""
    return a.reshape(t.batch, t.chunks * CHUNK, *a.shape[2:])[:, :length]


def whole_blocks(t: Tiles, a: jax.Array, axis: int) -> jax.Array:
    """The array with the heads of each group, which lie on `axis`, filled up with zeros to whole blocks."""
    per_group = a.shape[axis] // t.groups
    gap = t.blocks * t.heads - per_group
    if not gap:
        return a
    a = a.reshape(*a.shape[:axis], t.groups, per_group, *a.shape[axis + 1:])
    a = jnp.pad(a, [(0, gap if k == axis + 1 else 0) for k in range(a.ndim)])
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2:])


def own_heads(t: Tiles, a: jax.Array, axis: int, heads: int) -> jax.Array:
    """The inverse of whole_blocks."""
    if a.shape[axis] == heads:
        return a
    a = a.reshape(*a.shape[:axis], t.groups, -1, *a.shape[axis + 1:])
    a = lax.slice_in_dim(a, 0, heads // t.groups, axis=axis + 1)
    return a.reshape(*a.shape[:axis], heads, *a.shape[axis + 2:])


def tokens_by_columns(t: Tiles, a: jax.Array) -> jax.Array:
    """x [batch, length, heads, P] -> [M Q, groups blocks heads P]."""
    return whole_blocks(t, chunked(t, a), 2).reshape(t.all_chunks * CHUNK, -1)


def from_columns(t: Tiles, a: jax.Array, length: int, heads: int) -> jax.Array:
    """The inverse of tokens_by_columns."""
    a = own_heads(t, a.reshape(t.all_chunks, CHUNK, -1, t.headdim), 2, heads)
    return unchunked(t, a, length)


def by_head(t: Tiles, a: jax.Array) -> jax.Array:
    """dt [batch, length, heads] -> [M, groups blocks heads, Q]."""
    return jnp.swapaxes(whole_blocks(t, chunked(t, a), 2), 1, 2)


def vectors(t: Tiles, *kinds: jax.Array) -> jax.Array:
    """Arrays [M, groups blocks heads, Q] -> [M groups blocks, kinds heads, Q]."""
    of_blocks = [a.reshape(t.all_chunks * t.groups * t.blocks, t.heads, CHUNK) for a in kinds]
    return jnp.concatenate(of_blocks, axis=1)


class Prepared:
    """What the kernels read in one call. dt must be finite.

    t: the sizes. x, B, C, D: in the shapes of tiles.py. Float32 for each head: dt [M, heads, Q]; s2 [M, heads, Q], the
    sum of dt A in base 2; entry, exit [M, heads, Q] and through [M, heads], the decays from entry to token, from token
    to exit and from entry to exit, zero where no run connects. gone [M, heads, Q]: whether a token's decay vanishes.
    visible [M, Q, Q] float32: 1 where token q sees token s, else 0. sees, seen_by: pairs of int32 [M, Q], the first and
    the last token that each token sees, or that see it.
    """

    def __init__(self, reverse, x, dt, A, D, B, C, run):
        batch, self.length, self.heads, headdim = x.shape
        groups, state = B.shape[2:]
        self.t = t = Tiles.of(batch, self.length, self.heads, headdim, groups, state)
        self.x = tokens_by_columns(t, x)
        self.B, self.C = (chunked(t, a).reshape(t.all_chunks * CHUNK, -1) for a in (B, C))
        self.D = whole_blocks(t, D, 0).reshape(-1, t.width)
        self.dt = by_head(t, dt)
        run = chunked(t, run, fill=-1)  # what lies beyond the end is a run of its own
        order = jnp.arange(CHUNK, dtype=jnp.int32)
        same = run[:, :, None] == run[:, None, :]
        self.visible = (same & (order[:, None] <= order if reverse else order[:, None] >= order)).astype(A.dtype)
        by_row = run.reshape(batch, t.chunks, CHUNK)
        meets = by_row[:, 1:, 0] == by_row[:, :-1, -1]
        enters = jnp.pad(meets, ((0, 0), (0, 1) if reverse else (1, 0))).reshape(-1, 1)
        first, last = (run[:, -1:], run[:, :1]) if reverse else (run[:, :1], run[:, -1:])
        at_entry, at_exit = ((run == first) & enters)[:, None], (run == last)[:, None]
        # The sums restart at each run, by matmul. Their rounding is far below that of bfloat16, in which the kernels
        # multiply.
        a = log_decay(self.dt, whole_blocks(t, A, 0)[:, None])
        self.gone = vanishes(a)
        s = jnp.einsum('mqs,mhs->mhq', self.visible, a, precision=lax.Precision.HIGHEST)
        s_last = s[..., :1] if reverse else s[..., -1:]
        self.s2 = s * math.log2(math.e)
        self.entry = jnp.where(at_entry, jnp.exp(s), 0)
        self.exit = jnp.where(at_exit, jnp.exp(jnp.where(at_exit, s_last - s, 0)), 0)
        self.through = self.entry[..., 0] if reverse else self.entry[..., -1]
        begin, end = jnp.argmax(same, axis=2), CHUNK - 1 - jnp.argmax(same[:, :, ::-1], axis=2)
        here = jnp.broadcast_to(order, begin.shape)
        before, after = (begin.astype(jnp.int32), here), (here, end.astype(jnp.int32))
        self.sees, self.seen_by = (after, before) if reverse else (before, after)

    def channels(self, per_head: jax.Array) -> jax.Array:
        """[M, heads] -> [M, heads P], each head's value for each of its columns."""
        return jnp.repeat(per_head, self.t.headdim, axis=1)

    def of_all_heads(self, of_blocks: jax.Array) -> jax.Array:
        """[M groups blocks, heads, Q] -> [M, groups blocks heads, Q]."""
        return of_blocks.reshape(self.t.all_chunks, -1, CHUNK)


class Sums(NamedTuple):
    """What the backward kernels return beside the gradients of x, B and C, float32.

    With W and dW as in backward.py, and u = dt x, for each token of a head [M, heads, Q]: by_query, by_key: sum_j
    W_ij dW_ij of token i and sum_i W_ij dW_ij of token j, both without j = i. xdu: x . du. out: entry g h C. into:
    exit u dh B. across [M, heads]: the sum of h dh. dD: the sum of g x over the chunk's tokens, [M, heads P].
    """

    by_query: jax.Array
    by_key: jax.Array
    xdu: jax.Array
    out: jax.Array
    into: jax.Array
    across: jax.Array
    dD: jax.Array

    def gradients(self, p: Prepared, A: jax.Array, poisoned: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients of dt, A and D; NaN for tokens that are poisoned, bool [batch, length]."""
        # y_i is a sum of terms, one for each j that i sees. A term decays by the dt A of the tokens after j up to i. So
        # the gradient of dt_k A is the sum of g . term over the pairs with j before k and i at or after k. Within the
        # chunk these are all pairs with i at or after k, without those with j at or after k. From the chunk's entry
        # they are those with i at or after k, to its exit those with j before k, and through the chunk all.
        t = p.t
        sums = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        da = sums('mqs,mhq->mhs', p.visible, self.by_query - self.by_key + self.out)
        da += sums('mqs,mhs->mhq', p.visible - jnp.eye(CHUNK, dtype=p.visible.dtype), self.into)
        da += (p.through * self.across)[:, :, None]
        # Where a decay vanishes, only the rounding of sums that cancel is left. NaN goes on from here to dt, A and D.
        da = jnp.where(chunked(t, poisoned)[:, None], jnp.nan, jnp.where(p.gone, 0, da))

        def heads_back(a):
            """[M, groups blocks heads, Q] -> [batch, length, heads]."""
            return unchunked(t, jnp.swapaxes(own_heads(t, a, 1, p.heads), 1, 2), p.length)

        ddt = A * heads_back(da) + heads_back(self.xdu)
        dA = jnp.sum(own_heads(t, jnp.sum(p.dt * da, axis=2), 1, p.heads), axis=0)
        dD = own_heads(t, jnp.sum(self.dD.reshape(t.all_chunks, -1, t.headdim), axis=0), 0, p.heads)
        return ddt, dA, jnp.where(jnp.isnan(dA)[:, None], jnp.nan, dD)


def key_gradient(p: Prepared, a: jax.Array, like: jax.Array, poisoned: jax.Array) -> jax.Array:
    """The gradient of B or C [batch, length, groups, N] from a [M Q, groups N], NaN for tokens that are poisoned."""
    a = unchunked(p.t, a.reshape(p.t.all_chunks, CHUNK, *like.shape[2:]), p.length)
    return jnp.where(at_tokens(poisoned, a), jnp.nan, a).astype(like.dtype)
