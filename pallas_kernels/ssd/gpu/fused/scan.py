"""pallas_gpu_fused: the SSD operation of pallas_gpu, in kernels that read and write less.

Values that are not finite enter as zeros, and NaN is put back at the tokens that depend on them.
"""
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.ssd.finite import finite_tokens
from pallas_kernels.ssd.gpu import prepared
from pallas_kernels.ssd.gpu.fused import gradients, outputs, states
from pallas_kernels.ssd.gpu.prepared import Prepared, chunked, from_columns, tokens_by_columns, unchunked, vectors
from pallas_kernels.ssd.gpu.tiles import CHUNK
from pallas_kernels.ssd.segments import reached_from


def why_not_pallas_gpu_fused(x_dtype: DTypeLike, headdim: int, state: int, chunk_size: int | None) -> str | None:
    """The reason why pallas_gpu_fused cannot serve such a call of ssd_scan, as a sentence, or None if it can.

    state is d_state. The device is not looked at.
    """
    memory = states.MEMORY | outputs.MEMORY | gradients.MEMORY
    return prepared.why_not('pallas_gpu_fused', memory, x_dtype, headdim, state, chunk_size)


def ssd_scan_pallas_gpu_fused(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, run: jax.Array, *, reverse: bool,
    D: jax.Array | None = None, chunk_size: int | None = None, interpret: bool = False,
) -> jax.Array:
    """ssd_scan in Mosaic GPU kernels. Source: Mamba-2 (Dao and Gu 2024), section 6.

    Arguments and result are those of ssd_scan_pallas_gpu. Raises ValueError with the sentence of
    why_not_pallas_gpu_fused.
    """
    reason = why_not_pallas_gpu_fused(x.dtype, x.shape[3], B.shape[3], chunk_size)
    if reason:
        raise ValueError(reason)
    D, B, C = prepared.filled_up(x, A, B, C, D)
    return _ssd(reverse, interpret, x, dt, A, D, B, C, run)


def _prepared(reverse, x, dt, A, D, B, C, run):
    """Prepared, with zeros for the values of dt that are not finite. The kernels take those of x, B and C for zeros."""
    return Prepared(reverse, x, jnp.where(jnp.isfinite(dt), dt, 0), A, D, B, C, run)


def _forward(reverse, interpret, x, dt, A, D, B, C, run):
    """Returns (y, the states at the chunks' entries, bool [batch, length]: whether inputs are not finite)."""
    p = _prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    entries, bad = states.walk_states(
        t, p.x, vectors(t, p.exit * p.dt), p.B, p.channels(p.through), reverse=reverse, interpret=interpret
    )
    bad = unchunked(t, bad, p.length) | ~finite_tokens(dt, B, C)
    poisoned = chunked(t, reached_from(bad, run, reverse=reverse))
    y = outputs.chunk_outputs(
        t, p.x, *(vectors(t, a) for a in (p.s2, p.dt, p.entry)), p.D, p.B, p.C, entries,
        jnp.stack([*p.sees, poisoned.astype(jnp.int32)], axis=1), interpret=interpret,
    )
    return from_columns(t, y, p.length, p.heads), entries, bad


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ssd(reverse: bool, interpret: bool, x, dt, A, D, B, C, run):
    return _forward(reverse, interpret, x, dt, A, D, B, C, run)[0]


def _ssd_fwd(reverse, interpret, x, dt, A, D, B, C, run):
    y, *kept = _forward(reverse, interpret, x, dt, A, D, B, C, run)
    return y, (x, dt, A, D, B, C, run, *kept)


def _ssd_bwd(reverse, interpret, residuals, g):
    x, dt, A, D, B, C, run, entries, bad = residuals
    p = _prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    g = tokens_by_columns(t, g)
    entry = vectors(t, p.entry)
    dexits, bad_g = states.walk_states(
        t, g, entry, p.C, p.channels(p.through), reverse=not reverse, interpret=interpret
    )
    # A token's gradient is finite only if all inputs of its run are, and the cotangents of the tokens that see it.
    bad_inputs = reached_from(bad, run, reverse=False) | reached_from(bad, run, reverse=True)
    poisoned = bad_inputs | reached_from(unchunked(t, bad_g, p.length), run, reverse=not reverse)
    made = gradients.scan_gradients(
        t, p.x, g, *(vectors(t, a) for a in (p.s2, p.dt, p.exit)), entry, p.D, p.B, p.C, dexits, entries,
        jnp.stack([*p.seen_by, chunked(t, poisoned).astype(jnp.int32)], axis=1), interpret=interpret,
    )
    ddt, dA, dD = made.sums(p).gradients(p, A, poisoned)
    dB, dC = (
        unchunked(t, jnp.sum(a, axis=0).reshape(t.all_chunks, CHUNK, *B.shape[2:]), p.length).astype(B.dtype)
        for a in (made.dB, made.dC)
    )
    return from_columns(t, made.dx, p.length, p.heads), ddt, dA, dD, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)
