"""What all peers share: an item table, and a value at each item that depends on nothing after it."""
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.peers import PeerConfig
from ssd4rec_jax.model.dense import dot_general
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.dtypes import compute_dtype
from ssd4rec_jax.model.layout import Layout, take_tokens
from ssd4rec_jax.model.mamba2 import LINEAR_INIT


class Factory:
    """Makes the modules of one network, which share dtypes and random numbers."""

    def __init__(self, config: PeerConfig, rngs: nnx.Rngs):
        self.dtype = compute_dtype(config.dtype)
        self.param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        self.rngs = rngs

    def linear(self, inputs: int, outputs: int, **more: Any) -> nnx.Linear:
        """A linear layer: weights from N(0, 0.02), biases 0, unless `more` says otherwise."""
        settings: dict[str, Any] = dict(kernel_init=LINEAR_INIT, dot_general=dot_general) | more
        return nnx.Linear(inputs, outputs, dtype=self.dtype, param_dtype=self.param_dtype, rngs=self.rngs, **settings)

    def norm(self, width: int, epsilon: float, **more: Any) -> nnx.LayerNorm:
        """A LayerNorm over the last axis, with the two-pass variance as in torch."""
        return nnx.LayerNorm(
            width, epsilon=epsilon, use_fast_variance=False, dtype=self.dtype, param_dtype=self.param_dtype,
            rngs=self.rngs, **more,
        )

    def param(self, init: Callable[..., jax.Array], *shape: int, **more: Any) -> nnx.Param:
        """A parameter init(key, shape, dtype, **more)."""
        return nnx.Param(init(self.rngs.params(), shape, self.param_dtype, **more))


def conv_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, *, fan_in: int = 0) -> jax.Array:
    """torch's initial values of a depthwise convolution: uniform within fan_in^-1/2.

    fan_in: the number of taps; 0 takes shape[0], that of a kernel.
    """
    bound = (fan_in or shape[0])**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class CausalNetwork(nnx.Module):
    """A network that reads each history from left to right: its state at an item is that of the prefix that ends there.

    A subclass gives `states`, which looks back over each history, and `finish`, which acts on each item by itself and
    is computed only where it is read. Row 0 of the item table stands for padding and for masked items.
    """

    def __init__(self, config: PeerConfig, make: Factory, table: nnx.Param):
        self.config = config
        self.dtype = make.dtype
        self.item_embedding = table

    def states(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """What `finish` takes, at every item: [rows, tokens, width]; arbitrary in padding.

        items: int32 [rows, tokens]. draws: None means no dropout.
        """
        raise NotImplementedError

    def end_states(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """`states` at the last item of each history alone, [rows, segments, width]; a subclass may compute less."""
        return take_tokens(self.states(items, layout, draws), layout.ends)

    def finish(self, states: jax.Array, draws: Draws | None) -> jax.Array:
        """The readouts [rows, n, D] of some items from their states [rows, n, width]."""
        raise NotImplementedError

    def readout(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The readout of each history, [rows, segments, D]; arbitrary in empty slots."""
        return self.finish(self.end_states(items, layout, draws), draws and draws.at(layout.ends))

    def prefix_readouts(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The `readout` of the prefix that ends at each item, [rows, tokens, D].

        ValueError unless config.prefixes_share_a_pass.
        """
        if not self.config.prefixes_share_a_pass:
            raise ValueError(f'prefixes share no pass in {self.config.name}')
        return self.finish(self.states(items, layout, draws), draws)

    def embedded(self, items: jax.Array) -> jax.Array:
        """The vectors of items int32 [rows, tokens]: [rows, tokens, D]."""
        return jnp.take(self.item_embedding[...], items, axis=0, mode='clip').astype(self.dtype)
