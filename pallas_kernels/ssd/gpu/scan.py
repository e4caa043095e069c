"""pallas_gpu: SSD in Mosaic GPU kernels for Hopper, in bfloat16, forward and backward.

All chunks of a row are worked on at once. Only the carry of states walks over them. XLA computes what is small, a few
float32 for each token and head: the sums of the decays' logarithms, which restart with each run, and the gradients of
dt and A from the sums that the backward kernels return. The kernels compute the matmuls, the exponentials between
tokens, and everything that has the size of x.

Values that are not finite enter as zeros, and NaN is put back at the tokens that depend on those with such values.
"""
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.ssd.decay import log_decay, vanishes
from pallas_kernels.ssd.finite import at_tokens, finite_tokens, zero_unless
from pallas_kernels.ssd.gpu import backward, forward, tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Tiles, plgpu
from pallas_kernels.ssd.segments import reached_from

HEADDIMS = (16, 32, 64, 128)


def why_not_pallas_gpu(x_dtype: DTypeLike, headdim: int, state: int, chunk_size: int | None) -> str | None:
    """The reason why pallas_gpu cannot serve such a call of ssd_scan, as a sentence, or None if it can.

    state is d_state. The device is not looked at.
    """
    take_xla = "take implementation='xla'"
    if plgpu is None or jax.__version_info__ < (0, 11):
        return f'pallas_gpu needs JAX 0.11 or later and this is {jax.__version__}; {take_xla}'
    if jnp.dtype(x_dtype) != jnp.bfloat16:
        return f'pallas_gpu computes in bfloat16 and x is {jnp.dtype(x_dtype)}; cast x, B and C or {take_xla}'
    if headdim not in HEADDIMS:
        return f'pallas_gpu serves headdim {", ".join(map(str, HEADDIMS))} and x has {headdim}; {take_xla}'
    if not 16 <= state <= 256:
        return f'pallas_gpu serves states of 16 to 256 and B has {state}; {take_xla}'
    if chunk_size not in (None, CHUNK):
        return f'pallas_gpu has chunks of {CHUNK} tokens, the rows of a wgmma, and chunk_size={chunk_size}; {take_xla}'
    t = Tiles.of(1, CHUNK, 1, headdim, 1, state)
    needed = {kernel: sum(memory(t)) for kernel, memory in (forward.MEMORY | backward.MEMORY).items()}
    kernel = max(needed, key=needed.__getitem__)
    if needed[kernel] > tiles.SHARED_MEMORY - tiles.RESERVED:
        return (f'pallas_gpu needs {needed[kernel] // 1024} KB of shared memory in {kernel} for headdim {headdim} and '
                f'state {state}, and a program has {tiles.SHARED_MEMORY // 1024} KB; {take_xla}')
    return None


def ssd_scan_pallas_gpu(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, run: jax.Array, *, reverse: bool,
    D: jax.Array | None = None, chunk_size: int | None = None, interpret: bool = False,
) -> jax.Array:
    """ssd_scan in Mosaic GPU kernels. Source: Mamba-2 (Dao and Gu 2024), section 6.

    Args:
      x, B, C: as in ssd_scan, bfloat16.
      dt, A: as in ssd_scan, float32.
      run: int32 [batch, length], from segments.run_ids.
      reverse: scan from the right.
      D: as in ssd_scan.
      chunk_size: 64 or None.
      interpret: run the kernels in the interpreter, on a CPU.

    Returns y, with the shape and dtype of x. Raises ValueError with the sentence of why_not_pallas_gpu.
    """
    reason = why_not_pallas_gpu(x.dtype, x.shape[3], B.shape[3], chunk_size)
    if reason:
        raise ValueError(reason)
    gap = [(0, 0)] * 3 + [(0, Tiles.of(*x.shape, *B.shape[2:]).state - B.shape[3])]
    # 0 A varies over the same mesh axes as A, which zeros do not.
    D = 0 * A if D is None else D.astype(A.dtype)
    D = jnp.broadcast_to(D.reshape(len(A), -1), x.shape[2:])
    return _ssd(reverse, interpret, x, dt, A, D, jnp.pad(B, gap), jnp.pad(C, gap), run)


