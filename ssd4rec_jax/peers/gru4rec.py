"""GRU4Rec: a gated recurrent unit over the item vectors.

Hidasi et al., "Session-based recommendations with recurrent neural networks" (ICLR 2016), eq. 2 to 5, in the form that
later papers compare with (RecBole's, after Tan et al., DLRS 2016): trained on every prefix of a history, with
cross-entropy over the catalogue, and with one dense layer from the state to the item space. The reset gate multiplies
what the state gives to the candidate, as in torch, and not the state itself.
"""
import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.peers import GRU4RecConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.peers.causal import CausalNetwork, Factory

XAVIER = nnx.initializers.xavier_uniform()


class GRU4Rec(CausalNetwork):
    """Parameters: item_embedding [items + 1, D]; for each layer an input and a state kernel [., 3 inner_size], without
    biases; a dense layer [inner_size, D]."""

    def __init__(self, config: GRU4RecConfig, num_items: int, *, rngs: nnx.Rngs):
        make = Factory(config, rngs)
        super().__init__(config, make, make.param(nnx.initializers.xavier_normal(), num_items + 1, config.hidden_size))
        widths = [config.hidden_size] + [config.inner_size] * config.num_layers
        self.inputs = nnx.List([
            make.linear(width, 3 * config.inner_size, use_bias=False, kernel_init=XAVIER) for width in widths[:-1]
        ])
        self.recurrent = nnx.List([
            make.param(XAVIER, config.inner_size, 3 * config.inner_size) for _ in range(config.num_layers)
        ])
        uniform = _uniform(config.inner_size**-0.5)
        self.dense = make.linear(config.inner_size, config.hidden_size, kernel_init=uniform, bias_init=uniform)

    def states(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """The states of the last recurrent layer."""
        h = dropout(self.embedded(items), self.config.dropout_prob, draws, 'embedding')
        for inputs, kernel in zip(self.inputs, self.recurrent, strict=True):
            h = gru(per_token(inputs, h), kernel[...], layout.position == 0).astype(self.dtype)
        return h

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The dense layer."""
        return per_token(self.dense, states)


def _uniform(bound):
    """torch's initial values of a linear layer: uniform within 1 / sqrt(inputs)."""
    return lambda key, shape, dtype, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


@jax.custom_vjp
def gru(x: jax.Array, kernel: jax.Array, first: jax.Array) -> jax.Array:
    """The states of a gated recurrent unit, [rows, tokens, H], which begins with zeros at each history's first token.

    x: [rows, tokens, 3 H], what the inputs give to the reset gate r, the update gate z and the candidate n.
    kernel: [H, 3 H], what the state before gives to them. first: bool [rows, tokens].
    r = sigmoid(x_r + h K_r), z = sigmoid(x_z + h K_z), n = tanh(x_n + r h K_n), and the new h is (1 - z) n + z h, in
    float32 or wider.
    """
    wide = x.astype(kernel.dtype)

    def step(h, token):
        x, first = token
        h = jnp.where(first[:, None], 0, h)
        r, z, n = _gates(x, h @ kernel)
        h = (1 - z) * n + z * h
        return h, h

    h = jnp.zeros_like(wide[:, 0, :kernel.shape[0]] + kernel[0, 0])
    return _by_row(jax.lax.scan(step, h, (_by_token(wide), first.T))[1])


def _gates(x, from_state):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, axis=-1), jnp.split(from_state, 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h_r)
    return r, jax.nn.sigmoid(x_z + h_z), jnp.tanh(x_n + r * h_n)


def _by_token(x):
    return jnp.swapaxes(x, 0, 1)


_by_row = _by_token


def _gru_fwd(x, kernel, first):
    h = gru(x, kernel, first)
    return h, (x, kernel, first, h)


def _gru_bwd(residuals, g):
    """The backward pass, whose loop carries the gradient of the state alone.

    All that the states before give is computed at once for all tokens, and so is the gradient of the kernel.
    """
    x, kernel, first, h = residuals
    before = jnp.where(first[..., None], 0, jnp.roll(h, 1, axis=1))
    from_state = before @ kernel
    r, z, n = _gates(x.astype(kernel.dtype), from_state)
    h_n = jnp.split(from_state, 3, axis=-1)[2]
    # The gradient of a new state, times these, is that of what enters n, z and r before their activations.
    to_n = (1 - z) * (1 - n**2)
    to_z = (before - n) * z * (1 - z)
    to_r = to_n * h_n * r * (1 - r)

    def step(carried, token):
        g, to_r, to_z, to_n, r, z, first = token
        g = g + carried
        of_state = jnp.concatenate([g * to_r, g * to_z, g * to_n * r], axis=-1)
        before = g * z + of_state @ kernel.T
        return jnp.where(first[:, None], 0, before), g

    tokens = tuple(map(_by_token, (g, to_r, to_z, to_n, r, z, first)))
    g = _by_row(jax.lax.scan(step, jnp.zeros_like(to_n[:, 0]), tokens, reverse=True)[1])
    of_x = jnp.concatenate([g * to_r, g * to_z, g * to_n], axis=-1)
    of_state = jnp.concatenate([g * to_r, g * to_z, g * to_n * r], axis=-1)
    return of_x.astype(x.dtype), jnp.einsum('rth,rtg->hg', before, of_state), None


gru.defvjp(_gru_fwd, _gru_bwd)
register_network('gru4rec', GRU4RecConfig, GRU4Rec)
