"""BERT4Rec: a Transformer that reads each item with all others of its history, and predicts hidden ones.

Sun et al., "BERT4Rec: sequential recommendation with bidirectional encoder representations from Transformer" (CIKM
2019), figure 1b and eq. 1 to 7: SASRec's layers without the causal mask, one more dense layer with gelu at each item to
be predicted, and items with biases. Training hides items of whole histories (train.objective=cloze), and a ranking asks
for the item at a mask token behind the history. As in RecBole's form, a LayerNorm follows the sum of item and place,
and another one the dense layer. The network reads the newest max_length items, the mask token among them; RecBole's
leaves the oldest item out wherever it ranks, also of short histories, and never trains the first place on a mask.
"""
import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.peers import BERT4RecConfig
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.gelu import gelu
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.table_init import init_table
from ssd4rec_jax.peers.causal import Factory
from ssd4rec_jax.peers.mask_token import with_mask_token
from ssd4rec_jax.peers.sasrec import EPSILON, SASRec


class BERT4Rec(SASRec):
    """Parameters: those of SASRec, whose item_embedding [items + 1, D + 1] has the items' biases in its last column, a
    dense layer [D, D] and its LayerNorm. Row 0 of the table is the mask token."""

    def __init__(self, config: BERT4RecConfig, num_items: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_items, rngs=rngs, causal=False, table_init=_table_with_biases)
        make = Factory(config, rngs)
        self.dense = make.linear(config.hidden_size, config.hidden_size)
        self.dense_norm = make.norm(config.hidden_size, EPSILON)

    def embedded(self, items: jax.Array) -> jax.Array:
        """The vectors of items without their biases."""
        return super().embedded(items)[..., :-1]

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The last feed-forward part, the dense layer, and a 1 that is multiplied by the bias: [rows, n, D + 1]."""
        h = gelu(per_token(self.dense, super().finish(states, draws)))
        h = per_token(self.dense_norm, h)
        return jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1)

    def readout(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The readout at a mask token behind each history, [rows, segments, D + 1]."""
        return super().readout(*with_mask_token(items, layout, draws))

    def cloze_readouts(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The readout at each item from all others of its history, [rows, tokens, D + 1]; hidden ones are item 0."""
        return self.finish(self.states(items, layout, draws), draws)


def _table_with_biases(key, shape, dtype, **more):
    """The initial item table [items + 1, D], and a column of zeros."""
    return jnp.pad(init_table(key, shape, dtype, **more), ((0, 0), (0, 1)))


register_network('bert4rec', BERT4RecConfig, BERT4Rec)
