"""A log, a model and a run that are small enough for a unit test."""
import numpy as np

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.loss import NoSettings
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.trainer import Trainer

MODEL = ModelConfig(
    hidden_size=8, num_layers=1, d_state=4, headdim=4, beta=0.3, dropout_prob=0.2, norm_embedding=True, dtype='float32',
)
DATA = DataConfig(mask_ratio=0.2, tokens_per_row=128, rows_per_step=8)
LOSS = NoSettings()
TRAIN = TrainConfig(targets_per_step=64, max_epochs=2, checkpoint_seconds=1e6, log_every=3)


def tiny_dataset(users: int = 60, items: int = 30, seed: int = 0) -> SequenceDataset:
    """Random histories of 5 to 12 items; user u has the original id 100 + u, and item i has 1000 + i."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 13, users))])
    return SequenceDataset(
        name='tiny', items=rng.integers(1, items + 1, offsets[-1], dtype=np.int32), offsets=offsets,
        user_ids=np.arange(users) + 100, item_ids=np.arange(1, items + 1) + 1000, fingerprint=f'tiny{seed}',
    )


def history(dataset: SequenceDataset, user: int, held_out: int = 0) -> np.ndarray:
    """A user's items without the last `held_out`."""
    return np.asarray(dataset.items[dataset.offsets[user]:dataset.offsets[user + 1] - held_out])


class Notes(Reporter):
    """Keeps the notes that a run reports."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class StopAfter:
    """Asks for a stop after a number of steps of a session."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def trainer_in(path, *, train=TRAIN, data=DATA, model=MODEL, dataset=None, loss=LOSS, **more) -> Trainer:
    """An opened Trainer for the tiny log, which runs in the folder `path`."""
    workdir = RunFolder(path)
    workdir.lock()
    config = RunConfig('interactions', model, data, train, loss)
    return Trainer(config, dataset or tiny_dataset(), workdir, **more).open()
