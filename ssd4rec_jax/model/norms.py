"""The LayerNorm of the network, over the last axis."""
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.ssd.gpu import residual_norm
from pallas_kernels.target import target
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.implementation import named
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.token_sums import token_sums


def layer_norm(config: ModelConfig, **kwargs: Any) -> 'LayerNorm':
    """The released code's LayerNorm over hidden_size, with eps 1e-12 and the two-pass variance; kwargs go to flax."""
    norm = LayerNorm(config.hidden_size, epsilon=1e-12, use_fast_variance=False, **kwargs)
    norm.fused = named(config, 'pallas_gpu_fused')
    return norm


class LayerNorm(nnx.LayerNorm):
    """Flax's LayerNorm, with a backward pass of its own on a GPU.

    A GPU's kernel sums either over channels or over tokens, so the gradient of the scale cannot be summed where values
    are normalized. XLA would write each token's part of it in float32, and would read the tokens once more for that of
    the bias. Here the normalized values are written in x's dtype, and both gradients are summed in one kernel.

    fused: whether `residual` is one kernel of a GPU, where that can serve it.
    """

    fused = False

    def residual(
        self, a: jax.Array, u: jax.Array | None, probability: float, draws: Draws | None, stream: str, *,
        drops_first: bool = False,
    ) -> jax.Array:
        """dropout(self(a + u)), or self(dropout(a + u)) with drops_first: an array like a [rows, tokens, channels].

        u: like a, or None for zeros. probability, draws and stream are those of the dropout.
        """
        if self.fused and residual_norm.why_not_residual_norm(a.dtype, a.shape[-1]) is None:
            how = residual_norm.ResidualNorm(probability, drops_first, self.epsilon, target().interpret)
            params: list[Any] = [self.scale, self.bias]
            scale, bias = (param[...].astype(jnp.float32) for param in params)
            keys = None if draws is None else draws.keys(stream)
            return residual_norm.residual_norm(how, a, u, scale, bias, keys)
        a = a if u is None else a + u
        if drops_first:
            return per_token(self, dropout(a, probability, draws, stream))
        return dropout(per_token(self, a), probability, draws, stream)

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


def _layer_norm_fwd(epsilon, x, scale, bias):
    # Where x is a sum, XLA would make it here, and once more to keep it.
    x = jax.lax.optimization_barrier(x)
    return _layer_norm(epsilon, x, scale, bias), (x, scale)


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


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)
