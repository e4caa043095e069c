"""SIGMA: Mamba over each history and over the history with its older items reversed, gated, beside a recurrent unit.

Liu et al., "SIGMA: selective gated Mamba for sequential recommendation" (AAAI 2025): its partially flipped Mamba, dense
selective gate and feature-extract GRU, in the order of its released code (gated_mamba.py of
github.com/Applied-Machine-Learning-Lab/SIMGA). As there, the gate of the reversed history also reads the other gate,
and the three weights of the sum are not normalised.

The released code reverses the first 45 of 50 places, of which padding fills those that a shorter history leaves. Here
all but the newest `num_kept` items of each history change places, which is the same for a history of 50. With RecBole's
padding, on the right, the flipped branch of a history under about 23 items has read padding alone where its readout is
taken, so that the authors' figures for short histories are of a network that differs from this one; and their short
convolution reads padding's vector behind the newest item, where this one reads zero. Their gate drops .2 at any
dropout_prob, this one as much as the rest.
"""
import functools

import jax
import jax.numpy as jnp

from ssd4rec_jax.config.peers import SIGMAConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout, mirror_within_segment, take_tokens
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.short_conv import token_after, token_before
from ssd4rec_jax.model.silu import silu
from ssd4rec_jax.peers.causal import Factory, conv_init
from ssd4rec_jax.peers.gru4rec import gru
from ssd4rec_jax.peers.mamba4rec import Mamba4Rec, MambaLayer


class SIGMA(Mamba4Rec):
    """Mamba4Rec with other layers. Parameters: item_embedding [items + 1, D], a LayerNorm, and those of the layers."""

    config: SIGMAConfig

    def new_layer(self, make: Factory) -> 'SIGMALayer':
        """As in Mamba4Rec."""
        return SIGMALayer(self.config, make)


class SIGMALayer(MambaLayer):
    """Mamba4Rec's layer with P (w_0 short + w_1 (1 + g') mamba(u') + w_2 (1 + g) mamba(u)) in the mixer's place.

    u' is u with the older items of each history in reverse, and short a GRU over a convolution of three items. With
    gate(a, b) = A silu(a) + B sigmoid(b), the gates are g = gate(v, v) of v = u + U u, and g' = gate(v', g) of
    v' = u' + U' u'.
    """

    config: SIGMAConfig

    def __init__(self, config: SIGMAConfig, make: Factory):
        super().__init__(config, make)
        width = config.hidden_size
        self.dense, self.dense_reverse, self.gate_silu, self.gate_sigmoid, self.projection = (
            make.linear(width, width) for _ in range(5)
        )
        bias_init = functools.partial(conv_init, fan_in=3 * width)
        self.conv = make.linear(3 * width, width, kernel_init=conv_init, bias_init=bias_init)
        self.gru_inputs = make.linear(width, 3 * width, use_bias=False, kernel_init=conv_init)
        self.gru_recurrent = make.param(conv_init, width, 3 * width)
        self.weights = make.param(_init_weights, 3)

    def mixed(
        self, u: jax.Array, layout: Layout, draws: Draws | None, name: str, *, at_ends: bool = False
    ) -> jax.Array:
        """As in MambaLayer."""
        reverse = mirror_within_segment(u, mirror_of_older(layout, self.config.num_kept))
        forward, backward = (self.mamba(x, layout, at_ends=at_ends) for x in (u, reverse))
        short = self._short(u, layout)
        if at_ends:
            u, reverse, short = (take_tokens(x, layout.ends) for x in (u, reverse, short))
            draws = draws and draws.at(layout.ends)
        v, v_reverse = u + per_token(self.dense, u), reverse + per_token(self.dense_reverse, reverse)
        gate = self._gate(v, v, draws, f'{name}.gate')
        gate_reverse = self._gate(v_reverse, gate, draws, f'{name}.gate_reverse')
        weights = self.weights[...].astype(u.dtype)
        mixed = weights[0] * short + weights[1] * (1 + gate_reverse) * backward + weights[2] * (1 + gate) * forward
        return per_token(self.projection, mixed)

    def _gate(self, by_silu, by_sigmoid, draws, name):
        gate = per_token(self.gate_silu, silu(by_silu)) + per_token(self.gate_sigmoid, jax.nn.sigmoid(by_sigmoid))
        return dropout(gate, self.config.dropout_prob, draws, name)

    def _short(self, u, layout):
        near = jnp.concatenate([token_before(u, 1, layout), u, token_after(u, 1, layout)], axis=-1)
        inputs = per_token(self.gru_inputs, per_token(self.conv, near))
        return gru(inputs, self.gru_recurrent[...], layout.position == 0).astype(u.dtype)


def mirror_of_older(layout: Layout, kept: int) -> jax.Array:
    """int32 [rows, tokens], as Layout.mirror, where the newest `kept` items of each history stay where they are."""
    index = jnp.arange(layout.position.shape[1], dtype=jnp.int32)
    last = layout.position + layout.remaining - kept  # of the older items
    return jnp.where(layout.position <= last, index + last - 2 * layout.position, index)


def _init_weights(key, shape, dtype):
    del key, shape
    return jnp.asarray([0.1, 0.1, 0.8], dtype)


register_network('sigma', SIGMAConfig, SIGMA)
