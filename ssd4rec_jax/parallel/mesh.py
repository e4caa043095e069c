"""The devices of a run as a mesh `data` x `model`, and who holds what on it.

Batches are split by rows over all devices, whatever their axis: no device repeats another's work. The item table and its
optimiser state are split by rows over `model` and repeated over `data`; everything else is repeated everywhere.
"""
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssd4rec_jax.errors import ConfigError

DATA_AXIS, MODEL_AXIS = 'data', 'model'
AXES = (DATA_AXIS, MODEL_AXIS)
ITEM_EMBEDDING = 'item_embedding'


def device_mesh(devices=None, model_shards: int = 1) -> Mesh:
    """Mesh of all devices of all processes (or those given), model_shards of them along `model`."""
    devices = jax.devices() if devices is None else list(devices)
    if model_shards < 1 or len(devices) % model_shards:
        raise ConfigError(
            f'--model_shards={model_shards} does not divide the {len(devices)} devices: choose a divisor of {len(devices)}'
        )
    shape = len(devices) // model_shards, model_shards
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Sharding of a PackedBatch: its rows are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def by_item(mesh: Mesh) -> NamedSharding:
    """Sharding of an array with an entry a row of the item table, padding included."""
    return NamedSharding(mesh, PartitionSpec(MODEL_AXIS))


def rows_here(mesh: Mesh, rows: int) -> np.ndarray:
    """The row numbers int64 [n] of a batch of `rows` that this process's devices hold, ascending."""
    held = by_rows(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def place_rows(batch, mesh: Mesh, rows: int):
    """A step's batch of `rows` rows on the mesh, from this process's share of them (a pytree of arrays)."""
    sharding = by_rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a), (rows, *a.shape[1:])), batch
    )


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split by rows that this process's devices hold, ascending."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def gathered_array(array: jax.Array) -> np.ndarray:
    """The whole of an array on every process; collective where the devices of others hold parts of it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def specs(tree):
    """PartitionSpec of each leaf of a tree of parameters or optimiser state: item tables are split, the rest is not."""
    def spec(path, _):
        return PartitionSpec(MODEL_AXIS) if ITEM_EMBEDDING in map(_name, path) else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree, mesh: Mesh):
    """`specs` as NamedShardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))


def _name(key) -> str:
    return str(getattr(key, 'key', getattr(key, 'name', None)))


def over_devices(body, mesh: Mesh, in_specs, out_specs):
    """shard_map of a per-device body over the whole mesh."""
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
