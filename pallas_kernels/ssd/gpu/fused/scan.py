"""pallas_gpu_fused: the SSD operation of pallas_gpu, in kernels that read and write less.

Values that are not finite enter as zeros, and NaN is put back at the tokens that depend on them.
"""
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.ssd.finite import finite_tokens, zero_unless
from pallas_kernels.ssd.gpu import backward, forward, prepared
from pallas_kernels.ssd.gpu.fused import states
from pallas_kernels.ssd.gpu.prepared import Prepared, Sums, chunked, from_columns, tokens_by_columns, unchunked, vectors
from pallas_kernels.ssd.segments import reached_from


def why_not_pallas_gpu_fused(x_dtype: DTypeLike, headdim: int, state: int, chunk_size: int | None) -> str | None:
    """The reason why pallas_gpu_fused cannot serve such a call of ssd_scan, as a sentence, or None if it can.

    state is d_state. The device is not looked at.
    """
    memory = forward.MEMORY | backward.MEMORY | states.MEMORY
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
    """(Prepared with zeros for what is not finite in dt, B and C, bool [batch, length]: at which tokens nothing is)."""
    finite = finite_tokens(dt, B, C)
    dt, B, C = zero_unless(finite, dt, B, C)
    return Prepared(reverse, x, dt, A, D, B, C, run), finite


def _forward(reverse, interpret, x, dt, A, D, B, C, run):
    """Returns (y, the states at the chunks' entries, bool [batch, length]: whether inputs are not finite)."""
    p, finite = _prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    entries, bad = states.walk_states(
        t, p.x, vectors(t, p.exit * p.dt), p.B, p.channels(p.through), reverse=reverse, interpret=interpret
    )
    bad = unchunked(t, bad, p.length) | ~finite
    poisoned = chunked(t, reached_from(bad, run, reverse=reverse))
    y = forward.chunk_outputs(
        t, p.x, vectors(t, p.s2, p.dt, p.entry, p.s2), p.D, p.B, p.C, entries,
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
    p, _ = _prepared(reverse, x, dt, A, D, B, C, run)
    t = p.t
    g = tokens_by_columns(t, g)
    entry = vectors(t, p.entry)
    dexits, bad_g = states.walk_states(
        t, g, entry, p.C, p.channels(p.through), reverse=not reverse, interpret=interpret
    )
    # A token's gradient is finite only if all inputs of its run are, and the cotangents of the tokens that see it.
    bad_inputs = reached_from(bad, run, reverse=False) | reached_from(bad, run, reverse=True)
    poisoned = bad_inputs | reached_from(unchunked(t, bad_g, p.length), run, reverse=not reverse)
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
    by_query, by_key, xdu = jnp.split(within.reshape(t.all_chunks * t.groups * t.blocks, 3, t.heads, -1), 3, axis=1)
    across = jnp.sum(dexits.astype(jnp.float32) * entries.astype(jnp.float32), axis=1)
    across = jnp.sum(across.reshape(t.all_chunks, -1, t.headdim), axis=2)
    sums = Sums(*(p.of_all_heads(a) for a in (by_query, by_key, xdu, out, into)), across, dD)
    ddt, dA, dD = sums.gradients(p, A, poisoned)
    dB, dC = (prepared.key_gradient(p, a, B, poisoned) for a in (dB, dC))
    return from_columns(t, dx, p.length, p.heads), ddt, dA, dD, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)
