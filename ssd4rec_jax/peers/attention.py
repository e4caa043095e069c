"""Attention within each history of packed rows, in blocks, so that its cost is linear in the length of a row."""
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.model.draws import Draws, mix
from ssd4rec_jax.model.layout import Layout


class Blocks:
    """Rows cut into blocks, whose tokens read their own block and the one before it: the whole of their history up to
    them, where no history is longer than a block.

    size: the number of tokens of a block; the last block of a row is filled up with zeros.
    distance: int [size, 2 size], how many tokens lie between the one that reads and the one that is read.
    allowed: bool [rows, blocks, 1, size, 2 size], whether both are of one history and the one that is read is no later.
    """

    def __init__(self, layout: Layout, window: int):
        """window: the size, unless rows are shorter."""
        self.tokens = layout.segment_ids.shape[1]
        self.size = min(window, self.tokens)
        self.distance = np.arange(self.size)[:, None] - np.arange(2 * self.size) + self.size
        same = self.own(layout.segment_ids)[..., None] == self.with_before(layout.segment_ids)[..., None, :]
        self.allowed = (same & (self.distance >= 0))[:, :, None]

    def own(self, x: jax.Array) -> jax.Array:
        """[rows, blocks, size, ...] from x [rows, tokens, ...]"""
        x = jnp.pad(x, [(0, 0), (0, -self.tokens % self.size)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, self.size, *x.shape[2:])

    def with_before(self, x: jax.Array) -> jax.Array:
        """[rows, blocks, 2 size, ...], each block behind the one before it, which is zeros for the first."""
        x = self.own(x)
        before = jnp.pad(x, [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))[:, :-1]
        return jnp.concatenate([before, x], axis=2)

    def products(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """[rows, blocks, heads, size, 2 size], in float32 or wider, from two arrays [rows, tokens, heads, width]."""
        wide = jnp.promote_types(query.dtype, jnp.float32)
        return jnp.einsum('rbqhd,rbkhd->rbhqk', self.own(query), self.with_before(key), preferred_element_type=wide)

    def sums(self, weights: jax.Array, value: jax.Array) -> jax.Array:
        """[rows, tokens, heads, width], what each token reads of such values by [rows, blocks, heads, size, 2 size]."""
        found = jnp.einsum('rbhqk,rbkhd->rbqhd', weights.astype(value.dtype), self.with_before(value))
        return found.reshape(found.shape[0], -1, *found.shape[3:])[:, :self.tokens]


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, layout: Layout, window: int, dropout_prob: float,
    draws: Draws | None, stream: str,
) -> jax.Array:
    """Softmax attention of each token to itself and to those before it in its history: [rows, tokens, heads, width].

    query, key, value: [rows, tokens, heads, width]. window: as in Blocks, exact where no history is longer.
    dropout_prob, draws, stream: the dropout of the attention weights, for which jax.nn.dot_product_attention has no
    place. What stands in padding is arbitrary.
    """
    blocks = Blocks(layout, window)
    logits = blocks.products(query, key) * query.shape[-1]**-0.5
    weights = jax.nn.softmax(jnp.where(blocks.allowed, logits, jnp.finfo(logits.dtype).min)).astype(value.dtype)
    if draws is not None and dropout_prob > 0:
        # A draw belongs to a pair of tokens, wherever the packer has put them.
        keys = draws.token_keys
        pairs = mix(blocks.own(keys))[..., None] + blocks.with_before(keys)[..., None, :]
        dropped = Draws(pairs).below(dropout_prob, stream, query.shape[2])
        kept = jnp.moveaxis(~dropped, -1, 2)
        weights = jnp.where(kept, weights / jnp.asarray(1 - dropout_prob, weights.dtype), 0)
    return blocks.sums(weights, value)
