"""The silu activation, written so that its last operation is a division.

XLA's CPU backend (JAX 0.10) computes a product again in each operation that reads it, together with everything before
the product. With silu written as x * sigmoid(x), the short convolution was therefore computed again by every reader of
x, B and C. XLA does not repeat divisions in this way.
"""
import jax
import jax.numpy as jnp


@jax.custom_vjp
def silu(x: jax.Array) -> jax.Array:
    """x / (1 + exp(-x)), elementwise. x may have any float dtype and shape; the result has the same."""
    return x / (1 + jnp.exp(-x))


def silu_slope(x: jax.Array) -> jax.Array:
    """The derivative of silu at x, in x's dtype.

    It is computed in float32 or wider, because it can be small where the terms of its sum are not.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    denominator = 1 + jnp.exp(-wide)
    return ((1 + wide * (1 - 1 / denominator)) / denominator).astype(x.dtype)


def _silu_fwd(x):
    return silu(x), x


def _silu_bwd(x, g):
    # The barrier makes XLA compute the exponentials again instead of keeping those of the forward pass.
    return (g * silu_slope(jax.lax.optimization_barrier(x)),)


silu.defvjp(_silu_fwd, _silu_bwd)
