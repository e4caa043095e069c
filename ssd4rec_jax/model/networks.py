"""The registered networks, by name, and the interface that a network fulfils.

A network is any flax.nnx module with

    item_embedding   nnx.Param [items + 1, D]; row 0 stands for the mask token and for padding. Items are scored by
                     the dot product of a readout with these rows.
    readout(items, layout, draws)            [rows, segments, D], the hidden state after each packed history
    prefix_readouts(items, layout, draws)    optional: [rows, tokens, D], the readout of every prefix in one pass;
                                             the field or property `prefixes_share_a_pass` of the network's settings
                                             then says whether this is exact
    cloze_readouts(items, layout, draws)     optional: [rows, tokens, D], the readout of each item from all others of
                                             its history, of which those to predict are item 0; the field or property
                                             `offers_cloze` of the network's settings then says that it is there
    no_history(users), prefix_step(items, gaps, number, state)
                                             optional, beside prefix_readouts: the readout of a history that grows by
                                             one item, from the state that the items before it left
    item_vectors(rows)                       optional: [n, D], made from rows [n, D] of the item table, each by itself;
                                             readouts are then multiplied with these instead of the rows
    item_table()                             optional: what the network computes from each item alone, shared by all
                                             batches of an evaluation; `readout` then takes it as `table`, and
                                             `table_is_less_work(tokens)` says whether it saves work
    members(readout, vectors)                optional: [(readout, vectors), ...] of the networks that this one consists
                                             of; the loss is then the mean of theirs
    seen                                     optional: a ssd4rec_jax.model.seen.SeenBias, which adds to the scores of
                                             the items that a history holds; the field `seen_bias` of the network's
                                             settings then says that it is there

items are int32 [rows, tokens], layout is a ssd4rec_jax.model.layout.Layout, draws is a ssd4rec_jax.model.draws.Draws in
training and None elsewhere.
"""
import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.plugs import NETWORK_SETTINGS
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.members import Members
from ssd4rec_jax.model.ssd4rec import SSD4Rec


class NetworkModule(Protocol):
    """What training, ranking and recommending need from a network; this file's docstring lists the optional parts."""

    item_embedding: nnx.Param

    def readout(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The hidden state after each packed history, [rows, segments, D]; arbitrary in empty slots."""


def _ssd4rec(config: ModelConfig, num_items: int, *, rngs: nnx.Rngs) -> SSD4Rec | Members:
    return (SSD4Rec if config.members == 1 else Members)(config, num_items, rngs=rngs)


_MODULES: dict[type, Callable[..., Any]] = {NETWORK_SETTINGS['ssd4rec']: _ssd4rec}


def register_network(name: str, settings: type, module: type) -> None:
    """Make a network available under model.name=name.

    settings: a frozen dataclass with the field `name: str = name`. module: a flax.nnx module class that is called as
    module(settings, num_items, rngs=nnx.Rngs(seed)) and fulfils the interface in this file's docstring.
    """
    NETWORK_SETTINGS[name] = settings
    _MODULES[settings] = module


def make_network(settings: Any, num_items: int, rngs: nnx.Rngs) -> Any:
    """A new network with these settings over a catalogue of num_items items."""
    if type(settings) not in _MODULES:
        # A peer registers itself when its file is imported, and runs of other networks need not import it.
        importlib.import_module(f'ssd4rec_jax.peers.{settings.name}')
    return _MODULES[type(settings)](settings, num_items, rngs=rngs)


def item_vectors(network: Any, rows: jax.Array) -> jax.Array:
    """The vectors [n, D] whose dot products with the network's readouts score the items of rows [n, D] of its table."""
    return network.item_vectors(rows) if hasattr(network, 'item_vectors') else rows


def mean_loss(network: Any, readout: jax.Array, rows: jax.Array, loss: Callable[..., jax.Array]) -> jax.Array:
    """The mean of loss(readout, item vectors) over the networks that a network consists of, or of it alone."""
    vectors = item_vectors(network, rows)
    members = network.members(readout, vectors) if hasattr(network, 'members') else [(readout, vectors)]
    return functools.reduce(jnp.add, [loss(*member) for member in members]) / len(members)