def _chunked(t: Tiles, a: jax.Array, fill=0) -> jax.Array:
    """[batch, length, ...] -> [M, Q, ...], filled up with `fill` beyond the end."""
    gap = t.chunks * CHUNK - a.shape[1]
    if gap:
        a = jnp.pad(a, ((0, 0), (0, gap)) + ((0, 0),) * (a.ndim - 2), constant_values=fill)
    return a.reshape(t.all_chunks, CHUNK, *a.shape[2:])


def _unchunked(t: Tiles, a: jax.Array, length: int) -> jax.Array:
    """[M, Q, ...] -> [batch, length, ...]."""
    return a.reshape(t.batch, t.chunks * CHUNK, *a.shape[2:])[:, :length]


def _whole_blocks(t: Tiles, a: jax.Array, axis: int) -> jax.Array:
    """The array with the heads of each group, which lie on `axis`, filled up with zeros to whole blocks."""
    per_group = a.shape[axis] // t.groups
    gap = t.blocks * t.heads - per_group
    if not gap:
        return a
    a = a.reshape(*a.shape[:axis], t.groups, per_group, *a.shape[axis + 1:])
    a = jnp.pad(a, [(0, gap if k == axis + 1 else 0) for k in range(a.ndim)])
    return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2:])


def _own_heads(t: Tiles, a: jax.Array, axis: int, heads: int) -> jax.Array:
    """The inverse of _whole_blocks."""
    if a.shape[axis] == heads:
        return a
    a = a.reshape(*a.shape[:axis], t.groups, -1, *a.shape[axis + 1:])
    a = lax.slice_in_dim(a, 0, heads // t.groups, axis=axis + 1)
    return a.reshape(*a.shape[:axis], heads, *a.shape[axis + 2:])


def _tokens_by_columns(t: Tiles, a: jax.Array) -> jax.Array:
    """x [batch, length, heads, P] -> [M Q, groups blocks heads P]."""
    return _whole_blocks(t, _chunked(t, a), 2).reshape(t.all_chunks * CHUNK, -1)


def _from_columns(t: Tiles, a: jax.Array, length: int, heads: int) -> jax.Array:
    """The inverse of _tokens_by_columns."""
    a = _own_heads(t, a.reshape(t.all_chunks, CHUNK, -1, t.headdim), 2, heads)
    return _unchunked(t, a, length)


def _by_head(t: Tiles, a: jax.Array) -> jax.Array:
    """dt [batch, length, heads] -> [M, groups blocks heads, Q]."""
    return jnp.swapaxes(_whole_blocks(t, _chunked(t, a), 2), 1, 2)


def _vectors(t: Tiles, *kinds: jax.Array) -> jax.Array:
    """Arrays [M, groups blocks heads, Q] -> [M groups blocks, kinds heads, Q]."""
    of_blocks = [a.reshape(t.all_chunks * t.groups * t.blocks, t.heads, CHUNK) for a in kinds]
    return jnp.concatenate(of_blocks, axis=1)


def _kinds(t: Tiles, vectors: jax.Array) -> list[jax.Array]:
    """The inverse of _vectors."""
    kinds = vectors.reshape(t.all_chunks * t.groups * t.blocks, -1, t.heads, CHUNK)
    return [kinds[:, k].reshape(t.all_chunks, -1, CHUNK) for k in range(kinds.shape[1])]


class _Prepared:
    """What the kernels read in one call, with zeros in dt, B and C for tokens at which one of them is not finite.

    The kernels themselves take values of x and g that are not finite for zeros. D: in the shape of tiles.py.
    t: the sizes. x, B, C: in the shapes of tiles.py. Float32 for each head: dt [M, heads, Q]; s2 [M, heads, Q], the sum
    of dt A in base 2; entry, exit [M, heads, Q] and through [M, heads], the decays from entry to token, from token to
    exit and from entry to exit, zero where no run connects. gone [M, heads, Q]: whether a token's decay vanishes.
    visible [M, Q, Q] float32: 1 where token q sees token s, else 0; before: the same without the token itself. sees,
    seen_by: pairs of int32 [M, Q], the first and the last token that each token sees, or that see it. finite: bool
    [batch, length], of dt, B and C alone, since the kernels tell where x is not finite.
    """

    def __init__(self, reverse, x, dt, A, D, B, C, run):
        batch, self.length, self.heads, headdim = x.shape
        groups, state = B.shape[2:]
        self.t = t = Tiles.of(batch, self.length, self.heads, headdim, groups, state)
        self.finite = finite_tokens(dt, B, C)
        dt, B, C = zero_unless(self.finite, dt, B, C)
        self.x = _tokens_by_columns(t, x)
        self.B, self.C = (_chunked(t, a).reshape(t.all_chunks * CHUNK, -1) for a in (B, C))
        self.D = _whole_blocks(t, D, 0).reshape(-1, t.width)
        self.dt = _by_head(t, dt)
        run = _chunked(t, run, fill=-1)  # what lies beyond the end is a run of its own
        order = jnp.arange(CHUNK, dtype=jnp.int32)
        same = run[:, :, None] == run[:, None, :]
        self.visible = (same & (order[:, None] <= order if reverse else order[:, None] >= order)).astype(A.dtype)
        self.before = (same & (order[:, None] < order if reverse else order[:, None] > order)).astype(A.dtype)
        by_row = run.reshape(batch, t.chunks, CHUNK)
        meets = by_row[:, 1:, 0] == by_row[:, :-1, -1]
        enters = jnp.pad(meets, ((0, 0), (0, 1) if reverse else (1, 0))).reshape(-1, 1)
        first, last = (run[:, -1:], run[:, :1]) if reverse else (run[:, :1], run[:, -1:])
        at_entry, at_exit = ((run == first) & enters)[:, None], (run == last)[:, None]
        # The sums restart at each run, by matmul. Their rounding is far below that of bfloat16, in which the kernels
        # multiply.
        a = log_decay(self.dt, _whole_blocks(t, A, 0)[:, None])
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

    def at_tokens(self, of_blocks: jax.Array) -> jax.Array:
        """[M groups blocks, Q], numbers of the blocks -> bool [batch, length], whether any of a token's is above 0."""
        return _unchunked(self.t, jnp.any(of_blocks.reshape(self.t.all_chunks, -1, CHUNK) > 0, axis=1), self.length)

    def channels(self, per_head: jax.Array) -> jax.Array:
        """[M, heads] -> [M, heads P], each head's value for each of its columns."""
        return jnp.repeat(per_head, self.t.headdim, axis=1)


def _forward(reverse, interpret, x, dt, A, D, B, C, run):
    """Returns (y, the states at the chunks' entries, whether each token's inputs are not finite)."""
    p = _Prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    states, bad = forward.chunk_states(t, p.x, _vectors(t, p.exit * p.dt), p.B, interpret=interpret)
    bad = p.at_tokens(bad) | ~p.finite
    poisoned = _chunked(t, reached_from(bad, run, reverse=reverse))
    entries = forward.carry_states(t, states, p.channels(p.through), reverse=reverse, interpret=interpret)
    y = forward.chunk_outputs(
        t, p.x, _vectors(t, p.s2, p.dt, p.entry, p.s2), p.D, p.B, p.C, entries,
        jnp.stack([*p.sees, poisoned.astype(jnp.int32)], axis=1), interpret=interpret,
    )
    return _from_columns(t, y, p.length, p.heads), entries, bad


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ssd(reverse: bool, interpret: bool, x, dt, A, D, B, C, run):
    return _forward(reverse, interpret, x, dt, A, D, B, C, run)[0]


def _ssd_fwd(reverse, interpret, x, dt, A, D, B, C, run):
    y, *kept = _forward(reverse, interpret, x, dt, A, D, B, C, run)
    return y, (x, dt, A, D, B, C, run, *kept)


def _ssd_bwd(reverse, interpret, residuals, g):
    x, dt, A, D, B, C, run, entries, bad = residuals
    p = _Prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    g = _tokens_by_columns(t, g)
    entry = _vectors(t, p.entry)
    dentries, bad_g = forward.chunk_states(t, g, entry, p.C, interpret=interpret)
    # A token's gradient is finite only if all inputs of its run are, and the cotangents of the tokens that see it.
    bad_inputs = reached_from(bad, run, reverse=False) | reached_from(bad, run, reverse=True)
    poisoned = bad_inputs | reached_from(p.at_tokens(bad_g), run, reverse=not reverse)
    dexits = forward.carry_states(t, dentries, p.channels(p.through), reverse=not reverse, interpret=interpret)
    dx, dscores, within, dD = backward.chunk_gradients(
        t, p.x, g, _vectors(t, p.s2, p.s2, p.dt, p.exit), p.D, p.B, p.C, dexits,
        jnp.stack([*p.seen_by, _chunked(t, poisoned).astype(jnp.int32)], axis=1), interpret=interpret,
    )
    dscores = jnp.sum(dscores, axis=0, dtype=jnp.float32).astype(jnp.bfloat16)
    dB, dC, of_states, across = backward.key_gradients(
        t, dscores, p.B, p.C, (p.x, _vectors(t, p.exit * p.dt), dexits), (g, entry, entries), interpret=interpret
    )

    # y_i is a sum of terms, one for each j that i sees. A term decays by the dt A of the tokens after j up to i. So the
    # gradient of dt_k A is the sum of g . term over the pairs with j before k and i at or after k. Within the chunk
    # these are all pairs with i at or after k, without those with j at or after k. From the chunk's entry they are
    # those with i at or after k, to its exit those with j before k, and through the chunk all.
    by_query, by_key, xdu = _kinds(t, within)
    into, out = _kinds(t, of_states)
    sums = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    da = sums('mqs,mhq->mhs', p.visible, by_query - by_key + out)
    da += sums('mqs,mhs->mhq', p.before, into)
    across = jnp.sum(across.reshape(t.all_chunks, -1, t.headdim), axis=2)
    da += (p.through * across)[:, :, None]
    # Where a decay vanishes, only the rounding of sums that cancel is left. NaN goes on from here to dt, A and D.
    da = jnp.where(_chunked(t, poisoned)[:, None], jnp.nan, jnp.where(p.gone, 0, da))

    def heads_back(a):
        """[M, groups blocks heads, Q] -> [batch, length, heads]."""
        return _unchunked(t, jnp.swapaxes(_own_heads(t, a, 1, p.heads), 1, 2), p.length)

    ddt = A * heads_back(da) + heads_back(xdu)
    dA = jnp.sum(_own_heads(t, jnp.sum(p.dt * da, axis=2), 1, p.heads), axis=0)
    dB, dC = (_unchunked(t, a.reshape(t.all_chunks, CHUNK, *B.shape[2:]), p.length) for a in (dB, dC))
    dB, dC = (jnp.where(at_tokens(poisoned, a), jnp.nan, a).astype(a.dtype) for a in (dB, dC))
    dD = _own_heads(t, jnp.sum(dD.reshape(t.all_chunks, -1, t.headdim), axis=0), 0, p.heads)
    dD = jnp.where(jnp.isnan(dA)[:, None], jnp.nan, dD)
    return _from_columns(t, dx, p.length, p.heads), ddt, dA, dD, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)
