"""Mamba's block and its selective scan (Gu and Dao, 2023, algorithm 2 and figure 3), within each history."""
import math

import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.short_conv import short_conv
from ssd4rec_jax.model.silu import silu
from ssd4rec_jax.peers.causal import Factory

CHUNK = 64  # The scan keeps one state for each so many tokens; its backward pass computes the others again.


class Mamba1(nnx.Module):
    """Parameters: in_proj [D, 2 E], conv_kernel [d_conv, E], conv_bias [E], x_proj [E, dt_rank + 2 N], dt_proj
    [dt_rank, E] with its bias, A_log [E, N], D_skip [E], out_proj [E, D], where E = expand * D, N is the number of
    states of a channel, and dt_rank = ceil(D / 16).

    The bias of dt_proj begins at 0, as Mamba4Rec's released code leaves it, and not at Mamba's own values.
    """

    def __init__(self, hidden_size: int, d_state: int, d_conv: int, expand: int, make: Factory):
        inner, self.d_state, self.dt_rank = expand * hidden_size, d_state, math.ceil(hidden_size / 16)
        bound = d_conv**-0.5

        def conv_init(key, shape, dtype):  # As in torch's Conv1d.
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        self.in_proj = make.linear(hidden_size, 2 * inner, use_bias=False)
        self.conv_kernel = make.param(conv_init, d_conv, inner)
        self.conv_bias = make.param(conv_init, inner)
        self.x_proj = make.linear(inner, self.dt_rank + 2 * d_state, use_bias=False)
        self.dt_proj = make.linear(self.dt_rank, inner)
        self.A_log = make.param(_init_A_log, inner, d_state)
        self.D_skip = make.param(nnx.initializers.ones, inner)
        self.out_proj = make.linear(inner, hidden_size, use_bias=False)

    def __call__(self, u: jax.Array, layout: Layout) -> jax.Array:
        """The block's output at every token, [rows, tokens, D], in the dtype of u [rows, tokens, D]."""
        x, z = jnp.split(per_token(self.in_proj, u), 2, axis=-1)
        x = short_conv(x, self.conv_kernel[...].astype(x.dtype), self.conv_bias[...].astype(x.dtype), layout)
        dt, B, C = jnp.split(per_token(self.x_proj, x), [self.dt_rank, self.dt_rank + self.d_state], axis=-1)
        A = -jnp.exp(self.A_log[...])
        dt = jax.nn.softplus(per_token(self.dt_proj, dt).astype(A.dtype))
        y = selective_scan(x, dt, A, B, C, layout.position == 0) + self.D_skip[...] * x.astype(A.dtype)
        return per_token(self.out_proj, y.astype(z.dtype) * silu(z))


def _init_A_log(key, shape, dtype):
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)


def selective_scan(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, first: jax.Array
) -> jax.Array:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t and y_t = h_t C_t, where h is zero before the first token of a history.

    x, dt: [rows, tokens, E]. A: [E, N]. B, C: [rows, tokens, N]. first: bool [rows, tokens].
    Returns y [rows, tokens, E] in the dtype of A, in which all is computed.
    """
    tokens = x.shape[1]
    x, dt, B, C = (a.astype(A.dtype) for a in (x, dt, B, C))

    def step(h, token):
        dt, dtx, B, C, first = token
        h = jnp.where(first[:, None, None], 0, h)
        h = jnp.exp(dt[..., None] * A) * h + dtx[..., None] * B[:, None]
        return h, jnp.sum(h * C[:, None], axis=-1)

    def chunks(a):
        """[chunks, CHUNK, rows, ...]"""
        a = jnp.pad(a, [(0, 0), (0, -tokens % CHUNK)] + [(0, 0)] * (a.ndim - 2))
        return jnp.swapaxes(a, 0, 1).reshape(-1, CHUNK, a.shape[0], *a.shape[2:])

    @jax.checkpoint
    def chunk(h, tokens):
        return jax.lax.scan(step, h, tokens)

    h = jnp.zeros_like(x[:, 0, :, None] * B[:, 0, None] * A)
    y = jax.lax.scan(chunk, h, tuple(map(chunks, (dt, dt * x, B, C, first))))[1]
    return jnp.swapaxes(y.reshape(-1, *y.shape[2:])[:tokens], 0, 1)
