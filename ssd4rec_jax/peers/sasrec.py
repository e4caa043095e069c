"""SASRec: a Transformer that reads each history from left to right.

Kang and McAuley, "Self-attentive sequential recommendation" (ICDM 2018), eq. 1 to 4 and figure 1, in the form that
later papers compare with (RecBole's): cross-entropy over the catalogue, BERT's order of residual connection and
LayerNorm, gelu. Places are counted from the oldest item that is read. Of a history that is longer than max_length, the
newest max_length items are read.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.peers import SASRecConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.table_init import init_table
from ssd4rec_jax.peers.attention import attend
from ssd4rec_jax.peers.causal import Factory
from ssd4rec_jax.peers.layered import FeedForward, LayeredNetwork

EPSILON = 1e-12


class SASRec(LayeredNetwork):
    """Parameters: item_embedding [items + 1, D], positions [max_length, D], a LayerNorm, and those of the layers."""

    config: SASRecConfig

    def __init__(
        self, config: SASRecConfig, num_items: int, *, rngs: nnx.Rngs, causal: bool = True,
        table_init: Callable[..., jax.Array] = init_table,
    ):
        """causal: whether no item reads those behind it. table_init: the initial item table. Both are for BERT4Rec."""
        make = Factory(config, rngs)
        width, stddev = config.hidden_size, config.initializer_range
        super().__init__(config, make, make.param(table_init, num_items + 1, width, stddev=stddev))
        self.positions = make.param(init_table, config.max_length, width, stddev=stddev)
        self.norm = make.norm(config.hidden_size, EPSILON)
        self.layers = nnx.List([TransformerLayer(config, make, causal) for _ in range(config.num_layers)])

    def inputs(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """Item vector plus the vector of its place, [rows, tokens, D]."""
        # What is too old to be read may have places beyond the table.
        places = jnp.take(self.positions[...], layout.position, axis=0, mode='clip')
        h = self.embedded(items) + places.astype(self.dtype)
        return dropout(per_token(self.norm, h), self.config.dropout_prob, draws, 'embedding')


class TransformerLayer(nnx.Module):
    """h = LayerNorm(dropout(attention(u)) + u), then the feed-forward part."""

    def __init__(self, config: SASRecConfig, make: Factory, causal: bool):
        self.config, self.causal = config, causal
        width = config.hidden_size
        self.query, self.key, self.value, self.out = (make.linear(width, width) for _ in range(4))
        self.norm = make.norm(width, EPSILON)
        self.ffn = FeedForward(
            width, config.inner_size, make, dropout_prob=config.dropout_prob, inner_dropout_prob=0.0, epsilon=EPSILON
        )

    def mix(
        self, u: jax.Array, carried: None, layout: Layout, draws: Draws | None, name: str
    ) -> tuple[jax.Array, None]:
        """As in Layer."""
        c = self.config
        query, key, value = (
            per_token(linear, u).reshape(*u.shape[:2], c.num_heads, -1) for linear in (self.query, self.key, self.value)
        )
        read = attend(
            query, key, value, layout, c.max_length, c.attention_dropout_prob, draws, f'{name}.weights',
            causal=self.causal,
        )
        mixed = dropout(per_token(self.out, read.reshape(u.shape)), c.dropout_prob, draws, f'{name}.out')
        return per_token(self.norm, mixed + u), None


register_network('sasrec', SASRecConfig, SASRec)
