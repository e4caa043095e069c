"""Random draws keyed by example, so that they do not depend on packing, devices or processes.

Every draw is a hash of (seed, epoch, example, stream, position, channel). With jax.random a key would have to be folded
for every token, which costs more than the layers that use the draws. Two rounds of a 32-bit integer mixer cost a few
vector instructions per element, and XLA fuses them into the operation that uses them.
"""
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.hashing import channel_words, mix
from ssd4rec_jax.model.layout import Layout


class Draws(NamedTuple):
    """The source of the random draws of one training step.

    token_keys: uint32 [rows, tokens], one key per token, a hash of (seed, epoch, example, position).
    """

    token_keys: jax.Array

    @classmethod
    def of(cls, seed: jax.Array, epoch: jax.Array, layout: Layout) -> 'Draws':
        """The draws of a packed step in an epoch; seed and epoch are uint32 scalars."""
        base = mix(mix(jnp.asarray(seed, jnp.uint32)) + jnp.asarray(epoch, jnp.uint32))
        example = mix(base ^ layout.example.astype(jnp.uint32))
        return cls(mix(example + layout.position.astype(jnp.uint32)))

    def at(self, index: jax.Array) -> 'Draws':
        """The draws of the selected tokens; index is int32 [rows, n] and counts the tokens of each row."""
        return Draws(jnp.take_along_axis(self.token_keys, index, axis=1))

    def of_member(self, number: int) -> 'Draws':
        """The draws of one of several networks that learn side by side; number 0 has the draws of a single network."""
        return Draws(self.token_keys ^ mix(jnp.uint32(number)))

    def keys(self, stream: str) -> jax.Array:
        """uint32 [rows, tokens], a key for each token from which the draws of a stream are made."""
        return mix(self.token_keys ^ np.uint32(zlib.crc32(stream.encode())))

    def below(self, probability: float, stream: str, channels: int | None = None) -> jax.Array:
        """Booleans that are True with the given probability: [rows, tokens] or [rows, tokens, channels].

        Two streams never share draws; asking the same stream again gives the same draws.
        """
        keys = self.keys(stream)
        if channels is not None:
            keys = mix(keys[..., None] ^ channel_words(channels))
        return keys < np.uint32(round(probability * 2**32))

    def dropout(self, x: jax.Array, probability: float, stream: str) -> jax.Array:
        """Inverted dropout applied to x [rows, tokens, channels]; shape and dtype are kept."""
        if probability == 0.0:
            return x
        dropped = self.below(probability, stream, x.shape[-1])
        return jnp.where(dropped, jnp.zeros_like(x), x / jnp.asarray(1.0 - probability, x.dtype))


def dropout(x: jax.Array, probability: float, draws: Draws | None, stream: str) -> jax.Array:
    """Dropout applied to x where there are draws (training); x itself where draws is None (evaluation)."""
    return x if draws is None else draws.dropout(x, probability, stream)


def mask_items(items: jax.Array, mask_ratio: float, draws: Draws) -> jax.Array:
    """items int32 [rows, tokens], each replaced by item 0 with probability mask_ratio (the paper's rho).

    The last item of a history is masked like any other, as in the released code.
    """
    if mask_ratio == 0.0:
        return items
    return jnp.where(draws.below(mask_ratio, 'mask'), 0, items)
