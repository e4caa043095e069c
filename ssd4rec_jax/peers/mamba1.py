"""Mamba's block and its selective scan (Gu and Dao, 2023, algorithm 2 and figure 3), within each history."""
import math

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.ssd.decay import sum_to_end
from pallas_kernels.sums import segment_sums
from ssd4rec_jax.model.dense import matmul
from ssd4rec_jax.model.layout import Layout, of_history, take_tokens
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.short_conv import short_conv
from ssd4rec_jax.model.silu import silu
from ssd4rec_jax.peers.causal import Factory, conv_init

# The readout goes over the states of so many tokens at a time, whose arrays stay in a core's cache. It divides the
# tokens of an exported program, whose number is not known while it is traced.
TILE = 128
CHUNK = 16  # The scan keeps one state for each so many tokens; its backward pass computes the others again.


class Mamba1(nnx.Module):
    """Parameters: in_proj [D, 2 E], conv_kernel [d_conv, E], conv_bias [E], x_proj [E, dt_rank + 2 N], dt_proj
    [dt_rank, E] with its bias, A_log [E, N], D_skip [E], out_proj [E, D], where E = expand * D, N is the number of
    states of a channel, and dt_rank = ceil(D / 16).

    The bias of dt_proj begins at 0, as Mamba4Rec's released code leaves it, and not at Mamba's own values.
    """

    def __init__(self, hidden_size: int, d_state: int, d_conv: int, expand: int, make: Factory):
        inner, self.d_state, self.dt_rank = expand * hidden_size, d_state, math.ceil(hidden_size / 16)
        self.in_proj = make.linear(hidden_size, 2 * inner, use_bias=False)
        self.conv_kernel = make.param(conv_init, d_conv, inner)
        self.conv_bias = make.param(conv_init, inner, fan_in=d_conv)
        self.x_proj = make.linear(inner, self.dt_rank + 2 * d_state, use_bias=False)
        self.dt_proj = make.linear(self.dt_rank, inner)
        self.A_log = make.param(_init_A_log, inner, d_state)
        self.D_skip = make.param(nnx.initializers.ones, inner)
        self.out_proj = make.linear(inner, hidden_size, use_bias=False)

    def __call__(self, u: jax.Array, layout: Layout, *, at_ends: bool = False) -> jax.Array:
        """The block's output at every token, [rows, tokens, D], in the dtype of u [rows, tokens, D].

        at_ends: at each history's last token alone instead, [rows, segments, D], arbitrary in empty slots.
        """
        inner, written = self.D_skip.shape[0], self.dt_rank + self.d_state

        def read(a):
            return take_tokens(a, layout.ends) if at_ends else a

        x = _columns(self.in_proj, u, slice(inner))
        x = short_conv(x, self.conv_kernel[...].astype(x.dtype), self.conv_bias[...].astype(x.dtype), layout)
        dt, B = jnp.split(_columns(self.x_proj, x, slice(written)), [self.dt_rank], axis=-1)
        C = _columns(self.x_proj, read(x), slice(written, None))
        A = -jnp.exp(self.A_log[...])
        dt = jax.nn.softplus(per_token(self.dt_proj, dt).astype(A.dtype))
        if at_ends:
            y = selective_readout(x, dt, A, B, C, layout.slot)
        else:
            y = selective_scan(x, dt, A, B, C, layout.position == 0)
        z = _columns(self.in_proj, read(u), slice(inner, None))
        # Flattened, as in per_token.
        y += (self.D_skip[...] * read(x).astype(A.dtype).reshape(-1, inner)).reshape(y.shape)
        return per_token(self.out_proj, y.astype(z.dtype) * silu(z))


def _columns(linear, x, columns):
    """Some columns of the product of x [..., in] with a linear layer that has no bias."""
    y = matmul(x.reshape(-1, x.shape[-1]), linear.kernel[:, columns].astype(x.dtype))
    return y.reshape(*x.shape[:-1], y.shape[-1])


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

    def chunks(a):
        """[chunks, CHUNK, rows, ...]"""
        a = jnp.pad(a, [(0, 0), (0, -tokens % CHUNK)] + [(0, 0)] * (a.ndim - 2))
        return jnp.swapaxes(a, 0, 1).reshape(-1, CHUNK, a.shape[0], *a.shape[2:])

    y = _scan(A.T, *map(chunks, (dt, dt * x, B, C, first)))
    return jnp.swapaxes(y.reshape(-1, *y.shape[2:])[:tokens], 0, 1)


def selective_readout(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, slot: jax.Array
) -> jax.Array:
    """What selective_scan gives at the last token of each history: a sum over its tokens, without any state.

        y = sum_j (sum_n C_n B_jn exp(s_j A_n)) dt_j x_j, where s_j sums dt over the tokens after j

    x, dt: [rows, tokens, E]. A: [E, N]. B: [rows, tokens, N]. C: [rows, segments, N], of the last tokens. slot: int32
    [rows, tokens], as in Layout. Returns [rows, segments, E] in the dtype of A, zero in empty slots.
    """
    x, dt, B, C = (a.astype(A.dtype) for a in (x, dt, B, C))
    after = sum_to_end(dt, slot, reverse=False)
    score = B * of_history(C, slot)

    tokens = math.prod(x.shape[:-1])

    def tiles(a):
        """[tiles, TILE, channels]"""
        a = a.reshape(tokens, -1)
        return jnp.pad(a, [(0, -tokens % TILE), (0, 0)]).reshape(-1, TILE, a.shape[-1])

    weight = _weights(A.T, tiles(after), tiles(score)).reshape(-1, x.shape[-1])[:tokens].reshape(x.shape)
    rows, segments = C.shape[:2]
    flat = slot + (segments + 1) * jnp.arange(rows, dtype=slot.dtype)[:, None]
    sums = segment_sums((weight * dt * x).reshape(-1, x.shape[-1]), flat.reshape(-1), rows * (segments + 1))
    return sums.reshape(rows, segments + 1, -1)[:, :segments]


