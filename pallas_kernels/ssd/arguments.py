"""Checks of what callers give to ssd_scan and ssd_step. Each raises ValueError that names the argument."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ssd.pointwise import Limit

Shape = tuple[int, ...]


def check_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array | None, z: jax.Array | None,
    dt_bias: jax.Array | None, dt_limit: Limit | None, segment_ids: jax.Array | None, cu_seqlens: jax.Array | None,
    initial_states: jax.Array | None, num_segments: int | None, chunk_size: int | None,
) -> None:
    """Raise ValueError for arguments of ssd_scan that do not fit together."""
    if x.ndim != 4:
        raise ValueError(f'x has shape {x.shape}; it must be [batch, length, heads, headdim]')
    batch, length = x.shape[:2]
    if length == 0:
        raise ValueError('x has length 0')
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, batch, length, segment_ids, num_segments)
        states: Shape = (cu_seqlens.size - 1,)
    else:
        states = (batch,) if num_segments is None else (batch, num_segments)
    if num_segments is not None and num_segments < 1:
        raise ValueError(f'num_segments={num_segments} must be at least 1')
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f'chunk_size={chunk_size} must be at least 1')
    _check_token(x, dt, A, B, C, D, z, dt_bias, dt_limit)
    _check_shape('segment_ids', segment_ids, (batch, length))
    _check_shape('initial_states', initial_states, (*states, *x.shape[2:], B.shape[3]))
    _check_integers('segment_ids', segment_ids)


def check_step(
    state: jax.Array, x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array | None,
    z: jax.Array | None, dt_bias: jax.Array | None, dt_limit: Limit | None,
) -> None:
    """Raise ValueError for arguments of ssd_step that do not fit together."""
    if x.ndim != 3:
        raise ValueError(f'x has shape {x.shape}; it must be [batch, heads, headdim]')
    _check_token(x, dt, A, B, C, D, z, dt_bias, dt_limit)
    _check_shape('state', state, (*x.shape, B.shape[2]))


def _check_token(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, D: jax.Array | None, z: jax.Array | None,
    dt_bias: jax.Array | None, dt_limit: Limit | None,
) -> None:
    """The arguments that a scan has for each token, and a step for its one."""
    *lead, heads, headdim = x.shape
    if B.ndim != x.ndim or B.shape[:-2] != tuple(lead):
        raise ValueError(f'B has shape {B.shape}; it must be [{", ".join(map(str, lead))}, groups, d_state]')
    if heads % B.shape[-2]:
        raise ValueError(f'{heads} heads cannot be split into the {B.shape[-2]} groups of B')
    _check_shape('dt', dt, (*lead, heads))
    _check_shape('A', A, (heads,))
    _check_shape('C', C, B.shape)
    _check_shape('D', D, (heads,), (heads, headdim))
    _check_shape('z', z, x.shape)
    _check_shape('dt_bias', dt_bias, (heads,))
    for name, array in {'B': B, 'C': C}.items():
        if array.dtype != x.dtype:
            raise ValueError(f'{name} is {array.dtype}; it must have the dtype of x, {x.dtype}')
    if dt_limit is not None and not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f'dt_limit={dt_limit} must be the least and the most that dt may be')


def _check_shape(name: str, array: jax.Array | None, *shapes: Sequence[int]) -> None:
    if array is not None and array.shape not in map(tuple, shapes):
        raise ValueError(f'{name} has shape {array.shape}; it must be {" or ".join(str(list(s)) for s in shapes)}')


def _check_integers(name: str, array: jax.Array | None) -> None:
    if array is not None and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f'{name} are {array.dtype}; they must be integers')


def _check_cu_seqlens(
    cu_seqlens: jax.Array, batch: int, length: int, segment_ids: jax.Array | None, num_segments: int | None
) -> None:
    _check_integers('cu_seqlens', cu_seqlens)
    if cu_seqlens.ndim != 1 or cu_seqlens.size < 2:
        raise ValueError(f'cu_seqlens has shape {cu_seqlens.shape}; it must be [sequences + 1], 0 and the ends')
    if batch != 1:
        raise ValueError(f'cu_seqlens cuts a single row and x has a batch of {batch}; take segment_ids')
    if segment_ids is not None:
        raise ValueError('cu_seqlens and segment_ids are given; one of them says where sequences begin')
    if num_segments is not None:
        raise ValueError('num_segments is given with cu_seqlens, which has as many states as sequences')
    if isinstance(cu_seqlens, jax.core.Tracer):
        return  # its values are not known yet
    ends = np.asarray(cu_seqlens)
    if ends[0] != 0 or (ends[1:] < ends[:-1]).any() or ends[-1] > length:
        raise ValueError(f'cu_seqlens must begin with 0, never fall, and end at {length} at most, the length of x')
