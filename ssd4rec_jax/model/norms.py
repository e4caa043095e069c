"""The LayerNorm of the network, over the last axis."""
from typing import Any

from flax import nnx

from ssd4rec_jax.config.model import ModelConfig


def layer_norm(config: ModelConfig, **kwargs: Any) -> nnx.LayerNorm:
    """The released code's LayerNorm over hidden_size, with eps 1e-12 and the two-pass variance; kwargs go to flax."""
    return nnx.LayerNorm(config.hidden_size, epsilon=1e-12, use_fast_variance=False, **kwargs)
