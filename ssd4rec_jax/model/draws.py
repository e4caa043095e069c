"""Random draws keyed by example, so that they do not depend on packing, devices or processes.

Every draw is a hash of (seed, epoch, example, stream, position, channel). jax.random keys would have to be
folded once a token, which costs more than the layers they serve; two rounds of a 32-bit integer mixer
cost a few vector instructions an element and fuse into the operation that uses them.
"""
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.model.layout import Layout


def mix(x: jax.Array) -> jax.Array:
    """Bijective 32-bit mixer with low bias ("lowbias32", C. Wellons, hash-prospector); uint32 in and out."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Draws(NamedTuple):
    """Source of a training step's draws.

    token_keys: uint32 [rows, tokens], one a token, from (seed, epoch, example, position).
    """

    token_keys: jax.Array

    @classmethod
    def of(cls, seed: jax.Array, epoch: jax.Array, layout: Layout) -> 'Draws':
        """Draws of an epoch; seed and epoch are uint32 scalars."""
        base = mix(mix(jnp.asarray(seed, jnp.uint32)) + jnp.asarray(epoch, jnp.uint32))
        example = mix(base ^ layout.example.astype(jnp.uint32))
        return cls(mix(example + layout.position.astype(jnp.uint32)))

    def at(self, index: jax.Array) -> 'Draws':
        """The draws of some tokens: index int32 [rows, n] into each row's tokens."""
        return Draws(jnp.take_along_axis(self.token_keys, index, axis=1))

    def below(self, probability: float, stream: str, channels: int | None = None) -> jax.Array:
        """True with the given probability: bool [rows, tokens] or [rows, tokens, channels].

        Two streams never share draws; the same stream gives the same draws again.
        """
        keys = mix(self.token_keys ^ np.uint32(zlib.crc32(stream.encode())))
        if channels is not None:
            keys = mix(keys[..., None] ^ mix(jnp.arange(1, channels + 1, dtype=jnp.uint32)))
        return keys < np.uint32(round(probability * 2**32))

    def dropout(self, x: jax.Array, probability: float, stream: str) -> jax.Array:
        """Inverted dropout of x [rows, tokens, channels]."""
        if probability == 0.0:
            return x
        dropped = self.below(probability, stream, x.shape[-1])
        return jnp.where(dropped, jnp.zeros_like(x), x / jnp.asarray(1.0 - probability, x.dtype))


def dropout(x: jax.Array, probability: float, draws: Draws | None, stream: str) -> jax.Array:
    """Dropout where there are draws (training), x itself where there are none (evaluation)."""
    return x if draws is None else draws.dropout(x, probability, stream)


def mask_items(items: jax.Array, mask_ratio: float, draws: Draws) -> jax.Array:
    """Items with each one replaced by item 0 with probability mask_ratio (rho), the last one too."""
    if mask_ratio == 0.0:
        return items
    return jnp.where(draws.below(mask_ratio, 'mask'), 0, items)
