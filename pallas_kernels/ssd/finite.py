"""Which tokens are finite, so that a NaN in one segment reaches no other."""
import jax
import jax.numpy as jnp


def finite_tokens(*arrays: jax.Array) -> jax.Array:
    """bool [batch, length]: whether all values of a token are finite, in every array [batch, length, ...]."""
    # 0 times a finite number is 0, and 0 times anything else is NaN. XLA's CPU backend sums these products as a dot
    # several times as fast as it reduces booleans.
    flat = (a.reshape(*a.shape[:2], -1) for a in arrays)
    return jnp.isfinite(sum(jnp.einsum('blc,c->bl', a, jnp.zeros(a.shape[2], a.dtype)) for a in flat))


def at_tokens(tokens: jax.Array, like: jax.Array) -> jax.Array:
    """The mask [batch, length] in a shape that broadcasts against an array [batch, length, ...]."""
    return tokens.reshape(*tokens.shape, *(1,) * (like.ndim - 2))


def zero_unless(tokens: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays [batch, length, ...] with zeros at the tokens where the mask [batch, length] is False."""
    return tuple(jnp.where(at_tokens(tokens, a), a, jnp.zeros_like(a)) for a in arrays)
