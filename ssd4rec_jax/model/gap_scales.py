"""How the time that passed between two interactions scales what a head of the mixer forgets and takes in."""
import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig


class GapScales(nnx.Module):
    """Factors 2 ** tanh(w g), within 1/2 and 2, of a head's step dt for a gap g: 1 where g is 0, the typical gap.

    Parameters: decay [H] and, for model.time=decay_and_dt, input [H], the w of each head. They are zero at the start,
    so that the network begins as the one without times. The idea of separate factors is TiM4Rec's.
    """

    def __init__(self, config: ModelConfig, *, param_dtype: jnp.dtype):
        self.decay = nnx.Param(jnp.zeros(config.num_heads, param_dtype))
        self.input = nnx.Param(jnp.zeros(config.num_heads, param_dtype)) if config.time == 'decay_and_dt' else None

    def __call__(self, gaps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the factor of dt in the decay exp(dt A), its factor in the input dt B x), each [rows, tokens, heads].

        gaps: [rows, tokens], of Layout.gaps.
        """
        decay = _factor(self.decay[...], gaps)
        return decay, decay if self.input is None else _factor(self.input[...], gaps)


def _factor(w: jax.Array, gaps: jax.Array) -> jax.Array:
    return jnp.exp(jnp.log(2.0).astype(w.dtype) * jnp.tanh(w * gaps[..., None].astype(w.dtype)))
