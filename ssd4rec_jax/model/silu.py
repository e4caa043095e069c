"""silu that ends in a division.

XLA's CPU backend (JAX 0.10) computes a product anew in each operation that reads it, and with it all that goes before: as
x sigmoid(x), the short convolution was computed again by everything that reads x, B and C. It does not repeat divisions.
"""
import jax
import jax.numpy as jnp


@jax.custom_vjp
def silu(x: jax.Array) -> jax.Array:
    """x / (1 + exp(-x)), any float dtype, shape kept."""
    return x / (1 + jnp.exp(-x))


def silu_slope(x: jax.Array) -> jax.Array:
    """silu's derivative, computed in float32 at least: it is small where its terms are not."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    denominator = 1 + jnp.exp(-wide)
    return ((1 + wide * (1 - 1 / denominator)) / denominator).astype(x.dtype)


def _silu_fwd(x):
    return silu(x), x


def _silu_bwd(x, g):
    # The barrier has XLA compute x again instead of keeping the exponentials of the forward pass.
    return (g * silu_slope(jax.lax.optimization_barrier(x)),)


silu.defvjp(_silu_fwd, _silu_bwd)
