"""ssd_scan: one operation with several implementations, which are chosen from one table."""
import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.ssd.gpu.scan import ssd_scan_pallas_gpu, why_not_pallas_gpu
from pallas_kernels.ssd.reference import ssd_scan_reference
from pallas_kernels.ssd.segments import run_ids
from pallas_kernels.ssd.tpu import tiling as tpu_tiling
from pallas_kernels.ssd.tpu.scan import ssd_scan_pallas_tpu
from pallas_kernels.ssd.xla import ssd_scan_xla
from pallas_kernels.target import target

# Tokens of a chunk and chunks of a scan step in `xla`, by platform. Those for CPUs were measured (WORKSPACE.md), the
# others follow Mamba-2's kernels.
XLA_TILING = {'cpu': (32, 8), 'gpu': (128, 16), 'tpu': (128, 16)}


class Call(NamedTuple):
    """What decides whether an implementation can serve a call: the shape and dtype of x, B's shape, chunk_size."""

    x_shape: tuple[int, ...]
    x_dtype: jnp.dtype
    B_shape: tuple[int, ...]
    chunk_size: int | None = None


class Implementation(NamedTuple):
    """An entry of the table.

    scan(x, dt, A, B, C, run, reverse=, chunk_size=) computes y. why_not(call) returns the reason why the implementation
    cannot serve the call, as a sentence, or None if it can.
    """

    scan: Callable[..., jax.Array]
    why_not: Callable[[Call], str | None]


def _reference(x, dt, A, B, C, run, *, reverse, chunk_size):
    return ssd_scan_reference(x, dt, A, B, C, run, reverse=reverse)


def _xla(x, dt, A, B, C, run, *, reverse, chunk_size):
    default, chunks = XLA_TILING.get(target().platform, XLA_TILING['gpu'])
    return ssd_scan_xla(x, dt, A, B, C, run, reverse=reverse, chunk_size=chunk_size or default, chunks=chunks)


def _pallas_tpu(x, dt, A, B, C, run, *, reverse, chunk_size):
    interpret = target().interpret
    return ssd_scan_pallas_tpu(x, dt, A, B, C, run, reverse=reverse, chunk_size=chunk_size, interpret=interpret)


def _why_not_pallas_tpu(call: Call) -> str | None:
    platform, interpret = target()
    if platform != 'tpu':
        return f'pallas_tpu runs on TPUs and this program is for {platform}'
    return tpu_tiling.why_not(*call, interpret)


def _pallas_gpu(x, dt, A, B, C, run, *, reverse, chunk_size):
    interpret = target().interpret
    return ssd_scan_pallas_gpu(x, dt, A, B, C, run, reverse=reverse, chunk_size=chunk_size, interpret=interpret)


def _why_not_pallas_gpu(call: Call) -> str | None:
    platform, interpret = target()
    if platform != 'gpu':
        return f'pallas_gpu runs on NVIDIA GPUs and this program is for {platform}'
    if not interpret and jax.default_backend() == 'gpu':
        capability = str(getattr(jax.devices()[0], 'compute_capability', 'unknown'))
        if not capability.startswith('9.'):
            return f'pallas_gpu needs a Hopper GPU, compute capability 9.0, and this one has {capability}'
    return why_not_pallas_gpu(call.x_dtype, call.x_shape[3], call.B_shape[3], call.chunk_size)


def _always(call: Call) -> None:
    return None


# In order of preference for calls that name none. pallas_gpu stands behind xla, so that it must be named, until a
# Hopper GPU has run it. So far it has only been interpreted and lowered.
IMPLEMENTATIONS: dict[str, Implementation] = {
    'pallas_tpu': Implementation(_pallas_tpu, _why_not_pallas_tpu),
    'xla': Implementation(_xla, _always),
    'pallas_gpu': Implementation(_pallas_gpu, _why_not_pallas_gpu),
    'reference': Implementation(_reference, _always),
}


