"""Networks of layers that first look back over a history and then act on each item by itself."""
from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import nnx

from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.gelu import gelu
from ssd4rec_jax.model.layout import Layout, take_tokens
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.peers.causal import CausalNetwork, Factory
from ssd4rec_jax.peers.newest import newest


class FeedForward(nnx.Module):
    """LayerNorm(dropout(W2 dropout(activation(W1 h))) + h), where the rate of the inner dropout is its own.

    linear: initial values of W1 and W2, as in Factory.linear. The activation is the exact (erf) gelu unless given.
    """

    def __init__(
        self, hidden_size: int, inner_size: int, make: Factory, *, dropout_prob: float, inner_dropout_prob: float,
        epsilon: float, activation: Callable[[jax.Array], jax.Array] = gelu, **linear: Any,
    ):
        self.dropout_prob, self.inner_dropout_prob, self.activation = dropout_prob, inner_dropout_prob, activation
        self.w_1 = make.linear(hidden_size, inner_size, **linear)
        self.w_2 = make.linear(inner_size, hidden_size, **linear)
        self.norm = make.norm(hidden_size, epsilon)

    def __call__(self, h: jax.Array, draws: Draws | None, name: str) -> jax.Array:
        """[rows, tokens, D] -> [rows, tokens, D]. name: what the random draws are named by."""
        inner = dropout(self.activation(per_token(self.w_1, h)), self.inner_dropout_prob, draws, f'{name}.inner')
        return per_token(self.norm, dropout(per_token(self.w_2, inner), self.dropout_prob, draws, f'{name}.out') + h)


class Layer(Protocol):
    """What LayeredNetwork needs of a layer."""

    @property
    def ffn(self) -> Callable[[jax.Array, Draws | None, str], jax.Array]:
        """What the layer does to each item by itself: (what mix gives, draws, what they are named by) -> [..., D]."""

    def mix(
        self, u: jax.Array, carried: Any, layout: Layout, draws: Draws | None, name: str
    ) -> tuple[jax.Array, Any]:
        """The layer up to its feed-forward part, [rows, tokens, width], and what the next layer is given beside it.

        name: what the random draws are named by.
        """


class LayeredNetwork(CausalNetwork):
    """A network of layers, each `mix` and then `ffn`; the last ffn is computed only at the items that are read.

    So is all of the last layer where it has a method mix_at_ends, which takes what `mix` takes and returns what `mix`
    gives at the last item of each history, [rows, segments, D].

    A subclass gives `inputs` and the list `layers`. Where the settings have a max_length, that many of the newest items
    of each history are read.
    """

    layers: nnx.List[Layer]

    def inputs(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """What enters the first layer, [rows, tokens, D]."""
        raise NotImplementedError

    def carried(self, layout: Layout, draws: Draws | None) -> Any:
        """What the first layer is given beside it; None where layers need nothing."""
        return None

    def states(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """What enters the last feed-forward part."""
        last, *entering = self._last_layer(items, layout, draws)
        return last.mix(*entering)[0]

    def end_states(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """The same at the last item of each history alone, [rows, segments, D]."""
        last, *entering = self._last_layer(items, layout, draws)
        if hasattr(last, 'mix_at_ends'):
            return last.mix_at_ends(*entering)
        return take_tokens(last.mix(*entering)[0], layout.ends)

    def _last_layer(self, items, layout, draws):
        """The last layer, and what its `mix` is given."""
        if max_length := getattr(self.config, 'max_length', 0):
            layout = newest(layout, max_length)
        h, carried = self.inputs(items, layout, draws), self.carried(layout, draws)
        *others, last = self.layers
        for number, layer in enumerate(others):
            h, carried = layer.mix(h, carried, layout, draws, f'layer{number}')
            h = layer.ffn(h, draws, f'layer{number}.ffn')
        return last, h, carried, layout, draws, f'layer{len(others)}'

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The last feed-forward part."""
        return self.layers[-1].ffn(states, draws, f'layer{len(self.layers) - 1}.ffn')
