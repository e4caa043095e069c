"""Depthwise convolution over a few neighbours, and its silu, that never crosses a history's border."""
import functools
import itertools

import jax
import jax.numpy as jnp

from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.silu import silu, silu_slope


def short_conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout, *, reverse: bool = False
) -> jax.Array:
    """silu of the causal depthwise convolution within each history: Mamba-2's conv1d with its activation.

    x [rows, tokens, channels], kernel [d_conv, channels] with the token's own tap last (torch's order), bias
    [channels]; returns x's shape and dtype. reverse=True reads the tokens that follow instead of those before:
    the convolution of the reversed history, left in place.
    """
    return _activated(x, kernel, bias, layout.position, layout.remaining, reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _activated(x, kernel, bias, position, remaining, reverse):
    return silu(_convolve(_neighbours(x, kernel.shape[0], remaining if reverse else position, reverse), kernel) + bias)


def _activated_fwd(x, kernel, bias, position, remaining, reverse):
    return _activated(x, kernel, bias, position, remaining, reverse), (x, kernel, bias, position, remaining)


def _activated_bwd(reverse, residuals, g):
    """Keeps x alone of the forward pass; the gradient in x is the same convolution read from the other side."""
    x, kernel, bias, position, remaining = residuals
    # The barrier has XLA compute the convolution again instead of keeping shifted copies from the forward pass.
    x, g = jax.lax.optimization_barrier((x, g))
    near, far = (remaining, position) if reverse else (position, remaining)
    neighbours = _neighbours(x, kernel.shape[0], near, reverse)
    g = g * silu_slope(_convolve(neighbours, kernel) + bias)
    dx = _convolve(_neighbours(g, kernel.shape[0], far, not reverse), kernel)
    total = functools.partial(jnp.sum, axis=(0, 1), dtype=jnp.promote_types(g.dtype, jnp.float32))
    dkernel = jnp.stack([total(neighbour * g) for neighbour in neighbours][::-1])
    return dx, dkernel.astype(kernel.dtype), total(g).astype(bias.dtype), None, None


_activated.defvjp(_activated_fwd, _activated_bwd)


def _convolve(neighbours, kernel):
    return sum(neighbour * tap for neighbour, tap in zip(neighbours, kernel[::-1]))


def _neighbours(x, width, reach, reverse):
    """x of the token 0, 1, ..., width - 1 before each one (after it, if reverse), zero where another history's."""
    # One padded copy: its slices are read in place by what uses them.
    padded = jnp.pad(x, ((0, 0), (0, width - 1) if reverse else (width - 1, 0), (0, 0)))
    starts = range(width) if reverse else range(width - 1, -1, -1)
    shifted = (padded[:, start:start + x.shape[1]] for start in starts)
    # where, not a product: a NaN of the history next door must not come through a zero.
    return [jnp.where((reach >= distance)[..., None], s, 0) for distance, s in enumerate(shifted)]


def token_before(x: jax.Array, distance: int, layout: Layout) -> jax.Array:
    """x [rows, tokens, channels] of the token `distance` before each one in its history, zero where there is none."""
    return _neighbours(x, distance + 1, layout.position, reverse=False)[-1]


def token_after(x: jax.Array, distance: int, layout: Layout) -> jax.Array:
    """The same of the token `distance` after each one."""
    return _neighbours(x, distance + 1, layout.remaining, reverse=True)[-1]


def cut_convs(x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout) -> list[jax.Array]:
    """short_conv(reverse=True) of histories that end 0, 1, ..., d_conv - 1 tokens after each token, in x's shape."""
    neighbours = _neighbours(x, kernel.shape[0], layout.remaining, reverse=True)
    taps = (neighbour * _per_channel(tap, x) for neighbour, tap in zip(neighbours, kernel[::-1]))
    return list(itertools.accumulate(taps, initial=_per_channel(bias, x)))[1:]


def _per_channel(w, x):
    """w [channels] in x's shape. Its gradient sums rows and tokens at once; that of an implicit broadcast, with one
    row, sums tokens alone, for which XLA's CPU backend (JAX 0.10) calls a library that takes twenty times as long."""
    return jax.lax.broadcast_in_dim(w, x.shape, (x.ndim - 1,))
