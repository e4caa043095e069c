"""Caser: convolutions over the newest items, read as an image whose rows are their vectors.

Tang and Wang, "Personalized top-N sequential recommendation via convolutional sequence embedding" (WSDM 2018), figure 3
and eq. 3 to 10, in the form that later papers compare with (RecBole's): one target, cross-entropy over the catalogue,
and a second dense layer to the item space, where the paper has second vectors of the items. The image of a short
history begins with zeros, where the authors' padding has a vector that learns. The vector of the user beside z is left
out, because networks here know items alone and answer for users that training has never seen. So is the L2 penalty.
"""
import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.peers import CaserConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.short_conv import token_before
from ssd4rec_jax.peers.causal import CausalNetwork, Factory, conv_init

XAVIER = nnx.initializers.xavier_normal()


class Caser(CausalNetwork):
    """Parameters: item_embedding [items + 1, D]; horizontal kernels [height, D, horizontal_filters] of each height from
    1 to window, oldest item first; vertical kernels [window, vertical_filters]; the biases of both; dense layers
    [vertical_filters D + window horizontal_filters, D] and num_layers times [D, D]."""

    config: CaserConfig

    def __init__(self, config: CaserConfig, num_items: int, *, rngs: nnx.Rngs):
        make = Factory(config, rngs)
        width, window, filters = config.hidden_size, config.window, config.horizontal_filters
        super().__init__(config, make, make.param(nnx.initializers.normal(1 / width), num_items + 1, width))
        heights = range(1, window + 1)
        self.horizontal = nnx.List([make.param(conv_init, h, width, filters, fan_in=h * width) for h in heights])
        self.horizontal_biases = nnx.List([make.param(conv_init, filters, fan_in=h * width) for h in heights])
        self.vertical = make.param(conv_init, window, config.vertical_filters)
        self.vertical_bias = make.param(conv_init, config.vertical_filters, fan_in=window)
        found = config.vertical_filters * width + window * filters
        widths = [found] + [width] * config.num_layers
        self.dense = nnx.List([make.linear(n, width, kernel_init=XAVIER) for n in widths])

    def states(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """What all filters find in the image that ends at each item, vertical ones first."""
        c, x = self.config, self.embedded(items)
        image = jnp.stack([token_before(x, k, layout) for k in range(c.window)][::-1], axis=2)
        vertical = jnp.einsum('rtld,lv->rtvd', image, self.vertical[...].astype(x.dtype))
        vertical += self.vertical_bias[...].astype(x.dtype)[:, None]
        found = vertical.reshape(*x.shape[:2], -1), self._horizontal(image, layout)
        return jnp.concatenate(found, axis=-1)

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The dense layers, each followed by relu."""
        h = dropout(states, self.config.dropout_prob, draws, 'filters')
        for layer in self.dense:
            h = jax.nn.relu(per_token(layer, h))
        return h

    def _horizontal(self, image, layout):
        """The largest value of each horizontal filter in its places within the image, [rows, tokens, heights filters].

        The value in a place within the image of a token is that in the last place of the image of a token before.
        """
        window, filters = self.config.window, self.config.horizontal_filters
        # One product for all heights: kernels begin with zeros, as if all were as high as the image.
        kernel = jnp.concatenate([jnp.pad(k[...], ((window - len(k), 0), (0, 0), (0, 0))) for k in self.horizontal], -1)
        bias = jnp.concatenate([b[...] for b in self.horizontal_biases]).astype(image.dtype)
        last = jax.nn.relu(jnp.einsum('rtld,ldf->rtf', image, kernel.astype(image.dtype)) + bias)
        of_zeros = jax.nn.relu(bias)
        largest = last
        for k in range(1, window):
            fitting = (window - k) * filters  # The filters of heights up to window - k have a place k tokens earlier.
            before = token_before(last[..., :fitting], k, layout)
            before = jnp.where((layout.position >= k)[..., None], before, of_zeros[:fitting])
            largest = jnp.concatenate([jnp.maximum(largest[..., :fitting], before), largest[..., fitting:]], axis=-1)
        return largest


register_network('caser', CaserConfig, Caser)
