"""Attention within each history of packed rows, in blocks, so that its cost is linear in the length of a row."""
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.model.draws import Draws, mix
from ssd4rec_jax.model.layout import Layout


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, layout: Layout, window: int, dropout_prob: float,
    draws: Draws | None, stream: str, *, causal: bool = True,
) -> jax.Array:
    """Softmax attention of each token to those of its history: [rows, tokens, heads, width].

    query, key, value: [rows, tokens, heads, width]. window: a row is cut into blocks of this length, whose tokens
    attend to their own and to the blocks beside it. That is exact where no history is longer.
    causal: whether a token attends only to itself and to those before it, and so never to the block behind its own.
    dropout_prob, draws, stream: the dropout of the attention weights, for which jax.nn.dot_product_attention has no
    place. What stands in padding is arbitrary.
    """
    tokens = query.shape[1]
    block = min(window, tokens)
    count = -(-tokens // block)

    def blocks(x):
        """[rows, blocks, block, ...]"""
        x = jnp.pad(x, [(0, 0), (0, count * block - tokens)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], count, block, *x.shape[2:])

    beside = (1, 0) if causal else (1, 1)  # blocks before and behind

    def with_neighbours(x):
        """[rows, blocks, 2 or 3 block, ...], each block between those beside it, which are zeros beyond the row."""
        x = blocks(x)
        padded = jnp.pad(x, [(0, 0), beside] + [(0, 0)] * (x.ndim - 2))
        return jnp.concatenate([padded[:, k:k + x.shape[1]] for k in range(1 + sum(beside))], axis=2)

    wide = jnp.promote_types(query.dtype, jnp.float32)
    allowed = blocks(layout.segment_ids)[..., None] == with_neighbours(layout.segment_ids)[..., None, :]
    if causal:
        allowed &= np.arange(block)[:, None] >= np.arange(2 * block) - block
    allowed = allowed[:, :, None]  # [rows, blocks, 1, block, 2 or 3 block]
    logits = jnp.einsum(
        'rbqhd,rbkhd->rbhqk', blocks(query), with_neighbours(key), preferred_element_type=wide
    ) * query.shape[-1]**-0.5
    weights = jax.nn.softmax(jnp.where(allowed, logits, jnp.finfo(wide).min)).astype(value.dtype)
    if draws is not None and dropout_prob > 0:
        # A draw belongs to a pair of tokens, wherever the packer has put them.
        pairs = mix(blocks(draws.token_keys))[..., None] + with_neighbours(draws.token_keys)[..., None, :]
        dropped = Draws(pairs).below(dropout_prob, stream, query.shape[2])
        kept = jnp.moveaxis(~dropped, -1, 2)
        weights = jnp.where(kept, weights / jnp.asarray(1 - dropout_prob, weights.dtype), 0)
    found = jnp.einsum('rbhqk,rbkhd->rbqhd', weights, with_neighbours(value))
    return found.reshape(found.shape[0], count * block, *found.shape[3:])[:, :tokens]
