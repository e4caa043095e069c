"""The plain form in the place of a Network, so that the same step and the same ranker run it."""
from typing import NamedTuple

from flax import nnx

from ssd4rec_jax.model.network import Network
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.model.ssd4rec import SSD4Rec


class PlainModel(NamedTuple):
    """What a train step and a Ranker ask of a model, by the plain algorithm."""

    model: SSD4Rec

    @property
    def item_embedding(self) -> nnx.Param:
        return self.model.item_embedding

    def readout(self, items, layout, draws=None):
        return plain_readout(self.model, items, layout, draws)


class PlainNetwork(NamedTuple):
    """A Network whose models compute in the plain form."""

    network: Network

    @property
    def num_items(self) -> int:
        return self.network.num_items

    @property
    def shard(self):
        return self.network.shard

    @property
    def split(self):
        return self.network.split

    def bind(self, params: dict) -> PlainModel:
        return PlainModel(self.network.bind(params))
