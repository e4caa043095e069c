"""Modules that act on each token by itself."""
import jax
from flax import nnx


def per_token(module: nnx.Module, x: jax.Array) -> jax.Array:
    """module(x [..., channels]) on flat tokens.

    The gradient of a bias or of a norm's scale of a [1, tokens, channels] array is a sum that keeps the first axis, for
    which XLA's CPU backend (JAX 0.10) calls a library that takes twenty times as long as its own code.
    """
    y = module(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])
