"""The network's norms, over the last axis."""
import jax
from flax import nnx

from ssd4rec_jax.model.config import ModelConfig


def layer_norm(config: ModelConfig, **kwargs) -> nnx.LayerNorm:
    """LayerNorm over hidden_size as the released code has it: eps 1e-12, two-pass variance."""
    return nnx.LayerNorm(config.hidden_size, epsilon=1e-12, use_fast_variance=False, **kwargs)


def normed(norm: nnx.LayerNorm | nnx.RMSNorm, x: jax.Array) -> jax.Array:
    """norm(x [..., channels]) on flat tokens.

    The gradient of the scale of a [1, tokens, channels] array is a sum that keeps the first axis, for which XLA's CPU
    backend (JAX 0.10) calls a library that takes twenty times as long as its own code.
    """
    return norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
