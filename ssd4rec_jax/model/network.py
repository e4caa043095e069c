"""A model as a structure without arrays and a dict of parameters, which is the form that pure functions take."""
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ssd4rec_jax.model.networks import make_network
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, MODEL_AXIS, gathered_array
from ssd4rec_jax.parallel.table_shard import TableShard


class Network(NamedTuple):
    """A model without its arrays: what a pure function needs in addition to the parameters."""

    graphdef: nnx.GraphDef
    num_items: int

    def bind(self, params: dict) -> Any:
        """The network with these parameters (see ssd4rec_jax.model.networks)."""
        return nnx.merge(self.graphdef, nnx.State(params))

    def shard(self, mesh: Mesh) -> TableShard:
        """How the item table is split over the devices of a mesh."""
        return TableShard(self.num_items + 1, mesh.shape[MODEL_AXIS])

    def split(self, params: dict, mesh: Mesh) -> dict:
        """params with the item table padded so that it can be split evenly over the mesh axis `model`."""
        if mesh.shape[MODEL_AXIS] == 1:
            return params
        return {**params, ITEM_EMBEDDING: self.shard(mesh).pad(params[ITEM_EMBEDDING])}

    def whole(self, params: dict) -> dict:
        """params as NumPy arrays on every process, with the item table unpadded; all processes must call it."""
        gathered = jax.tree.map(gathered_array, params)
        if ITEM_EMBEDDING not in params:
            return gathered
        return {**gathered, ITEM_EMBEDDING: gathered[ITEM_EMBEDDING][:self.num_items + 1]}


def init_network(settings: Any, num_items: int, seed: int) -> tuple[Network, dict]:
    """A new model, as its structure and a nested dict of its parameters. settings: of any registered network."""
    graphdef, state = nnx.split(make_network(settings, num_items, nnx.Rngs(seed)))
    return Network(graphdef, num_items), nnx.to_pure_dict(state)


def abstract_network(settings: Any, num_items: int, mesh: Mesh) -> tuple[Network, dict]:
    """A network's structure, and its parameters padded for a mesh, as jax.ShapeDtypeStruct without shardings."""
    networks = []

    def create() -> dict:
        network, params = init_network(settings, num_items, 0)
        networks.append(network)
        return network.split(params, mesh)

    params = jax.eval_shape(create)
    return networks[0], params


def parameters_sha256(params: dict) -> str:
    """SHA-256 hex digest of the names, dtypes, shapes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
