"""The LayerNorm of the network, over the last axis."""
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.target import target
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.token_sums import token_sums


def layer_norm(config: ModelConfig, **kwargs: Any) -> nnx.LayerNorm:
    """The released code's LayerNorm over hidden_size, with eps 1e-12 and the two-pass variance; kwargs go to flax."""
    return LayerNorm(config.hidden_size, epsilon=1e-12, use_fast_variance=False, **kwargs)


class LayerNorm(nnx.LayerNorm):
    """Flax's LayerNorm, with a backward pass of its own on a GPU.

    A GPU's kernel sums either over channels or over tokens, so the gradient of the scale cannot be summed where values
    are normalized. XLA would write each token's part of it in float32, and would read the tokens once more for that of
    the bias. Here the normalized values are written in x's dtype, and both gradients are summed in one kernel.
    """

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """x [..., channels] normalized, in its shape and dtype."""
        if target().platform != 'gpu' or mask is not None or self.scale is None or self.bias is None:
            return super().__call__(x, mask=mask)
        return _layer_norm(self.epsilon, x, self.scale[...], self.bias[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(epsilon, x, scale, bias):
    return (_normalized(epsilon, x)[0] * scale + bias).astype(x.dtype)


def _normalized(epsilon, x):
    """(the normalized x, 1 / the standard deviation of each token), in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def _layer_norm_bwd(epsilon, residuals, g):
    x, scale = residuals
    normalized, inverse = _normalized(epsilon, jax.lax.optimization_barrier(x))
    wide = g.astype(normalized.dtype)
    dnormalized = wide * scale
    along = jnp.mean(dnormalized * normalized, axis=-1, keepdims=True)
    dx = inverse * (dnormalized - jnp.mean(dnormalized, axis=-1, keepdims=True) - normalized * along)
    written = jax.lax.optimization_barrier(normalized.astype(x.dtype))
    dscale, dbias = token_sums(wide * written, wide)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_layer_norm.defvjp(
    lambda epsilon, x, scale, bias: (_layer_norm(epsilon, x, scale, bias), (x, scale)), _layer_norm_bwd
)
