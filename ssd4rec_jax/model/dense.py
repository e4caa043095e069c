"""Matrix products whose weight gradients transpose the narrow operand.

Autodiff takes a kernel's gradient as (g^T u)^T. XLA's CPU backend then writes g transposed, and fuses all of the
backward pass that makes g into that strided copy; u^T g transposes the stored u instead. Where u is the wider one its
transposition takes half as long as the product, and g^T u, whose small result is turned, is faster.
"""
import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.target import target


@jax.custom_vjp
def matmul(u: jax.Array, kernel: jax.Array) -> jax.Array:
    """u [..., in] @ kernel [in, out] -> [..., out], in their common dtype."""
    return u @ kernel


def _matmul_fwd(u, kernel):
    return matmul(u, kernel), (u, kernel)


def _matmul_bwd(residuals, g):
    u, kernel = residuals
    return g @ kernel.T, transposed_matmul(u, g).astype(kernel.dtype)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def transposed_matmul(u: jax.Array, g: jax.Array) -> jax.Array:
    """u^T g, [in, out], summed over all leading axes of u [..., in] and g [..., out] in float32 at least."""
    if target().platform == 'cpu' and u.shape[-1] > g.shape[-1]:
        # Without the barrier XLA makes u^T g of it again.
        return lax.optimization_barrier(_sum_of_outer(g, u)).T
    return _sum_of_outer(u, g)


def _sum_of_outer(u, g):
    wide = jnp.promote_types(u.dtype, jnp.float32)
    u, g = u.reshape(-1, u.shape[-1]), g.reshape(-1, g.shape[-1])
    return lax.dot_general(u, g, (((0,), (0,)), ((), ())), preferred_element_type=wide)


def dot_general(lhs, rhs, dimension_numbers, **_):
    """`matmul` for nnx.Linear's dot_general argument, which contracts lhs's last axis with rhs's first."""
    del dimension_numbers
    return matmul(lhs, rhs)
