"""Tokens whose channels lie in one warp, so that what is summed over channels stays in it.

In the kernels an array of tokens is [tokens, channels / LANES, LANES], because the copy engine takes at most 256 values
along an axis. With LANES channels it is [tokens, LANES]: Mosaic's search for layouts does not end where an axis has
length 1. AT_ONCE tokens are in registers at a time.
"""
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ssd.gpu.tiles import plgpu

AT_ONCE = 4  # One in each warp of a warpgroup.
LANES = 64
MOST_CHANNELS = 512  # More do not fit into the registers of a warpgroup.


def by_lanes(a: jax.Array) -> jax.Array:
    """[..., channels] -> [..., channels / LANES, LANES], or itself with LANES channels."""
    return a if a.shape[-1] == LANES else a.reshape(*a.shape[:-1], -1, LANES)


def flat(a: jax.Array, multiple: int) -> jax.Array:
    """[rows, tokens, channels] -> by_lanes of all tokens, with zeros up to a multiple of so many tokens."""
    a = by_lanes(a.reshape(-1, a.shape[-1]))
    gap = -len(a) % multiple
    return jnp.pad(a, [(0, gap), *[(0, 0)] * (a.ndim - 1)]) if gap else a


def layout(rank: int) -> Any:
    """How AT_ONCE tokens lie in registers, arrays of so many axes: a thread holds two channels of each LANES."""
    return plgpu.Layout.TILED(
        plgpu.Tiling(((AT_ONCE, *[1] * (rank - 2), LANES), (2,))), warp_dims=(-rank - 1,), lane_dims=(-2,),
        vector_dim=-1,
    )


def transforms() -> tuple[Any]:
    """The layout in shared memory of rows of LANES values, of which a slice may begin at any row.

    Without a layout of its own the compiler may swizzle a buffer, and then reads a slice as if it began at a multiple
    of 8 rows.
    """
    return (plgpu.TilingTransform((LANES,)),)


def read(ref: Any) -> jax.Array:
    """Load AT_ONCE tokens from shared memory, in float32."""
    return plgpu.load(ref, layout=layout(len(ref.shape)), optimized=False).astype(jnp.float32)


def of_channels(ref: Any) -> jax.Array:
    """Load a value for each channel from shared memory, and give it to AT_ONCE tokens."""
    shape = (AT_ONCE, *ref.shape)
    loaded = plgpu.load(ref, layout=layout(len(shape)).reduce(0), optimized=False)
    return lax.broadcast_in_dim(loaded, shape, range(1, len(shape)))


def of_tokens(ref: Any, channels: tuple[int, ...]) -> jax.Array:
    """Load a value for each of AT_ONCE tokens from shared memory, and give it to their channels, of this shape."""
    shape = (AT_ONCE, *channels)
    loaded = plgpu.load(ref, layout=layout(len(shape)).reduce(range(1, len(shape))), optimized=False)
    return lax.broadcast_in_dim(loaded, shape, (0,))


def mean_of_token(a: jax.Array) -> jax.Array:
    """The mean of each token's channels: [tokens]."""
    total = a
    for _ in a.shape[1:]:
        total = jnp.sum(total, axis=1)
    return total * (len(a) / a.size)
