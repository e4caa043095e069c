"""ssd_scan: one operation with several implementations, which are chosen from one table."""
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from pallas_kernels.ssd.arguments import check_scan
from pallas_kernels.ssd.gpu.fused.scan import ssd_scan_pallas_gpu_fused, why_not_pallas_gpu_fused
from pallas_kernels.ssd.gpu.scan import ssd_scan_pallas_gpu, why_not_pallas_gpu
from pallas_kernels.ssd.pointwise import Limit, skip_and_gate, step_sizes
from pallas_kernels.ssd.reference import ssd_scan_reference
from pallas_kernels.ssd.states import Slots, final_states, from_initial
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
    cannot serve the call, as a sentence, or None if it can. skips: scan also takes D=, and adds D x to y. named: it is
    taken only where a call names it, because no chip has trained with it.
    """

    scan: Callable[..., jax.Array]
    why_not: Callable[[Call], str | None]
    skips: bool = False
    named: bool = False


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


def _pallas_gpu(scan_on_gpu, x, dt, A, B, C, run, *, reverse, chunk_size, D=None):
    interpret = target().interpret
    return scan_on_gpu(x, dt, A, B, C, run, reverse=reverse, D=D, chunk_size=chunk_size, interpret=interpret)


def _why_not_pallas_gpu(name: str, why_not: Callable[..., str | None], call: Call) -> str | None:
    platform, interpret = target()
    if platform != 'gpu':
        return f'{name} runs on NVIDIA GPUs and this program is for {platform}'
    if not interpret and jax.default_backend() == 'gpu':
        capability = str(getattr(jax.devices()[0], 'compute_capability', 'unknown'))
        if not capability.startswith('9.'):
            return f'{name} needs a Hopper GPU, compute capability 9.0, and this one has {capability}'
    return why_not(call.x_dtype, call.x_shape[3], call.B_shape[3], call.chunk_size)


def _on_gpu(
    name: str, scan: Callable[..., jax.Array], why_not: Callable[..., str | None], *, named: bool = False
) -> Implementation:
    """The entry of an implementation by Mosaic GPU kernels."""
    return Implementation(
        functools.partial(_pallas_gpu, scan), functools.partial(_why_not_pallas_gpu, name, why_not), skips=True,
        named=named,
    )


def _always(call: Call) -> None:
    return None


# In order of preference for calls that name none. On an H200 pallas_gpu agreed with the reference in every shape that
# was tried and took a quarter of xla's time or less (docs/measurements.md).
IMPLEMENTATIONS: dict[str, Implementation] = {
    'pallas_tpu': Implementation(_pallas_tpu, _why_not_pallas_tpu),
    'pallas_gpu': _on_gpu('pallas_gpu', ssd_scan_pallas_gpu, why_not_pallas_gpu),
    'xla': Implementation(_xla, _always),
    'reference': Implementation(_reference, _always),
    'pallas_gpu_fused': _on_gpu('pallas_gpu_fused', ssd_scan_pallas_gpu_fused, why_not_pallas_gpu_fused, named=True),
}


def choose_implementation(call: Call, asked: str | Sequence[str] | None = None) -> str:
    """The name of the implementation that ssd_scan takes for a call.

    Args:
      call: the shapes and dtypes of the call.
      asked: a name out of IMPLEMENTATIONS, or several, or None for all that need not be named. The first that can
        serve the call is taken.

    Raises ValueError if a name is unknown, and with all reasons if no implementation that was asked for can serve the
    call.
    """
    if asked is None:
        asked = tuple(name for name, entry in IMPLEMENTATIONS.items() if not entry.named)
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise ValueError(f'implementation={name!r} is unknown: there are {", ".join(IMPLEMENTATIONS)}')
    reasons = {name: IMPLEMENTATIONS[name].why_not(call) for name in names}
    said = '; '.join(reason for reason in reasons.values() if reason)
    chosen = next((name for name, reason in reasons.items() if reason is None), None)
    if chosen is None:
        raise ValueError(said or 'implementation=() names none: None takes the first that can serve the call')
    if chosen != asked:
        _log_once(chosen, said)
    return chosen


@functools.cache
def _log_once(chosen: str, reasons: str) -> None:
    logging.getLogger(__name__).info('ssd_scan runs as %s%s', chosen, f' ({reasons})' if reasons else '')


@overload
def ssd_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *, D: jax.Array | None = None,
    z: jax.Array | None = None, dt_bias: jax.Array | None = None, dt_softplus: bool = False,
    dt_limit: Limit | None = None, segment_ids: jax.Array | None = None, cu_seqlens: jax.Array | None = None,
    initial_states: jax.Array | None = None, return_final_states: Literal[False] = False,
    num_segments: int | None = None, reverse: bool = False, chunk_size: int | None = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array: ...


@overload
def ssd_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *, D: jax.Array | None = None,
    z: jax.Array | None = None, dt_bias: jax.Array | None = None, dt_softplus: bool = False,
    dt_limit: Limit | None = None, segment_ids: jax.Array | None = None, cu_seqlens: jax.Array | None = None,
    initial_states: jax.Array | None = None, return_final_states: Literal[True], num_segments: int | None = None,
    reverse: bool = False, chunk_size: int | None = None, implementation: str | Sequence[str] | None = None,
) -> tuple[jax.Array, jax.Array]: ...


def ssd_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, *, D: jax.Array | None = None,
    z: jax.Array | None = None, dt_bias: jax.Array | None = None, dt_softplus: bool = False,
    dt_limit: Limit | None = None, segment_ids: jax.Array | None = None, cu_seqlens: jax.Array | None = None,
    initial_states: jax.Array | None = None, return_final_states: bool = False, num_segments: int | None = None,
    reverse: bool = False, chunk_size: int | None = None, implementation: str | Sequence[str] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The scan of structured state space duality: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t.

    Decays and sums are computed in float32 at least, and the operands of matmuls have x's dtype. Except in 'reference',
    dt A counts as -100 where it is below. Every option has gradients in every implementation. Source: Mamba-2 (Dao and
    Gu 2024), section 6; the names of the options are those of its mamba_chunk_scan_combined.

    Args:
      x: [batch, length, heads, headdim], in float32, bfloat16 or float64.
      dt: [batch, length, heads], positive after dt_bias, dt_softplus and dt_limit, which apply in this order.
      A: [heads], negative.
      B, C: [batch, length, groups, d_state], in x's dtype. groups divides heads.
      D: [heads], or [heads, headdim], or None.
      z: the gate, of x's shape, or None. y is multiplied by silu(z).
      dt_bias: [heads] or None.
      dt_softplus: whether to apply softplus to dt.
      dt_limit: the least and the most that dt may be, or None.
      segment_ids: integers [batch, length] or None. A segment is a longest stretch of neighbouring tokens of one id,
        and the state starts anew in each. Ids are compared with neighbouring ids only. A value that is not finite in
        one segment, or in padding, reaches no other segment, neither in values nor in gradients.
      cu_seqlens: integers [sequences + 1], 0 and the ends of the sequences of the one row, in place of segment_ids.
        They may be equal, for sequences without tokens. What lies behind the last end is padding.
      initial_states: the states that enter, zeros where None; see num_segments. float32 keeps what bfloat16 rounds off.
      return_final_states: whether to return (y, the states that leave) in place of y. A segment or a sequence without
        tokens keeps its initial state.
      num_segments: which states initial_states and the final states are. None: one for each row,
        [batch, heads, headdim, d_state]; it enters the first segment, in scan direction, and the last one leaves it. A
        number: [batch, num_segments, heads, headdim, d_state], one for each of the first segments of a row, from the
        left; later segments start at zero. With cu_seqlens it is None, and there is a state for each sequence,
        [sequences, heads, headdim, d_state].
      reverse: scan from the right: states enter at the right end and leave at the left. No flipped copies are made.
      chunk_size: tokens of a chunk. None takes the default of the platform.
      implementation: 'pallas_tpu', 'pallas_gpu', 'xla' or 'reference', or a sequence of these names, of which the first
        that can serve the call is taken. None stands for all of them (see pallas_kernels.tracing_for).
        'pallas_gpu_fused' is taken only where it is named: no chip has trained with it.

    Returns y, with the shape and dtype of x, or (y, final states), the latter in float32, or float64 for float64 x.

    Raises ValueError that names the argument that does not fit, or with the reasons why no implementation that was
    asked for can serve the call.
    """
    check_scan(
        x, dt, A, B, C, D, z, dt_bias, dt_limit, segment_ids, cu_seqlens, initial_states, num_segments, chunk_size
    )
    chosen = choose_implementation(Call(x.shape, x.dtype, B.shape, chunk_size), implementation)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dt, A = step_sizes(dt, dt_bias, dt_softplus, dt_limit, wide), A.astype(wide)
    if cu_seqlens is not None:
        slots = Slots.of_sequences(cu_seqlens, x.shape[1])
    elif num_segments is not None:
        slots = Slots.of_segments(segment_ids, x.shape[0], x.shape[1], num_segments)
    else:
        slots = Slots.of_rows(segment_ids, *x.shape[:2], reverse=reverse)
    implementation_ = IMPLEMENTATIONS[chosen]
    skip, D = (dict(D=D), None) if implementation_.skips else ({}, D)
    y = implementation_.scan(x, dt, A, B, C, slots.run, reverse=reverse, chunk_size=chunk_size, **skip)
    by_slot = (x.shape[0], slots.states, *x.shape[2:], B.shape[3])
    initial = None
    if initial_states is not None:
        initial = initial_states.astype(wide).reshape(by_slot)
        y = y.astype(wide) + from_initial(initial, dt, A, C, slots, reverse=reverse)
    y = skip_and_gate(y, x, D, z, wide)
    if not return_final_states:
        return y
    states = final_states(initial, x, dt, A, B, slots, reverse=reverse)
    return y, states if num_segments is not None else states.reshape(-1, *by_slot[2:])