@jax.custom_vjp
def _weights(A, after, score):
    """sum_n score_n exp(after A_n), [tiles, TILE, E]. A: [N, E]. after: [tiles, TILE, E]. score: [tiles, TILE, N].

    Of a tile one [TILE, E] after another is computed, and computed again in the backward pass.
    """
    def tile(of_tile):
        after, score = of_tile

        def add(total, n):
            A, score = n
            return total + score[:, None] * jnp.exp(after * A), None

        return jax.lax.scan(add, jnp.zeros_like(after), (A, score.T))[0]

    return jax.lax.map(tile, (after, score))


def _weights_bwd(residuals, g):
    A, *tokens = residuals

    def tile(dA, of_tile):
        after, score, g = of_tile

        def add(of_after, n):
            A, score = n
            decayed = g * jnp.exp(after * A)
            of_exponent = decayed * score[:, None]
            return of_after + of_exponent * A, (_summed(after * of_exponent), _summed(decayed.T))

        of_after, (of_A, of_score) = jax.lax.scan(add, jnp.zeros_like(after), (A, score.T))
        return dA + of_A, (of_after, of_score.T)

    zeros = jnp.zeros_like(A + g[0, :1])  # which varies over devices as the tokens do
    dA, of_tokens = jax.lax.scan(tile, zeros, (*tokens, g))
    return dA, *of_tokens


_weights.defvjp(lambda *args: (_weights(*args), args), _weights_bwd)


def _summed(x):
    """The sum of x [n, m] over n, as a product with ones.

    For a plain sum XLA's CPU backend (JAX 0.10) calls a library that takes many times as long where there is one row.
    """
    return jnp.ones(len(x), x.dtype) @ x


@jax.custom_vjp
def _scan(A, dt, dtx, B, C, first):
    """y of all chunks [chunks, CHUNK, rows, E]. A: [N, E]: with E last, sums over N run along whole vectors."""
    return _scan_fwd(A, dt, dtx, B, C, first)[0]


def _scan_fwd(A, dt, dtx, B, C, first):
    def step(h, token):
        *written, C = token
        h = _next(h, A, *written)
        return h, _over_states(h * C[..., None])

    def chunk(h, tokens):
        after, y = jax.lax.scan(step, h, tokens)
        return after, (h, y)

    h = jnp.zeros_like(dt[0, 0, :, None] * B[0, 0, ..., None] * A)
    starts, y = jax.lax.scan(chunk, h, (dt, dtx, B, first, C))[1]
    return y, (A, dt, dtx, B, C, first, starts)


def _next(h, A, dt, dtx, B, first):
    """h [rows, N, E] after a token, from h before it."""
    decay = jnp.exp(dt[:, None] * A)
    # A select and not a product with 0, because the state of the history before may be NaN.
    return jnp.where(first[:, None, None], 0, decay * h) + dtx[:, None] * B[..., None]


def _over_states(x):
    """The sum of x [rows, N, E] over N, in one pass: for jnp.sum a scan takes eight times as long, see _summed."""
    return sum(x[:, n] for n in range(x.shape[1]))


def _scan_bwd(residuals, g):
    """The backward pass: within each chunk the states again, then the gradients g_h of the states from the right."""
    A, *tokens, starts = residuals

    def over_channels(x):
        return _summed(x.reshape(-1, x.shape[-1]).T).reshape(x.shape[:-1])

    def again(before, token):
        h = _next(before, A, *token)
        return h, (before, h)

    def step(carry, token):
        carried, dA = carry
        dt, dtx, B, first, C, g, before, h = token
        first = first[:, None, None]
        g_h = carried + g[:, None] * C[..., None]
        carried = jnp.where(first, 0, jnp.exp(dt[:, None] * A) * g_h)
        of_exponent = carried * jnp.where(first, 0, before)
        return (carried, dA + jnp.sum(of_exponent * dt[:, None], axis=0)), (
            _over_states(of_exponent * A), _over_states(g_h * B[..., None]),
            over_channels(g_h * dtx[:, None]), over_channels(h * g[:, None]),
        )

    def chunk(carry, tokens):
        dt, dtx, B, C, first, start, g = tokens
        written = dt, dtx, B, first
        states = jax.lax.scan(again, start, written)[1]
        return jax.lax.scan(step, carry, (*written, C, g, *states), reverse=True)

    zeros = jnp.zeros_like(starts[0] * g[0, 0, :, None])
    (_, dA), of_tokens = jax.lax.scan(chunk, (zeros, zeros[0]), (*tokens, starts, g), reverse=True)
    return dA, *of_tokens, None


_scan.defvjp(_scan_fwd, _scan_bwd)
