"""A model as a structure without arrays and a dict of its parameters, which is how pure functions take it."""
import hashlib
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ssd4rec_jax.mesh import ITEM_TABLE, MODEL_AXIS, gathered_array
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from ssd4rec_jax.table_shard import TableShard


class Network(NamedTuple):
    """A model without its arrays: what a pure function needs beside `params`."""

    graphdef: nnx.GraphDef
    num_items: int

    def bind(self, params: dict) -> SSD4Rec:
        return nnx.merge(self.graphdef, nnx.State(params))

    def table(self, mesh: Mesh) -> TableShard:
        """How the item table lies on a mesh."""
        return TableShard(self.num_items + 1, mesh.shape[MODEL_AXIS])

    def split(self, params: dict, mesh: Mesh) -> dict:
        """params with the item table as its devices hold it together."""
        if mesh.shape[MODEL_AXIS] == 1:
            return params
        return {**params, ITEM_TABLE: self.table(mesh).pad(params[ITEM_TABLE])}

    def whole(self, params: dict) -> dict:
        """params as NumPy arrays on every process, the item table without padding."""
        gathered = jax.tree.map(gathered_array, params)
        if ITEM_TABLE not in params:
            return gathered
        return {**gathered, ITEM_TABLE: gathered[ITEM_TABLE][:self.num_items + 1]}


def init_network(config, num_items: int, seed: int) -> tuple[Network, dict]:
    """A new model as (its structure, its parameters as a nested dict)."""
    graphdef, state = nnx.split(SSD4Rec(config, num_items, rngs=nnx.Rngs(seed)))
    return Network(graphdef, num_items), nnx.to_pure_dict(state)


def parameters_sha256(params: dict) -> str:
    """Digest over names, dtypes, shapes and bytes of all parameters, names ascending."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
