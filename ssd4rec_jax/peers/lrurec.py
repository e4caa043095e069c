"""LRURec: linear recurrent units, whose states decay and turn by learned complex factors.

Yue et al., "Linear recurrent units for sequential recommendation" (WSDM 2024): its linear recurrence and feed-forward
part, in the order of the authors' released code (github.com/yueqirex/LRURec), which has a learned bias for each item.
"""
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssd4rec_jax.config.peers import LRURecConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.peers.causal import Factory
from ssd4rec_jax.peers.layered import FeedForward, LayeredNetwork

EPSILON = 1e-5
SLOWEST, FASTEST = 0.99, 0.8  # the radii between which the factors begin


class LRURec(LayeredNetwork):
    """Parameters: item_embedding [items + 1, D + 1], whose last column holds the items' biases, a LayerNorm, and those
    of the layers."""

    def __init__(self, config: LRURecConfig, num_items: int, *, rngs: nnx.Rngs):
        make = Factory(config, rngs)
        super().__init__(config, make, make.param(_init, num_items + 1, config.hidden_size + 1))
        self.norm = make.norm(config.hidden_size, EPSILON)
        self.layers = nnx.List([LRULayer(config, make) for _ in range(config.num_layers)])

    def inputs(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """LayerNorm(dropout(item vector))."""
        vectors = self.embedded(items)[..., :-1]
        return per_token(self.norm, dropout(vectors, self.config.dropout_prob, draws, 'embedding'))

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The last feed-forward part, and a 1 that is multiplied by the bias: [rows, n, D + 1]."""
        h = super().finish(states, draws)
        return jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1)


class LRULayer(nnx.Module):
    """LayerNorm(dropout(Re(C h)) + u), where h_t = lambda h_{t-1} + gamma (B u_t) in 2 D complex channels.

    The products B u and Re(C h) have biases. Complex numbers lie as real and imaginary parts, one behind the other.
    """

    def __init__(self, config: LRURecConfig, make: Factory):
        self.config = config
        width, states = config.hidden_size, 2 * config.hidden_size
        self.params_log = make.param(_init_params_log, 3, states)  # of nu, theta and gamma
        self.in_proj = make.linear(width, 2 * states, kernel_init=_init, bias_init=_init)
        self.out_proj = make.linear(2 * states, width, kernel_init=_init, bias_init=_init)
        self.norm = make.norm(width, EPSILON)
        self.ffn = FeedForward(
            width, 4 * width, make, dropout_prob=config.dropout_prob, inner_dropout_prob=config.dropout_prob,
            epsilon=EPSILON, kernel_init=_init, bias_init=_init,
        )

    def mix(
        self, u: jax.Array, carried: None, layout: Layout, draws: Draws | None, name: str
    ) -> tuple[jax.Array, None]:
        """As in Layer."""
        nu, theta, gamma = jnp.exp(self.params_log[...])
        real, imaginary = jnp.split(per_token(self.in_proj, u).astype(nu.dtype), 2, axis=-1)
        inputs, log_factor = jax.lax.complex(real * gamma, imaginary * gamma), jax.lax.complex(-nu, theta)
        h = linear_recurrence(inputs, log_factor, layout.position == 0)
        # Re(C h) = Re(C) Re(h) - Im(C) Im(h); out_proj holds Re(C) above -Im(C).
        out = per_token(self.out_proj, jnp.concatenate([h.real, h.imag], axis=-1).astype(u.dtype))
        return per_token(self.norm, dropout(out, self.config.mixer_dropout_prob, draws, f'{name}.mixer') + u), None


def linear_recurrence(x: jax.Array, log_factor: jax.Array, first: jax.Array) -> jax.Array:
    """h_t = exp(log_factor) h_{t-1} + x_t, [rows, tokens, channels], where h is zero before a history's first token.

    x: complex [rows, tokens, channels]. log_factor: complex [channels]. first: bool [rows, tokens].
    One token after another: the paper's recursive doubling reads all tokens once for each doubling of the distance, and
    takes ten times as long on a CPU.
    """
    factor = jnp.exp(log_factor)

    def step(h, token):
        x, first = token
        h = jnp.where(first[:, None], 0, factor * h) + x
        return h, h

    _, h = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), (jnp.swapaxes(x, 0, 1), first.T))
    return jnp.swapaxes(h, 0, 1)


def _init(key, shape, dtype, **_):
    """The released initial values: N(0, 0.02), cut off at two standard deviations."""
    return 0.02 * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


def _init_params_log(key, shape, dtype):
    """Factors spread evenly over a ring of the complex plane, and inputs scaled to keep the size of the states."""
    radius, angle = jax.random.split(key)
    squared = jax.random.uniform(radius, shape[1:], dtype, FASTEST**2, SLOWEST**2)
    turn = jax.random.uniform(angle, shape[1:], dtype, 0, 2 * np.pi)
    return jnp.stack([jnp.log(-0.5 * jnp.log(squared)), jnp.log(turn), 0.5 * jnp.log(1 - squared)])


register_network('lrurec', LRURecConfig, LRURec)
