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
    return short_convs(x, kernel, bias, layout, (reverse,))[0]


def short_convs(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout, directions: tuple[bool, ...]
) -> tuple[jax.Array, ...]:
    """short_conv of x in each of some directions (their `reverse`), whose gradients are then summed before the taps."""
    return _activated(x, kernel, bias, layout.position, layout.remaining, directions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _activated(x, kernel, bias, position, remaining, directions):
    return tuple(silu(conv) for conv in _convolutions(x, kernel, bias, position, remaining, directions))


def _convolutions(x, kernel, bias, position, remaining, directions):
    for reverse in directions:
        yield _tapped(_neighbours(x, kernel.shape[0], remaining if reverse else position, reverse), kernel) + bias


def _activated_fwd(*args):
    return _activated(*args), args[:-1]


def _activated_bwd(directions, residuals, gs):
    """Keeps x alone of the forward pass. The gradient in x is the same convolution read from the other side, and what it
    multiplies by a tap is, times x, that tap's gradient: so both directions share them."""
    # The barrier has XLA compute the convolutions again instead of keeping shifted copies from the forward pass.
    residuals, gs = jax.lax.optimization_barrier((residuals, gs))
    x, kernel, bias, position, remaining = residuals
    convs = _convolutions(x, kernel, bias, position, remaining, directions)
    readers = zip(*(
        _neighbours(g * silu_slope(conv), kernel.shape[0], position if reverse else remaining, not reverse)
        for reverse, conv, g in zip(directions, convs, gs)
    ))
    by_tap = [sum(g) for g in readers]
    total = functools.partial(jnp.sum, axis=(0, 1), dtype=jnp.promote_types(x.dtype, jnp.float32))
    dkernel = jnp.stack([total(x * g) for g in by_tap][::-1])
    return _tapped(by_tap, kernel), dkernel.astype(kernel.dtype), total(by_tap[0]).astype(bias.dtype), None, None


_activated.defvjp(_activated_fwd, _activated_bwd)


def _tapped(neighbours, kernel):
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
