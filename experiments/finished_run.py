"""Open a training run for evaluation or recommendation."""
import dataclasses

from experiments.config import ExperimentConfig, from_dict
from ssd4rec_jax.checkpoints import Checkpoints
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.optimizer import make_optimizer
from ssd4rec_jax.train_state import Network, data_mesh, init_network, init_state
from ssd4rec_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run's config, data and best parameters (by validation NDCG@10)."""

    config: ExperimentConfig
    dataset: SequenceDataset
    network: Network
    params: dict
    best_epoch: int


def load_run(path: str) -> FinishedRun:
    """The run in a workdir; CheckpointError where it has no evaluated checkpoint yet."""
    workdir = Workdir(path)
    stored = workdir.read_json(workdir.config)
    if stored is None:
        raise CheckpointError(f'--workdir={path} holds no config.json: name the workdir of a training run')
    config = from_dict(stored)
    raise NotImplementedError
