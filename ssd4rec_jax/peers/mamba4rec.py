"""Mamba4Rec: a selective state space model over the item vectors.

Liu et al., "Mamba4Rec: towards efficient sequential recommendation with selective state space models" (2024), figure 1,
with Mamba's block (ssd4rec_jax.peers.mamba1). As in the released code, one layer alone has no residual connection
around its mixer, and stacked layers have.
"""
import jax
from flax import nnx

from ssd4rec_jax.config.peers import Mamba4RecConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout, take_tokens
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.table_init import init_table
from ssd4rec_jax.peers.causal import Factory
from ssd4rec_jax.peers.layered import FeedForward, LayeredNetwork
from ssd4rec_jax.peers.mamba1 import Mamba1

EPSILON = 1e-12


class Mamba4Rec(LayeredNetwork):
    """Parameters: item_embedding [items + 1, D], a LayerNorm, and those of the layers."""

    config: Mamba4RecConfig

    def __init__(self, config: Mamba4RecConfig, num_items: int, *, rngs: nnx.Rngs):
        make = Factory(config, rngs)
        super().__init__(config, make, make.param(init_table, num_items + 1, config.hidden_size))
        self.norm = make.norm(config.hidden_size, EPSILON)
        self.layers = nnx.List([self.new_layer(make) for _ in range(config.num_layers)])

    def new_layer(self, make: Factory) -> 'MambaLayer':
        """A layer with parameters of its own."""
        return MambaLayer(self.config, make)

    def inputs(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """LayerNorm(dropout(item vector))."""
        return per_token(self.norm, dropout(self.embedded(items), self.config.dropout_prob, draws, 'embedding'))


class MambaLayer(nnx.Module):
    """LayerNorm(dropout(mamba(u))), in a network of several layers LayerNorm(dropout(mamba(u)) + u), then the ffn."""

    def __init__(self, config: Mamba4RecConfig, make: Factory):
        self.config = config
        width, rate = config.hidden_size, config.dropout_prob
        self.mamba = Mamba1(width, config.d_state, config.d_conv, config.expand, make)
        self.norm = make.norm(width, EPSILON)
        self.ffn = FeedForward(width, 4 * width, make, dropout_prob=rate, inner_dropout_prob=rate, epsilon=EPSILON)

    def mix(
        self, u: jax.Array, carried: None, layout: Layout, draws: Draws | None, name: str
    ) -> tuple[jax.Array, None]:
        """As in Layer."""
        return self._after_mixer(self.mixed(u, layout, draws, name), u, draws, name), None

    def mix_at_ends(
        self, u: jax.Array, carried: None, layout: Layout, draws: Draws | None, name: str
    ) -> jax.Array:
        """As in LayeredNetwork."""
        mixed = self.mixed(u, layout, draws, name, at_ends=True)
        return self._after_mixer(mixed, take_tokens(u, layout.ends), draws and draws.at(layout.ends), name)

    def mixed(
        self, u: jax.Array, layout: Layout, draws: Draws | None, name: str, *, at_ends: bool = False
    ) -> jax.Array:
        """The mixer alone, [rows, tokens, D]; with at_ends that of each history's last token, [rows, segments, D]."""
        return self.mamba(u, layout, at_ends=at_ends)

    def _after_mixer(self, mixed, u, draws, name):
        mixed = dropout(mixed, self.config.dropout_prob, draws, f'{name}.mixer')
        return per_token(self.norm, mixed if self.config.num_layers == 1 else mixed + u)


register_network('mamba4rec', Mamba4RecConfig, Mamba4Rec)