def choose_implementation(call: Call, asked: str | None = None) -> str:
    """The name of the implementation that ssd_scan takes for a call.

    Args:
      call: the shapes and dtypes of the call.
      asked: a name out of IMPLEMENTATIONS, or None for the first implementation that can serve the call.

    Raises ValueError if the name is unknown, and with the reason if the named implementation cannot serve the call.
    """
    if asked is not None:
        if asked not in IMPLEMENTATIONS:
            raise ValueError(f'implementation={asked!r} is unknown: there are {", ".join(IMPLEMENTATIONS)}')
        if reason := IMPLEMENTATIONS[asked].why_not(call):
            raise ValueError(reason)
        return asked
    reasons = {name: implementation.why_not(call) for name, implementation in IMPLEMENTATIONS.items()}
    chosen = next(name for name, reason in reasons.items() if reason is None)
    _log_once(chosen, '; '.join(reason for reason in reasons.values() if reason))
    return chosen


@functools.cache
def _log_once(chosen: str, reasons: str) -> None:
    logging.getLogger(__name__).info('ssd_scan runs as %s%s', chosen, f' ({reasons})' if reasons else '')


def ssd_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *, D: jax.Array | None = None,
    segment_ids: jax.Array | None = None, reverse: bool = False, chunk_size: int | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """The scan of structured state space duality: h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T, y_t = h_t C_t + D x_t.

    Decays and sums are computed in float32 at least, and the operands of matmuls have x's dtype. Except in 'reference',
    dt A counts as -100 where it is below. Source: Mamba-2 (Dao and Gu 2024), section 6.

    Args:
      x: [batch, length, heads, headdim], in float32, bfloat16 or float64.
      dt: [batch, length, heads], positive (after softplus).
      A: [heads], negative.
      B, C: [batch, length, groups, d_state], in x's dtype. groups divides heads.
      D: [heads] or None.
      segment_ids: integers [batch, length] or None. The state starts at zero wherever the id differs from that of the
        token before (after, if reverse). Ids are compared with neighbouring ids only. A value that is not finite in one
        segment, or in padding, reaches no other segment, neither in values nor in gradients.
      reverse: scan from the right. No flipped copies are made.
      chunk_size: tokens of a chunk. None takes the default of the platform.
      implementation: 'pallas_tpu', 'pallas_gpu', 'xla' or 'reference'. None takes the first that can serve this
        platform (see pallas_kernels.tracing_for), dtype and shape.

    Returns y, with the shape and dtype of x.

    Raises ValueError that names the argument that does not fit, or with the reason why the named implementation cannot
    serve the call.
    """
    _check(x, dt, A, B, C, D, segment_ids, chunk_size)
    chosen = choose_implementation(Call(x.shape, x.dtype, B.shape, chunk_size), implementation)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    run = run_ids(segment_ids, *x.shape[:2])
    y = IMPLEMENTATIONS[chosen].scan(
        x, dt.astype(wide), A.astype(wide), B, C, run, reverse=reverse, chunk_size=chunk_size
    )
    # D x is computed in the wide dtype, so that D's gradient is not summed in bfloat16.
    return y if D is None else y + (D.astype(wide)[:, None] * x.astype(wide)).astype(x.dtype)


def _check(x, dt, A, B, C, D, segment_ids, chunk_size):
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; it must be [batch, length, heads, headdim]')
    batch, length, heads, _ = x.shape
    if length == 0:
        raise ValueError('x has length 0')
    if B.ndim != 4 or B.shape[:2] != (batch, length):
        raise ValueError(f'B has shape {B.shape}; it must be [{batch}, {length}, groups, state]')
    if heads % B.shape[2]:
        raise ValueError(f'{heads} heads cannot be split into the {B.shape[2]} groups of B')
    expected = {'dt': (dt, (batch, length, heads)), 'A': (A, (heads,)), 'C': (C, B.shape)}
    if D is not None:
        expected['D'] = D, (heads,)
    if segment_ids is not None:
        expected['segment_ids'] = segment_ids, (batch, length)
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f'{name} has shape {array.shape}; it must be {list(shape)}')
    for name, array in {'B': B, 'C': C}.items():
        if array.dtype != x.dtype:
            raise ValueError(f'{name} is {array.dtype}; it must have the dtype of x, {x.dtype}')
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise ValueError(f'segment_ids are {segment_ids.dtype}; they must be integers')
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f'chunk_size={chunk_size} must be at least 1')
