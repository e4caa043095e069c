"""The plain form of the algorithm as a Network, so that the same train step and ranker can run it."""
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from ssd4rec_jax.parallel.table_shard import TableShard


class PlainModel(NamedTuple):
    """A network module, as a train step and a Ranker use it, that computes with the plain algorithm."""

    model: SSD4Rec

    @property
    def item_embedding(self) -> nnx.Param:
        """The item table of the model."""
        return self.model.item_embedding

    def readout(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The same as SSD4Rec.readout."""
        return plain_readout(self.model, items, layout, draws)


class PlainNetwork(NamedTuple):
    """A Network whose models compute with the plain algorithm."""

    network: Network

    @property
    def num_items(self) -> int:
        """The same as Network.num_items."""
        return self.network.num_items

    @property
    def shard(self) -> Callable[[Mesh], TableShard]:
        """The same as Network.shard."""
        return self.network.shard

    @property
    def split(self) -> Callable[[dict, Mesh], dict]:
        """The same as Network.split."""
        return self.network.split

    def bind(self, params: dict) -> PlainModel:
        """The plain model with these parameters."""
        return PlainModel(self.network.bind(params))
