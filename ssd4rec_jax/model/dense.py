"""Matrix products whose weight gradients transpose the narrower operand.

Automatic differentiation computes a kernel's gradient as (g^T u)^T. XLA's CPU backend then writes a transposed copy of
g, and fuses the whole backward pass that produces g into that strided copy. The form u^T g transposes the stored u
instead. Where u is the wider operand, transposing it takes half as long as the product itself; there (g^T u)^T, which
transposes only the small result, is faster.
"""
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.target import target

# A matmul on a GPU: rows and columns of a program's result, enough programs to fill it, and the products that a program
# sums, at least and as a multiple.
TILE, PROGRAMS, LEAST, STEP = 128, 100, 96, 16


@jax.custom_vjp
def matmul(u: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product of u [..., in] and kernel [in, out]: [..., out], in the common dtype of both."""
    return u @ kernel


def _matmul_fwd(u, kernel):
    return matmul(u, kernel), (u, kernel)


def _matmul_bwd(residuals, g):
    u, kernel = residuals
    return g @ kernel.T, transposed_matmul(u, g).astype(kernel.dtype)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def transposed_matmul(u: jax.Array, g: jax.Array) -> jax.Array:
    """u^T g [in, out], summed over all leading axes of u [..., in] and g [..., out], in float32 or wider."""
    if target().platform == 'cpu' and u.shape[-1] > g.shape[-1]:
        # Without the barrier XLA turns this back into u^T g.
        return lax.optimization_barrier(_sum_of_outer(g, u)).T
    return _sum_of_outer(u, g)


def _sum_of_outer(u, g):
    wide = jnp.promote_types(u.dtype, jnp.float32)
    u, g = u.reshape(-1, u.shape[-1]), g.reshape(-1, g.shape[-1])
    if target().platform == 'gpu':
        parts = _parts(len(u), u.shape[-1], g.shape[-1])
        u, g = (a.reshape(parts, -1, a.shape[-1]) for a in (u, g))
        return jnp.sum(jnp.einsum('pni,pno->pio', u, g, preferred_element_type=wide), axis=0)
    return lax.dot_general(u, g, (((0,), (0,)), ((), ())), preferred_element_type=wide)


def _parts(n, rows, columns):
    """Into how many equal parts a GPU cuts a sum over n products, so that their tiles of the result fill it.

    XLA would choose numbers of which n is no multiple, and copy both operands to fill them up.
    """
    tiles = -(-rows // TILE) * -(-columns // TILE)
    fitting = [parts for parts in range(1, n // LEAST + 1) if n % (parts * STEP) == 0]
    return next((parts for parts in fitting if parts * tiles >= PROGRAMS), max(fitting, default=1))


def dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **_: Any) -> jax.Array:
    """`matmul` in the form of nnx.Linear's dot_general argument, which contracts lhs's last axis with rhs's first."""
    del dimension_numbers
    return matmul(lhs, rhs)
