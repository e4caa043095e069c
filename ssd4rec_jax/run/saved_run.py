"""Open the folder of a training run, finished or still training, to answer with it."""
import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from ssd4rec_jax.config.run import RunConfig, from_dict, to_dict
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, with_split
from ssd4rec_jax.errors import CheckpointError, DataError
from ssd4rec_jax.files import write_json
from ssd4rec_jax.model.network import Network, abstract_network
from ssd4rec_jax.parallel.mesh import device_mesh, shardings
from ssd4rec_jax.run.checkpoints import Checkpoints, Restored
from ssd4rec_jax.run.folder import RunFolder

_PREPARED = 'prepared'


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run's config, data and best parameters (by validation NDCG@10).

    params: placed on the mesh, the item table split over `model` and padded where it does not divide evenly.
    """

    config: RunConfig
    dataset: SequenceDataset
    mesh: Mesh
    network: Network
    params: dict
    best_epoch: int


def write_config(folder: RunFolder, config: RunConfig, prepared: Path) -> None:
    """Write config.json: the config, and the folder where its data lies prepared."""
    write_json(folder.config, {**to_dict(config), _PREPARED: str(prepared)})


def read_config(folder: RunFolder) -> tuple[RunConfig, Path] | None:
    """What write_config wrote, None where the folder holds no run."""
    stored = folder.read_json(folder.config)
    if stored is None:
        return None
    prepared = Path(stored.pop(_PREPARED, ''))
    return from_dict(stored), prepared


def load_run(path: str | Path, *, model_shards: int = 1) -> SavedRun:
    """The run in a folder, on all devices, model_shards of which share the item table; trained on any number of them.

    CheckpointError where it has no evaluated checkpoint yet, DataError where its prepared data is gone or another.
    """
    folder = RunFolder(path)
    found = read_config(folder)
    if found is None:
        raise CheckpointError(f'--workdir={path} holds no config.json: name the workdir of a training run')
    config, prepared = found
    dataset = open_dataset(prepared)
    if dataset is None:
        raise DataError(
            f'the prepared data of {path} is no longer in {prepared}: run its training command again, which prepares it'
        )
    dataset = with_split(dataset, config.data)
    mesh = device_mesh(model_shards=model_shards)
    network, like = abstract_network(config.model, dataset.num_items, mesh)
    placed = jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), like, shardings(like, mesh)
    )
    best = _restore_best(Checkpoints(folder.checkpoints, rows=dataset.num_items + 1), {'params': placed})
    if best.meta['fingerprint'] != dataset.fingerprint:
        raise DataError(f'{prepared} no longer holds the data that {path} was trained on: train again')
    return SavedRun(config, dataset, mesh, network, best.state['params'], best.meta['stopping']['best_epoch'])


def _restore_best(checkpoints: Checkpoints, like: dict) -> Restored:
    """The best checkpoint, also while a training process saves new ones and retires those that are being read."""
    while True:
        before = checkpoints.steps()
        try:
            return checkpoints.restore_best(like)
        except (CheckpointError, FileNotFoundError):
            if checkpoints.steps() == before:
                raise
