"""Tokens whose channels lie in one warp, so that what is summed over channels stays in it.

In the kernels an array of tokens is [tokens, channels / LANES, LANES], because the copy engine takes at most 256 values
along an axis. AT_ONCE tokens are in registers at a time.
"""
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ssd.gpu.tiles import plgpu

AT_ONCE = 4  # One in each warp of a warpgroup.
LANES = 64
MOST_CHANNELS = 512  # More do not fit into the registers of a warpgroup.


def layout() -> Any:
    """How [AT_ONCE, channels / LANES, LANES] lie in registers: a thread holds two neighbouring channels of each LANES."""
    return plgpu.Layout.TILED(
        plgpu.Tiling(((AT_ONCE, 1, LANES), (2,))), warp_dims=(-4,), lane_dims=(-2,), vector_dim=-1
    )


def transforms() -> tuple[Any]:
    """The layout in shared memory of rows of LANES values, of which a slice may begin at any row.

    Without a layout of its own the compiler may swizzle a buffer, and then reads a slice as if it began at a multiple
    of 8 rows.
    """
    return (plgpu.TilingTransform((LANES,)),)


def buffer(shape: tuple[int, ...]) -> Any:
    """A bfloat16 buffer in shared memory with this layout."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms())


def read(ref: Any) -> jax.Array:
    """Load AT_ONCE tokens from shared memory, in float32."""
    return plgpu.load(ref, layout=layout(), optimized=False).astype(jnp.float32)


def of_channels(ref: Any) -> jax.Array:
    """Load a value for each channel [channels / LANES, LANES], and give it to AT_ONCE tokens."""
    loaded = plgpu.load(ref, layout=layout().reduce(0), optimized=False)
    return lax.broadcast_in_dim(loaded, (AT_ONCE, *ref.shape), (1, 2))


def of_tokens(ref: Any, channels: tuple[int, int]) -> jax.Array:
    """Load a value for each of AT_ONCE tokens, and give it to all their channels."""
    loaded = plgpu.load(ref, layout=layout().reduce((1, 2)), optimized=False)
    return lax.broadcast_in_dim(loaded, (AT_ONCE, *channels), (0,))


def mean_of_token(a: jax.Array) -> jax.Array:
    """The mean of each token's channels: [tokens]."""
    return jnp.sum(jnp.sum(a, axis=1), axis=1) * (1 / (a.shape[1] * a.shape[2]))


def flat(a: jax.Array, tokens: int) -> jax.Array:
    """[rows, tokens, channels] -> [all tokens, channels / LANES, LANES], with zeros up to a multiple of `tokens`."""
    a = a.reshape(a.shape[0] * a.shape[1], -1, LANES)
    gap = -len(a) % tokens
    return jnp.pad(a, [(0, gap), *[(0, 0)] * (a.ndim - 1)]) if gap else a
