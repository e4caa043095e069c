"""SSD4Rec: item histories in packed rows to one hidden state a history, scored against the item table."""
import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.bissd import BiSSDLayer, layer_norm
from ssd4rec_jax.model.config import ModelConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.mamba2 import LINEAR_INIT


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that ModelConfig.dtype names on this backend."""
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    if name == 'float64' and not jax.config.jax_enable_x64:
        raise ConfigError('model.dtype=float64 needs JAX_ENABLE_X64=1')
    return jnp.dtype(name)


class SSD4Rec(nnx.Module):
    """The released SSD4Rec network (paper sections 3.2 to 3.5).

    num_items: items of the catalogue; the table has one row more, row 0 for the mask token and padding.
    Parameters are float32 (float64 with dtype float64), activations `config.dtype`.
    The embedding LayerNorm's parameters exist with norm_embedding off too, as in the released code.
    """

    def __init__(self, config: ModelConfig, num_items: int, *, rngs: nnx.Rngs):
        dtype = compute_dtype(config.dtype)
        kwargs = dict(dtype=dtype, param_dtype=jnp.promote_types(dtype, jnp.float32), rngs=rngs)
        self.config = config
        self.dtype = dtype
        self.item_embedding = nnx.Param(
            LINEAR_INIT(rngs.params(), (num_items + 1, config.hidden_size), kwargs['param_dtype'])
        )
        self.norm = layer_norm(config, **kwargs)
        self.layers = nnx.List([BiSSDLayer(config, **kwargs) for _ in range(config.num_layers)])

    def readout(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """Hidden state at each history's last item, [rows, segments, D]; arbitrary where a slot is empty.

        items int32 [rows, tokens]; draws None means no dropout. The last layer is computed at the read tokens alone.
        """
        h = self.embed(items, draws)
        for k, layer in enumerate(self.layers[:-1]):
            h = layer(h, layout, draws, f'layer{k}')
        return self.layers[-1].readout(h, layout, draws, f'layer{len(self.layers) - 1}')

    def embed(self, items: jax.Array, draws: Draws | None) -> jax.Array:
        """The first layer's input [rows, tokens, D]."""
        h = jnp.take(self.item_embedding[...], items, axis=0, mode='clip').astype(self.dtype)
        if self.config.norm_embedding:
            h = self.norm(dropout(h, self.config.dropout_prob, draws, 'embedding'))
        return h


def mask_items(items: jax.Array, mask_ratio: float, draws: Draws) -> jax.Array:
    """Items with each one replaced by item 0 with probability mask_ratio (rho), the last one too."""
    if mask_ratio == 0.0:
        return items
    return jnp.where(draws.below(mask_ratio, 'mask'), 0, items)
