"""pallas_gpu: SSD in Mosaic GPU kernels for Hopper, in bfloat16, forward and backward.

All chunks of a row are worked on at once. Only the carry of states walks over them. XLA computes what is small, a few
float32 for each token and head: the sums of the decays' logarithms, which restart with each run, and the gradients of
dt and A from the sums that the backward kernels return. The kernels compute the matmuls, the exponentials between
tokens, and everything that has the size of x.

As in xla, tokens that are not finite enter as zeros, and NaN is put back at the tokens that depend on them.
"""
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.ssd.finite import finite_tokens, zero_unless
from pallas_kernels.ssd.gpu import backward, forward, prepared
from pallas_kernels.ssd.gpu.prepared import Prepared, Sums, chunked, from_columns, tokens_by_columns, vectors
from pallas_kernels.ssd.gpu.tiles import CHUNK
from pallas_kernels.ssd.segments import reached_from


def why_not_pallas_gpu(x_dtype: DTypeLike, headdim: int, state: int, chunk_size: int | None) -> str | None:
    """The reason why pallas_gpu cannot serve such a call of ssd_scan, as a sentence, or None if it can.

    state is d_state. The device is not looked at.
    """
    return prepared.why_not('pallas_gpu', forward.MEMORY | backward.MEMORY, x_dtype, headdim, state, chunk_size)


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
    D, B, C = prepared.filled_up(x, A, B, C, D)
    return _ssd(reverse, interpret, x, dt, A, D, B, C, run)


def _prepared(reverse, x, dt, A, D, B, C, run):
    """(Prepared with zeros in dt, B and C for tokens that are not finite, bool [batch, length]: which are finite).

    The kernels themselves take values of x and g that are not finite for zeros.
    """
    finite = finite_tokens(x, dt, B, C)
    dt, B, C = zero_unless(finite, dt, B, C)
    return Prepared(reverse, x, dt, A, D, B, C, run), finite


def _forward(reverse, interpret, x, dt, A, D, B, C, run):
    """Returns (y, the states at the chunks' entries)."""
    p, finite = _prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    poisoned = chunked(t, reached_from(~finite, run, reverse=reverse))
    states = forward.chunk_states(t, p.x, vectors(t, p.exit * p.dt), p.B, interpret=interpret)
    entries = forward.carry_states(t, states, p.channels(p.through), reverse=reverse, interpret=interpret)
    y = forward.chunk_outputs(
        t, p.x, vectors(t, p.s2, p.dt, p.entry, p.s2), p.D, p.B, p.C, entries,
        jnp.stack([*p.sees, poisoned.astype(jnp.int32)], axis=1), interpret=interpret,
    )
    return from_columns(t, y, p.length, p.heads), entries


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ssd(reverse: bool, interpret: bool, x, dt, A, D, B, C, run):
    return _forward(reverse, interpret, x, dt, A, D, B, C, run)[0]


def _ssd_fwd(reverse, interpret, x, dt, A, D, B, C, run):
    y, entries = _forward(reverse, interpret, x, dt, A, D, B, C, run)
    return y, (x, dt, A, D, B, C, run, entries)


def _ssd_bwd(reverse, interpret, residuals, g):
    x, dt, A, D, B, C, run, entries = residuals
    p, finite = _prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    finite_g = finite_tokens(g)
    # A token's gradient is finite only if all inputs of its run are, and the cotangents of the tokens that see it.
    bad_inputs = reached_from(~finite, run, reverse=False) | reached_from(~finite, run, reverse=True)
    poisoned = bad_inputs | reached_from(~finite_g, run, reverse=not reverse)
    g = tokens_by_columns(t, g)

    entry = vectors(t, p.entry)
    dentries = forward.chunk_states(t, g, entry, p.C, interpret=interpret)
    dexits = forward.carry_states(t, dentries, p.channels(p.through), reverse=not reverse, interpret=interpret)
    dx, dscores, within, dD = backward.chunk_gradients(
        t, p.x, g, vectors(t, p.s2, p.s2, p.dt, p.exit), p.D, p.B, p.C, dexits,
        jnp.stack([*p.seen_by, chunked(t, poisoned).astype(jnp.int32)], axis=1), interpret=interpret,
    )
    dscores = jnp.sum(dscores, axis=0, dtype=jnp.float32).astype(jnp.bfloat16)
    dC, out = backward.key_gradients(
        t, dscores, p.B, p.C, g, entry, entries, transposed=True, interpret=interpret
    )
    dB, into = backward.key_gradients(
        t, dscores, p.C, p.B, p.x, vectors(t, p.exit * p.dt), dexits, transposed=False, interpret=interpret
    )

    by_query, by_key, xdu = jnp.split(within.reshape(t.all_chunks * t.groups * t.blocks, 3, t.heads, CHUNK), 3, axis=1)
    across = jnp.sum(dexits.astype(jnp.float32) * entries.astype(jnp.float32), axis=1)
    across = jnp.sum(across.reshape(t.all_chunks, -1, t.headdim), axis=2)
    sums = Sums(*(p.of_all_heads(a) for a in (by_query, by_key, xdu, out, into)), across, dD)
    ddt, dA, dD = sums.gradients(p, A, poisoned)
    dB, dC = (prepared.key_gradient(p, a, B, poisoned) for a in (dB, dC))
    return from_columns(t, dx, p.length, p.heads), ddt, dA, dD, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)
