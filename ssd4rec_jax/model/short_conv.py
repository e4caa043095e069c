"""Depthwise convolution over a few neighbours that never crosses a history's border."""
import functools

import jax
import jax.numpy as jnp

from ssd4rec_jax.model.layout import Layout


def short_conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout, *, reverse: bool = False
) -> jax.Array:
    """Causal depthwise convolution within each history, as Mamba-2's conv1d before its activation.

    x [rows, tokens, channels], kernel [d_conv, channels] with the token's own tap last (torch's order), bias
    [channels]; returns x's shape and dtype. reverse=True reads the tokens that follow instead of those before:
    the convolution of the reversed history, left in place.
    """
    return _convolve(x, kernel, layout.position, layout.remaining, reverse) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _convolve(x, kernel, position, remaining, reverse):
    """The convolution without bias. Its gradient in x is the same convolution read from the other side."""
    reach = remaining if reverse else position
    width = kernel.shape[0]
    return sum(
        _neighbour(x, distance, reach, reverse) * kernel[width - 1 - distance]
        for distance in range(min(width, x.shape[1]))
    )


def _convolve_fwd(x, kernel, position, remaining, reverse):
    return _convolve(x, kernel, position, remaining, reverse), (x, kernel, position, remaining)


def _convolve_bwd(reverse, residuals, g):
    x, kernel, position, remaining = residuals
    reach = remaining if reverse else position
    width = kernel.shape[0]
    used = min(width, x.shape[1])
    dkernel = [
        jnp.sum(_neighbour(x, distance, reach, reverse) * g, axis=(0, 1), dtype=jnp.promote_types(g.dtype, jnp.float32))
        for distance in reversed(range(used))
    ]
    dkernel = jnp.pad(jnp.stack(dkernel).astype(kernel.dtype), ((width - used, 0), (0, 0)))
    return _convolve(g, kernel, position, remaining, not reverse), dkernel, None, None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _neighbour(x, distance, reach, reverse):
    """x of the token `distance` before each one (after it, if reverse), zero where that is another history's."""
    if distance == 0:
        return x
    length = x.shape[1]
    gap = ((0, 0), (0, distance) if reverse else (distance, 0), (0, 0))
    shifted = jnp.pad(x, gap)[:, distance:] if reverse else jnp.pad(x, gap)[:, :length]
    # where, not a product: a NaN of the history next door must not come through a zero.
    return jnp.where((reach >= distance)[..., None], shifted, jnp.zeros_like(x))
