"""The network's norms, over the last axis."""
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig


def layer_norm(config: ModelConfig, **kwargs) -> nnx.LayerNorm:
    """LayerNorm over hidden_size as the released code has it: eps 1e-12, two-pass variance."""
    return nnx.LayerNorm(config.hidden_size, epsilon=1e-12, use_fast_variance=False, **kwargs)
