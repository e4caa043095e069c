"""Depthwise convolution over a few neighbours that never crosses a history's border."""
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
    width = kernel.shape[0]
    reach = layout.remaining if reverse else layout.position
    out = x * kernel[width - 1] + bias
    for distance in range(1, min(width, x.shape[1] + 1)):
        neighbour = _shift(x, -distance if reverse else distance)
        # where, not a product: a NaN of the history next door must not come through a zero.
        inside = (reach >= distance)[..., None]
        out = out + jnp.where(inside, neighbour, jnp.zeros_like(x)) * kernel[width - 1 - distance]
    return out


def _shift(x: jax.Array, by: int) -> jax.Array:
    """x moved `by` tokens to the right (left where negative), zeros moving in."""
    gap = jnp.zeros_like(x[:, : abs(by)])
    if by > 0:
        return jnp.concatenate([gap, x[:, :-by]], axis=1)
    return jnp.concatenate([x[:, -by:], gap], axis=1)
