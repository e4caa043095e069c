"""HSTU: attention whose weights are silu and no softmax, with a bias by place and time, and a gate.

Zhai et al., "Actions speak louder than words: trillion-parameter sequential transducers for generative recommendations"
(ICML 2024), eq. 1 to 3, in the order of its released code (github.com/facebookresearch/generative-recommenders,
research/modeling/sequential/hstu.py) and with that code's cosine scores. Places are counted from the oldest item that
is read. Of a history that is longer than max_length, the newest max_length items are read.

The bias by time is that of the time between the item that reads and the one that is read. The released code takes the
time of the item after the one that reads, which for the newest is the time of the item to be predicted; nothing here
knows that time. Times are sums of gaps (ssd4rec_jax.data.gaps) in ticks, of which a typical gap has TICKS, where the
released code counts seconds: buckets of time are as wide, and begin elsewhere. A gap counts
for at most about 2,000 typical ones (LARGEST in ssd4rec_jax.data.gaps), there as long as it is. Where a log tells the
order alone, all gaps are equal, and the bias by time is one more bias by place.
"""
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssd4rec_jax.config.peers import HSTUConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.mamba2 import LINEAR_INIT
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.silu import silu
from ssd4rec_jax.model.ssd4rec import of_length_one
from ssd4rec_jax.model.table_init import init_table
from ssd4rec_jax.peers.attention import Blocks
from ssd4rec_jax.peers.causal import Factory, conv_init
from ssd4rec_jax.peers.layered import LayeredNetwork

EPSILON = 1e-6
OUTPUTS = 11  # The places that the released code adds to max_length; sums of values are divided by all of them.
TICKS = 100
# As released: the number of buckets of time, the width of each as a natural logarithm, and one more for all above.
BUCKETS, BUCKET_WIDTH = 128, 0.301


class HSTU(LayeredNetwork):
    """Parameters: item_embedding [items + 1, D], positions [max_length, D], and those of the layers."""

    config: HSTUConfig

    def __init__(self, config: HSTUConfig, num_items: int, *, rngs: nnx.Rngs):
        make = Factory(config, rngs)
        super().__init__(config, make, make.param(init_table, num_items + 1, config.hidden_size))
        self.positions = make.param(nnx.initializers.xavier_normal(), config.max_length, config.hidden_size)
        self.layers = nnx.List([HSTULayer(config, make) for _ in range(config.num_layers)])

    def inputs(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """Item vector times sqrt(D) plus the vector of its place, [rows, tokens, D]."""
        places = jnp.take(self.positions[...], layout.position, axis=0, mode='clip').astype(self.dtype)
        h = self.embedded(items) * jnp.asarray(self.config.hidden_size**0.5, self.dtype) + places
        return dropout(h, self.config.dropout_prob, draws, 'embedding')

    def carried(self, layout: Layout, draws: Draws | None) -> jax.Array:
        """The bucket of the time between each pair of items, int32 [rows, blocks, size, read], as in Blocks."""
        gaps = jnp.where(layout.position > 0, 2 * 10**layout.gaps(reverse=False) - 1, 0)
        # Sums that grow too large for int32 begin again at its other end. Differences within a history stay exact:
        # 10,000 of the largest gaps have less than 2^31 ticks.
        time = jnp.cumsum(jnp.round(TICKS * gaps).astype(jnp.int32), axis=1)
        blocks = Blocks(layout, self.config.max_length)
        passed = blocks.own(time)[..., None] - blocks.with_beside(time)[..., None, :]
        return jnp.minimum((jnp.log(jnp.maximum(passed, 1)) / BUCKET_WIDTH).astype(jnp.int32), BUCKETS)

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The last part of the last layer, divided by its length and by the temperature."""
        h = of_length_one(super().finish(states, draws))
        return h / jnp.asarray(self.config.temperature, h.dtype)

    def item_vectors(self, rows: jax.Array) -> jax.Array:
        """Rows of the item table, [n, D], each divided by its length."""
        return of_length_one(rows)


class HSTULayer(nnx.Module):
    """[g, v, q, k] = silu(U norm(u)), and then O dropout(norm(A(q, k) v) g) + u, where a norm has no parameters.

    A(q, k) of two items is silu(q k + position_bias + time_bias) / (max_length + OUTPUTS), by how many places and how
    much time they are apart.
    """

    def __init__(self, config: HSTUConfig, make: Factory):
        self.config = config
        width = config.hidden_size
        self.norm = make.norm(width, EPSILON, use_bias=False, use_scale=False)
        self.in_proj = make.linear(width, 4 * width, use_bias=False)
        self.position_bias = make.param(LINEAR_INIT, config.max_length)
        self.time_bias = make.param(LINEAR_INIT, BUCKETS + 1)
        self.out_proj = make.linear(width, width, kernel_init=nnx.initializers.xavier_uniform(), bias_init=conv_init)

    def mix(
        self, u: jax.Array, buckets: jax.Array, layout: Layout, draws: Draws | None, name: str
    ) -> tuple[jax.Array, jax.Array]:
        """As in Layer: u, g and A(q, k) v side by side."""
        c = self.config
        gate, value, query, key = jnp.split(silu(per_token(self.in_proj, per_token(self.norm, u))), 4, axis=-1)
        value, query, key = (x.reshape(*x.shape[:2], c.num_heads, -1) for x in (value, query, key))
        blocks = Blocks(layout, c.max_length)
        by_place = self.position_bias[...][np.clip(blocks.distance, 0, c.max_length - 1)]
        logits = blocks.products(query, key) + by_place + self.time_bias[...][buckets][:, :, None]
        weights = jnp.where(blocks.allowed, silu(logits) / (c.max_length + OUTPUTS), 0)
        return jnp.concatenate([u, gate, blocks.sums(weights, value).reshape(u.shape)], axis=-1), buckets

    def ffn(self, states: jax.Array, draws: Draws | None, name: str) -> jax.Array:
        """As in Layer, from what mix gives."""
        u, gate, read = jnp.split(states, 3, axis=-1)
        gated = dropout(gate * per_token(self.norm, read), self.config.dropout_prob, draws, name)
        return per_token(self.out_proj, gated) + u


register_network('hstu', HSTUConfig, HSTU)
