"""The released algorithm in its plain form: the oracle for the model's values and the baseline for its speed.

It computes every layer at every token and projects each direction separately, the backward one on reversed histories.
It takes the parameters of a model and uses the same packing, dtype, random draws and ssd_scan. The model never imports
this file.
"""
import jax
import jax.numpy as jnp

from pallas_kernels import ssd_scan
from ssd4rec_jax.model.bissd import BiSSDLayer
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.gelu import gelu
from ssd4rec_jax.model.implementation import named_implementation
from ssd4rec_jax.model.layout import Layout, mirror_within_segment, take_tokens
from ssd4rec_jax.model.mamba2 import BidirectionalMamba2
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.short_conv import short_conv
from ssd4rec_jax.model.silu import silu
from ssd4rec_jax.model.ssd4rec import SSD4Rec


def plain_readout(model: SSD4Rec, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
    """The same function as model.readout: the hidden state after each history, [rows, segments, D]."""
    return take_tokens(plain_hidden(model, items, layout, draws), layout.ends)


def plain_hidden(model: SSD4Rec, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
    """The hidden states of the last layer at every token, [rows, tokens, D]. items: int32 [rows, tokens]."""
    h = jnp.take(model.item_embedding[...], items, axis=0).astype(model.dtype)
    if model.config.norm_embedding:
        h = per_token(model.norm, dropout(h, model.config.dropout_prob, draws, 'embedding'))
    for k, layer in enumerate(model.layers):
        forward_only = model.config.bidirectional == 'last' and k < model.config.num_layers - 1
        h = _layer(layer, h, 0 if forward_only else model.config.beta, layout, draws, f'layer{k}')
    return h


def _layer(layer: BiSSDLayer, u, beta, layout, draws, name):
    config = layer.mixer.config
    gaps = layout.gaps(reverse=False)
    forward = _mixer(layer.mixer, u, gaps, layout)
    # In the reversed history the gap before a token is the one before its predecessor there, in the order of time.
    mirrored = jnp.roll(take_tokens(gaps, layout.mirror), 1, axis=1)
    gaps = jnp.where(layout.position > 0, mirrored, 0)
    backward = _mixer(layer.mixer, mirror_within_segment(u, layout.mirror), gaps, layout)
    if config.backward_order == 'aligned':
        backward = mirror_within_segment(backward, layout.mirror)
    h = per_token(layer.norm, forward + beta * backward + u)
    h = dropout(h, config.dropout_prob, draws, f'{name}.mixer')
    if (ffn := layer.ffn) is None:
        return h
    inner = dropout(gelu(per_token(ffn.w_1, h)), config.dropout_prob, draws, f'{name}.ffn.inner')
    return dropout(per_token(ffn.norm, per_token(ffn.w_2, inner) + h), config.dropout_prob, draws, f'{name}.ffn.out')


def _mixer(mixer: BidirectionalMamba2, u, gaps, layout):
    """The Mamba-2 block of the released code, applied to packed tokens; gaps are those before each of them."""
    c = mixer.config
    state = c.ngroups * c.d_state
    zxBCdt = mixer.in_proj(u)
    z, xBC, dt = jnp.split(zxBCdt, [c.d_inner, 2 * c.d_inner + 2 * state], axis=-1)
    kernel, bias = mixer.conv_kernel[...].astype(xBC.dtype), mixer.conv_bias[...].astype(xBC.dtype)
    x, B, C = jnp.split(short_conv(xBC, kernel, bias, layout), [c.d_inner, c.d_inner + state], axis=-1)
    x = x.reshape(*x.shape[:2], c.num_heads, c.headdim)
    dt = jax.nn.softplus(dt.astype(mixer.dt_bias.dtype) + mixer.dt_bias[...])
    taken_in = x
    if (scales := mixer.gap_scales) is not None:
        of_decay = 2 ** jnp.tanh(scales.decay[...] * gaps[..., None])
        of_input = of_decay if scales.input is None else 2 ** jnp.tanh(scales.input[...] * gaps[..., None])
        # The scan decays and takes in by one dt, so what is taken in makes up for the other factor.
        dt, taken_in = dt * of_decay, (x * (of_input / of_decay)[..., None]).astype(x.dtype)
    y = ssd_scan(
        taken_in,
        dt,
        -jnp.exp(mixer.A_log[...]),
        B.reshape(*B.shape[:2], c.ngroups, c.d_state),
        C.reshape(*C.shape[:2], c.ngroups, c.d_state),
        segment_ids=layout.segment_ids,
        implementation=named_implementation(c),
    )
    y += (mixer.D_skip[...][:, None] * x).astype(x.dtype)
    return mixer.out_proj(per_token(mixer.norm, y.reshape(z.shape) * silu(z)))
