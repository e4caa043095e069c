"""Open a training run for evaluation or recommendation."""
import dataclasses
from pathlib import Path

from experiments.config import ExperimentConfig, from_dict, to_dict
from ssd4rec_jax.checkpoints import Checkpoints, Restored
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset
from ssd4rec_jax.errors import CheckpointError, DataError
from ssd4rec_jax.optimizer import make_optimizer
from ssd4rec_jax.mesh import device_mesh
from ssd4rec_jax.network import Network
from ssd4rec_jax.train_state import TrainState, abstract_state
from ssd4rec_jax.workdir import Workdir, write_json

_PREPARED = 'prepared'


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run's config, data and best parameters (by validation NDCG@10)."""

    config: ExperimentConfig
    dataset: SequenceDataset
    network: Network
    params: dict
    best_epoch: int


def write_config(workdir: Workdir, config: ExperimentConfig, prepared: Path) -> None:
    """Write config.json: the config, and the folder where its data lies prepared."""
    write_json(workdir.config, {**to_dict(config), _PREPARED: str(prepared)})


def read_config(workdir: Workdir) -> tuple[ExperimentConfig, Path] | None:
    """What write_config wrote, None where the workdir holds no run."""
    stored = workdir.read_json(workdir.config)
    if stored is None:
        return None
    prepared = Path(stored.pop(_PREPARED, ''))
    return from_dict(stored), prepared


def load_run(path: str) -> FinishedRun:
    """The run in a workdir, finished or still training.

    CheckpointError where it has no evaluated checkpoint yet, DataError where its prepared data is gone or another.
    """
    workdir = Workdir(path)
    found = read_config(workdir)
    if found is None:
        raise CheckpointError(f'--workdir={path} holds no config.json: name the workdir of a training run')
    config, prepared = found
    dataset = open_dataset(prepared)
    if dataset is None:
        raise DataError(
            f'the prepared data of {path} is no longer in {prepared}: run its training command again, which prepares it'
        )
    optimizer = make_optimizer(config.train, dataset.num_items)
    network, like = abstract_state(config.model, dataset.num_items, optimizer, device_mesh())
    best = _restore_best(Checkpoints(workdir.checkpoints), like)
    if best.meta['fingerprint'] != dataset.fingerprint:
        raise DataError(f'{prepared} no longer holds the data that {path} was trained on: train again')
    return FinishedRun(config, dataset, network, best.state.params, best.meta['stopping']['best_epoch'])


def _restore_best(checkpoints: Checkpoints, like: TrainState) -> Restored:
    """The best checkpoint, also while a training process saves new ones and retires those that are being read."""
    while True:
        before = checkpoints.steps()
        try:
            return checkpoints.restore_best(like)
        except (CheckpointError, FileNotFoundError):
            if checkpoints.steps() == before:
                raise
