"""SSD as blocked matmuls in plain JAX, with a hand-written backward: the implementation for every platform.

A lax.scan walks over blocks, which consist of `chunks` chunks of `chunk_size` tokens. Inside a chunk let s be the
running sum of dt * A over the tokens of one segment, in scan direction, and u = dt x. Then

    y_i   = sum_j [same segment, j not after i] exp(s_i - s_j) (C_i . B_j) u_j  +  [open at entry] exp(s_i) C_i h_in
    h_out = [open throughout] exp(s_last) h_in  +  sum_j [open at exit] exp(s_last - s_j) B_j u_j^T

This is listing 1 of Mamba-2 (Dao and Gu 2024) with segments. C B^T is computed once for all heads of a group. All
exponents are masked before exp, so they are at most 0. No array has the size [length, length] or
[length, headdim, d_state]: the temporaries are those of one block. For the backward pass only the states at chunk
entries and what other tokens add to y are kept. The backward pass recomputes the rest of a chunk.

In a matmul, a 0 of a mask times a NaN of another segment would be NaN. So tokens that are not finite enter as zeros,
and NaN is put back at the tokens that depend on them.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ssd.decay import exact_parts, log_decay, log_decay_gradient, vanishes
from pallas_kernels.ssd.finite import at_tokens, finite_tokens, zero_unless
from pallas_kernels.ssd.segments import reached_from


class _Block(NamedTuple):
    """Some chunks of the inputs.

    The axes are b batch, k chunk, q token, g group, r head of the group, p headdim and n d_state; s is a second axis of
    tokens. x [b,k,q,g,r,p], dt [b,k,q,g,r], B and C [b,k,q,g,n]. starts [b,k,q], in dt's dtype: 1 where a run begins at
    a token other than the leftmost of the chunk, else 0. enters [b,k]: whether the run of the chunk's first token, in
    scan direction, began in an earlier chunk.
    """

    x: jax.Array
    dt: jax.Array
    B: jax.Array
    C: jax.Array
    starts: jax.Array
    enters: jax.Array


class _Decays(NamedTuple):
    """The decays of a block's chunks, in float32 or wider, zero where no segment connects.

    within [b,k,g,r,q,s]: from token s to another token q. entry [b,k,q,g,r]: from the chunk's entry to token q.
    exit [b,k,q,g,r]: from token q to the chunk's exit. through [b,k,g,r]: from entry to exit. counts [b,k,q,g,r]: 1
    where the decay of token q does not vanish and acts on something, else 0; see decay.log_decay_gradient.
    """

    within: jax.Array
    entry: jax.Array
    exit: jax.Array
    through: jax.Array
    counts: jax.Array


def _einsum(formula, *operands, wide):
    return jnp.einsum(formula, *operands, preferred_element_type=wide)


def _decays(block: _Block, A: jax.Array, reverse: bool) -> _Decays:
    order = jnp.arange(block.starts.shape[-1])
    # Runs are counted here, by a matmul. Where the exponentials below are fused with a slice of the scan's inputs,
    # XLA's CPU backend does not vectorise them, and takes ten times as long.
    run = jnp.einsum('qs,bks->bkq', (order[:, None] >= order).astype(A.dtype), block.starts)
    in_order = order[:, None] <= order if reverse else order[:, None] >= order
    visible = in_order & (run[..., :, None] == run[..., None, :])
    others = visible & (order[:, None] != order)
    first, last = (run[..., -1:], run[..., :1]) if reverse else (run[..., :1], run[..., -1:])
    at_entry = (run == first) & block.enters[..., None]
    at_exit = run == last
    # The sums restart at each run, by matmul. They have two parts, so that their differences are exact.
    a = log_decay(block.dt, A)
    since_start = functools.partial(jnp.einsum, 'bksgr,bkqs->bkgrq', precision=lax.Precision.HIGHEST)
    coarse, fine = (since_start(part, visible.astype(A.dtype)) for part in exact_parts(a, order.size))
    difference = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    within = jnp.exp(jnp.where(others[:, :, None, None], difference, -jnp.inf))
    coarse, fine = jnp.moveaxis(coarse, -1, 2), jnp.moveaxis(fine, -1, 2)
    end = slice(0, 1) if reverse else slice(-1, None)
    to_end = (coarse[:, :, end] - coarse) + (fine[:, :, end] - fine)
    entry = jnp.where(at_entry[..., None, None], jnp.exp(coarse + fine), 0)
    at_exit = at_exit[..., None, None]
    exit_ = jnp.where(at_exit, jnp.exp(jnp.where(at_exit, to_end, 0)), 0)
    through = entry[:, :, 0] if reverse else entry[:, :, -1]
    same, enters = run[..., 1:] == run[..., :-1], block.enters[..., None]
    follows = jnp.concatenate([same, enters] if reverse else [enters, same], axis=-1)
    counts = (follows[..., None, None] & ~vanishes(a)).astype(A.dtype)
    return _Decays(within, entry, exit_, through, counts)


def _carry(states, through, h, reverse):
    """Carry h over the chunks of a block. Returns (h after the block, h at each chunk's entry [b,k,g,n,r,p])."""

    def step(h, chunk):
        state, through = chunk
        return h * through[:, :, None, :, None] + state, h

    chunks = jnp.moveaxis(states, 1, 0), jnp.moveaxis(through, 1, 0)
    h, entries = lax.scan(step, h, chunks, reverse=reverse)
    return h, jnp.moveaxis(entries, 0, 1)


def _between_tokens(block: _Block, wide) -> jax.Array:
    """C B^T of each group, [b,k,g,q,s]."""
    return _einsum('bkqgn,bksgn->bkgqs', block.C, block.B, wide=wide)


def _own(block: _Block, wide) -> jax.Array:
    """The diagonal of C B^T, [b,k,q,g,1,1]."""
    return _einsum('bkqgn,bkqgn->bkqg', block.C, block.B, wide=wide)[..., None, None]


def _diagonal(own: jax.Array) -> jax.Array:
    """Diagonal matrices [b,k,g,q,s] of the terms [b,k,g,q] of each token with itself."""
    return jnp.eye(own.shape[-1], dtype=own.dtype) * own[..., None]


def _forward_block(A, reverse, h, block: _Block):
    """Returns (h after the block, (what other tokens add to y, y, h at each chunk's entry))."""
    wide, narrow = A.dtype, block.x.dtype
    d = _decays(block, A, reverse)
    u = block.dt[..., None] * block.x.astype(wide)
    states = _einsum('bksgn,bksgrp->bkgnrp', block.B, (d.exit[..., None] * u).astype(narrow), wide=wide)
    h, entries = _carry(states, d.through, h, reverse)
    weights = (_between_tokens(block, wide)[:, :, :, None] * d.within).astype(narrow)
    y = _einsum('bksgrp,bkgrqs->bkqgrp', u.astype(narrow), weights, wide=wide)
    carried = _einsum('bkqgn,bkgnrp->bkqgrp', block.C, entries.astype(narrow), wide=wide)
    from_others = y + d.entry[..., None] * carried
    return h, (from_others, from_others + _own(block, wide) * u.astype(narrow).astype(wide), entries)


def _backward_block(A, reverse, dh, inputs):
    """One block of the backward scan. dh is the gradient of the state at the block's exit.

    The gradient of s needs no [q, s] array of its own: the sum of the terms over the keys s is y . g, and the sum over
    the queries q is u . du. The term of a token with itself has no decay and is left out of both sums. Where decays
    underflow, the rest would be lost beside it in rounding.
    """
    block, entries, from_others, g = inputs
    wide, narrow = A.dtype, block.x.dtype
    d = _decays(block, A, reverse)
    u = block.dt[..., None] * block.x.astype(wide)
    u_narrow, g_narrow = u.astype(narrow), g.astype(narrow)
    g_entry = (d.entry[..., None] * g).astype(narrow)

    dentries = _einsum('bkqgn,bkqgrp->bkgnrp', block.C, g_entry, wide=wide)
    dh_before, dh_exit = _carry(dentries, d.through, dh, not reverse)

    weights = (_between_tokens(block, wide)[:, :, :, None] * d.within).astype(narrow)
    dweights = _einsum('bkqgrp,bksgrp->bkgrqs', g_narrow, u_narrow, wide=wide)
    dscores = _einsum('bkgrqs,bkgrqs->bkgqs', dweights, d.within, wide=wide)
    dscores = (dscores + _diagonal(_einsum('bkqgrp,bkqgrp->bkgq', g_narrow, u_narrow, wide=wide))).astype(narrow)
    dh_narrow = dh_exit.astype(narrow)
    du_exit = d.exit[..., None] * _einsum('bksgn,bkgnrp->bksgrp', block.B, dh_narrow, wide=wide)
    # With its operands in the other order, XLA's CPU backend refuses this product in bfloat16 for groups of several
    # heads.
    du = _einsum('bkgrqs,bkqgrp->bksgrp', weights, g_narrow, wide=wide) + du_exit
    dC = _einsum('bkgqs,bksgn->bkqgn', dscores, block.B, wide=wide)
    dC += _einsum('bkqgrp,bkgnrp->bkqgn', g_entry, entries.astype(narrow), wide=wide)
    dB = _einsum('bkgqs,bkqgn->bksgn', dscores, block.C, wide=wide)
    dB += _einsum('bksgrp,bkgnrp->bksgn', (d.exit[..., None] * u).astype(narrow), dh_narrow, wide=wide)

    # Terms of the two products cancel, so both must be made of the same rounded numbers that the matmuls read.
    ds = jnp.sum(g_narrow.astype(wide) * from_others - u_narrow.astype(wide) * du, axis=-1)
    du += _own(block, wide) * g_narrow.astype(wide)
    at_last = jnp.sum(u_narrow.astype(wide) * du_exit, axis=(2, 5))
    at_last += d.through * jnp.sum(dh_exit * entries, axis=(3, 5))
    last = 0 if reverse else -1
    ds = ds.at[:, :, last].add(at_last)
    token = jnp.arange(ds.shape[2])[:, None, None]
    roll = functools.partial(jnp.roll, axis=2)
    da = log_decay_gradient(ds, d.counts, token, token.size, reverse=reverse, roll=roll)
    ddt = A * da + _einsum('bkqgrp,bkqgrp->bkqgr', du, block.x.astype(wide), wide=wide)
    dx = block.dt[..., None] * du
    dA = jnp.sum(block.dt * da, axis=(0, 1, 2))
    return dh_before, (dx.astype(narrow), ddt, dB.astype(narrow), dC.astype(narrow), dA)


class _Tiling(NamedTuple):
    """How a sequence is cut: into `blocks` blocks of `chunks` chunks of `size` tokens, together `padded` tokens."""

    blocks: int
    chunks: int
    size: int

    @classmethod
    def of(cls, length: int, chunk_size: int, chunks: int) -> '_Tiling':
        """The tiling of `length` tokens with chunks of `chunk_size` tokens, at most `chunks` of them in a block."""
        needed = -(-length // chunk_size)
        chunks = min(chunks, needed)
        return cls(-(-needed // chunks), chunks, chunk_size)

    @property
    def padded(self) -> int:
        """The tokens of all blocks, of which the last may lie beyond the end of the sequence."""
        return self.blocks * self.chunks * self.size

    def cut(self, a: jax.Array, fill: int = 0) -> jax.Array:
        """[batch, length, ...] -> [blocks, batch, chunks, size, ...], with `fill` beyond the end."""
        gap = self.padded - a.shape[1]
        if gap:
            a = jnp.pad(a, ((0, 0), (0, gap)) + ((0, 0),) * (a.ndim - 2), constant_values=fill)
        a = a.reshape(a.shape[0], self.blocks, self.chunks, self.size, *a.shape[2:])
        return jnp.moveaxis(a, 1, 0)

    def join(self, a: jax.Array, length: int) -> jax.Array:
        """The inverse of cut, for the first `length` tokens."""
        a = jnp.moveaxis(a, 0, 1)
        return a.reshape(a.shape[0], self.padded, *a.shape[4:])[:, :length]


def _blocks_of(x, dt, B, C, run, tiling: _Tiling, reverse: bool) -> _Block:
    run = tiling.cut(run, fill=-1)  # what lies beyond the end is a run of its own
    by_chunk = jnp.moveaxis(run, 0, 1).reshape(run.shape[1], -1, tiling.size)
    if reverse:
        enters = jnp.pad(by_chunk[:, :-1, -1] == by_chunk[:, 1:, 0], ((0, 0), (0, 1)))
    else:
        enters = jnp.pad(by_chunk[:, 1:, 0] == by_chunk[:, :-1, -1], ((0, 0), (1, 0)))
    enters = jnp.moveaxis(enters.reshape(-1, tiling.blocks, tiling.chunks), 1, 0)
    starts = jnp.pad(run[..., 1:] != run[..., :-1], ((0, 0),) * (run.ndim - 1) + ((1, 0),)).astype(dt.dtype)
    return _Block(tiling.cut(x), tiling.cut(dt), tiling.cut(B), tiling.cut(C), starts, enters)


def _grouped(x, dt, A, groups):
    """x, dt and A with their axis of heads split into [groups, heads of a group]."""

    def split(a, axis):
        return a.reshape(*a.shape[:axis], groups, -1, *a.shape[axis + 1:])

    return split(x, 2), split(dt, 2), split(A, 0)


def _forward(tiling, reverse, x, dt, A, B, C, run):
    """The forward pass without NaN.

    Returns (what other tokens add to y, y, the states at chunk entries, which tokens depend on one that is not finite).
    The first two have x's shape and are float32 or wider.
    """
    finite = finite_tokens(x, dt, B, C)
    poisoned = reached_from(~finite, run, reverse=reverse)
    x, dt, B, C = zero_unless(finite, x, dt, B, C)
    xg, dtg, Ag = _grouped(x, dt, A, B.shape[2])
    blocks = _blocks_of(xg, dtg, B, C, run, tiling, reverse)
    # Zeros made from the inputs vary over the axes of a shard_map as the inputs do.
    h = jnp.zeros_like(xg[:, 0, :, None] * B[:, 0, :, :, None, None], A.dtype)
    _, (*y, entries) = lax.scan(functools.partial(_forward_block, Ag, reverse), h, blocks, reverse=reverse)
    return *(tiling.join(a, x.shape[1]).reshape(x.shape) for a in y), entries, poisoned


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ssd(tiling: _Tiling, reverse: bool, x, dt, A, B, C, run):
    return _ssd_fwd(tiling, reverse, x, dt, A, B, C, run)[0]


def _ssd_fwd(tiling, reverse, x, dt, A, B, C, run):
    from_others, y, entries, poisoned = _forward(tiling, reverse, x, dt, A, B, C, run)
    out = jnp.where(at_tokens(poisoned, y), jnp.nan, y).astype(x.dtype)
    return out, (x, dt, A, B, C, run, from_others, entries)


def _ssd_bwd(tiling, reverse, residuals, g):
    x, dt, A, B, C, run, from_others, entries = residuals
    finite = finite_tokens(x, dt, B, C)
    finite_g = finite_tokens(g)
    # A token's gradient is finite only if all inputs of its run are, and the cotangents of the tokens that see it.
    bad_inputs = reached_from(~finite, run, reverse=False) | reached_from(~finite, run, reverse=True)
    poisoned = bad_inputs | reached_from(~finite_g, run, reverse=not reverse)
    clean_x, clean_dt, clean_B, clean_C = zero_unless(finite, x, dt, B, C)
    (clean_g,) = zero_unless(finite_g, g.astype(A.dtype))
    groups = B.shape[2]
    xg, dtg, Ag = _grouped(clean_x, clean_dt, A, groups)
    gg, others = (a.reshape(xg.shape) for a in (clean_g, from_others))
    blocks = _blocks_of(xg, dtg, clean_B, clean_C, run, tiling, reverse)
    dh = jnp.zeros_like(entries[0, :, 0])
    _, grads = lax.scan(
        functools.partial(_backward_block, Ag, reverse), dh, (blocks, entries, tiling.cut(others), tiling.cut(gg)),
        reverse=not reverse,
    )
    *per_token, dA = grads
    dx, ddt, dB, dC = (
        jnp.where(at_tokens(poisoned, like), jnp.nan, tiling.join(a, x.shape[1]).reshape(like.shape)).astype(like.dtype)
        for a, like in zip(per_token, (x, dt, B, C), strict=True)
    )
    dA = jnp.where(jnp.any(poisoned), jnp.nan, jnp.sum(dA, axis=0).reshape(A.shape))
    return dx, ddt, dA, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)


def ssd_scan_xla(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, run: jax.Array, *, reverse: bool,
    chunk_size: int, chunks: int,
) -> jax.Array:
    """ssd_scan without D, in plain JAX. Source: Mamba-2 (Dao and Gu 2024), section 6 and listing 1.

    Args:
      x, B, C: as in ssd_scan.
      dt, A: as in ssd_scan, but float32, or float64 with float64 inputs.
      run: int32 [batch, length], from segments.run_ids.
      reverse: scan from the right.
      chunk_size: tokens of a chunk.
      chunks: chunks of a block, which is one step of the scan.

    Returns y, with the shape and dtype of x.
    """
    tiling = _Tiling.of(x.shape[1], chunk_size, chunks)
    return _ssd(tiling, reverse, x, dt, A, B, C, run)
