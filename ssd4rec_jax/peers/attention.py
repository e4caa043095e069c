"""Attention within each history of packed rows, in blocks, so that its cost is linear in the length of a row."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.hashing import mix
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout

# How many blocks a window has: a token reads the window and one block more. Beyond two, what smaller blocks leave
# unread is worth less than the longer products of larger ones.
BLOCKS_OF_WINDOW = 2
# Windows that are tried before that of the network, where they are less than half of it: most rows hold no history that
# is as long as a network allows.
WINDOWS = 64, 256


class Blocks:
    """Rows cut into blocks, whose tokens read their own block and those beside it: the whole of their history, where no
    history is longer than the window.

    size: the number of tokens of a block; the last block of a row is filled up with zeros.
    distance: int [size, read], how many tokens the one that is read lies before the one that reads. `read` is the size
      of all blocks that a block reads.
    allowed: bool [rows, blocks, 1, size, read], which tokens may be read: those of the same history and, with causal,
      none behind the one that reads, and so never a block behind its own.
    """

    def __init__(self, layout: Layout, window: int, *, causal: bool = True):
        """window: the number of tokens that the longest history has, or more."""
        self.tokens = layout.segment_ids.shape[1]
        window = min(window, self.tokens)
        self.size = -(-window // BLOCKS_OF_WINDOW)
        self.count = -(-self.tokens // self.size)
        reach = min(-(-(window - 1) // self.size), self.count - 1)
        self.beside = (reach, 0) if causal else (reach, reach)  # blocks before and behind
        read = np.arange((1 + sum(self.beside)) * self.size) - reach * self.size
        self.distance = np.arange(self.size)[:, None] - read
        allowed = self.own(layout.segment_ids)[..., None] == self.with_beside(layout.segment_ids)[..., None, :]
        self.allowed = (allowed & (self.distance >= 0) if causal else allowed)[:, :, None]

    def own(self, x: jax.Array) -> jax.Array:
        """[rows, blocks, size, ...] from x [rows, tokens, ...]."""
        x = jnp.pad(x, [(0, 0), (0, self.count * self.size - self.tokens)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], self.count, self.size, *x.shape[2:])

    def with_beside(self, x: jax.Array) -> jax.Array:
        """[rows, blocks, read, ...], each block with those beside it, which are zeros beyond the row."""
        padded = jnp.pad(self.own(x), [(0, 0), self.beside] + [(0, 0)] * (x.ndim - 1))
        return jnp.concatenate([padded[:, k:k + self.count] for k in range(1 + sum(self.beside))], axis=2)

    def products(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """[rows, blocks, heads, size, read], float32 or wider, of two arrays [rows, tokens, heads, width]."""
        wide = jnp.promote_types(query.dtype, jnp.float32)
        return jnp.einsum('rbqhd,rbkhd->rbhqk', self.own(query), self.with_beside(key), preferred_element_type=wide)

    def sums(self, weights: jax.Array, value: jax.Array) -> jax.Array:
        """What each token reads of value [rows, tokens, heads, width], in its shape, by weights as `products` gives."""
        found = jnp.einsum('rbhqk,rbkhd->rbqhd', weights.astype(value.dtype), self.with_beside(value))
        return found.reshape(found.shape[0], self.count * self.size, *found.shape[3:])[:, :self.tokens]


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, layout: Layout, window: int, dropout_prob: float,
    draws: Draws | None, stream: str, *, causal: bool = True,
) -> jax.Array:
    """Softmax attention of each token to those of its history: [rows, tokens, heads, width].

    query, key, value: [rows, tokens, heads, width]. window, causal: as in Blocks, exact where no history is longer.
    dropout_prob, draws, stream: the dropout of the attention weights, for which jax.nn.dot_product_attention has no
    place. What stands in padding is arbitrary. The cost grows with the longest history of these rows, in steps of
    WINDOWS.
    """
    def within(window: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        blocks = Blocks(layout, window, causal=causal)
        logits = blocks.products(query, key) * query.shape[-1]**-0.5
        weights = jax.nn.softmax(jnp.where(blocks.allowed, logits, jnp.finfo(logits.dtype).min)).astype(value.dtype)
        if draws is not None and dropout_prob > 0:
            # A draw belongs to a pair of tokens, wherever the packer has put them.
            pairs = mix(blocks.own(draws.token_keys))[..., None] + blocks.with_beside(draws.token_keys)[..., None, :]
            dropped = Draws(pairs).below(dropout_prob, stream, query.shape[2])
            kept = jnp.moveaxis(~dropped, -1, 2)
            weights = jnp.where(kept, weights / jnp.asarray(1 - dropout_prob, weights.dtype), 0)
        return blocks.sums(weights, value)

    windows = [w for w in WINDOWS if 2 * w < min(window, query.shape[1])] + [window]
    if len(windows) == 1:
        return within(window, query, key, value)
    longer = jnp.max(layout.lengths) > jnp.asarray(windows[:-1], jnp.int32)
    # Without the checkpoints each pass would write what the other windows keep for their gradients, as zeros.
    branches = [jax.checkpoint(functools.partial(within, w)) for w in windows]
    return lax.switch(jnp.sum(longer), branches, query, key, value)
