"""What the mixers keep of a history that grows, so that one more item costs one step whatever came before."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssd4rec_jax.config.model import ModelConfig


class BackwardState(NamedTuple):
    """Of the backward direction in 'reversed' order, which is read at the first token (see BidirectionalMamba2).

    total: [users, heads, headdim], its running sum over the tokens whose convolution sees all of its taps.
    first: [users, conv_width], the first token's convolution before silu, over the taps that have come.
    gate: [users, d_inner], silu(z) of the first token.
    log_decay: [users, heads], the logarithm of the decay over all tokens before the last one.
    dt: [users, heads], that of the last token.
    weights: [users, recent, heads], those of the last tokens, the oldest first. The last token's counts no gap yet.
    """

    total: jax.Array
    first: jax.Array
    gate: jax.Array
    log_decay: jax.Array
    dt: jax.Array
    weights: jax.Array


class MixerState(NamedTuple):
    """Of one mixer, for each user; zeros before the first token.

    recent: [users, recent, conv_width], what the convolution read last, the oldest first. There are d_conv - 1 of them,
    and at least one.
    ssd: [users, heads, headdim, d_state], the state of the scan.
    backward: None where nothing of the backward direction is carried.
    """

    recent: jax.Array
    ssd: jax.Array
    backward: BackwardState | None

    @classmethod
    def empty(
        cls, config: ModelConfig, users: int, dtype: jax.typing.DTypeLike, wide: jax.typing.DTypeLike
    ) -> 'MixerState':
        """The state before the first token. config: of the layer. wide: the dtype of sums."""
        heads, recent = (users, config.num_heads), max(config.d_conv - 1, 1)
        backward = BackwardState(
            jnp.zeros((*heads, config.headdim), wide), jnp.zeros((users, config.conv_width), dtype),
            jnp.zeros((users, config.d_inner), dtype), jnp.zeros(heads, wide), jnp.zeros(heads, wide),
            jnp.zeros((users, recent, config.num_heads), wide),
        )
        return cls(
            jnp.zeros((users, recent, config.conv_width), dtype),
            jnp.zeros((*heads, config.headdim, config.d_state), wide),
            backward if config.beta != 0 and config.backward_order == 'reversed' else None,
        )
