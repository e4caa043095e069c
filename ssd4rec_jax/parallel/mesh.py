"""The devices of a run as a mesh with the axes `data` and `model`, and how arrays are laid out on it.

The rows of a batch are split over all devices along both axes, so no device repeats the work of another. The item table
and its optimiser state are split by rows over `model` and replicated over `data`. Everything else is replicated on all
devices.
"""
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssd4rec_jax.errors import ConfigError

DATA_AXIS, MODEL_AXIS = 'data', 'model'
AXES = (DATA_AXIS, MODEL_AXIS)
ITEM_EMBEDDING = 'item_embedding'


def device_mesh(devices: Sequence[jax.Device] | None = None, model_shards: int = 1) -> Mesh:
    """The mesh of the given devices, by default all devices of all processes, with model_shards of them along `model`.

    Raises ConfigError where model_shards does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if model_shards < 1 or len(devices) % model_shards:
        raise ConfigError(
            f'--model_shards={model_shards} does not divide the {len(devices)} devices: '
            f'choose a divisor of {len(devices)}'
        )
    shape = len(devices) // model_shards, model_shards
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def token_multiple(mesh: Mesh) -> int:
    """What the tokens of a row should be a multiple of on these devices.

    A GPU's kernels have chunks of 64 tokens, and every array of a row that ends within one would be copied to fill it.
    """
    return 64 if mesh.devices.flat[0].platform == 'gpu' else 16


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a PackedBatch: its rows are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def by_item(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that has one entry per row of the padded item table."""
    return NamedSharding(mesh, PartitionSpec(MODEL_AXIS))


def rows_here(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a batch of `rows` rows that this process's devices hold: int64 [n], ascending."""
    held = by_rows(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def place_rows(batch: Any, mesh: Mesh, rows: int) -> Any:
    """Places a batch of `rows` rows on the mesh.

    batch: a pytree of arrays [n, ...] that hold this process's share of the rows, as rows_here says.
    """
    sharding = by_rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a), (rows, *a.shape[1:])), batch
    )


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split by rows that this process's devices hold, in ascending order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def gathered_array(array: jax.Array) -> np.ndarray:
    """The whole array on every process. All processes must call it where each of them holds only a part."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def specs(tree: Any) -> Any:
    """The PartitionSpec of each leaf in a tree of parameters or optimiser state: only item tables are split.

    What an optimiser of the table keeps beside it, such as Adam's count of steps, has no rows to split.
    """
    def spec(path, leaf):
        is_table = np.ndim(leaf) > 0 and ITEM_EMBEDDING in map(_name, path)
        return PartitionSpec(MODEL_AXIS) if is_table else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The result of `specs` as NamedShardings on the mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree))


def _name(key) -> str:
    return str(getattr(key, 'key', getattr(key, 'name', None)))


def over_devices(body: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """The function that runs body on every device of the mesh, each on its own part of the arguments (shard_map)."""
    return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
