"""Training that goes on from a model when its log has become longer: what it begins with and what it reads."""
import dataclasses
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex

# The optimiser begins anew, and its first steps move each parameter by about the whole rate: at the rates of a training
# they would undo what it has learnt. The rates are no share of the run's own, which may itself be such a training.
LEARNING_RATE, TABLE_LEARNING_RATE, SEEN_LEARNING_RATE, EPOCHS = 3e-5, 3e-3, 1e-3, 1


class WarmStart(NamedTuple):
    """params: what a new run begins with, whole NumPy arrays. users: bool [users], whose histories it trains on."""

    params: dict
    users: np.ndarray


def users_to_read(dataset: SequenceDataset, lengths_before: np.ndarray, *, seed: int) -> np.ndarray:
    """bool [users]: those whose histories have grown, and half as many others, drawn so that nothing is forgotten.

    lengths_before: int [users before], interactions of each; users behind them are new.
    """
    before = np.pad(lengths_before, (0, dataset.num_users - len(lengths_before)))
    read = dataset.lengths > before
    others = np.flatnonzero(~read)
    read[np.random.default_rng(seed).permutation(others)[:-(-read.sum() // 2)]] = True
    return read


def examples_of(examples: ExampleIndex, users: np.ndarray, dataset: SequenceDataset) -> ExampleIndex:
    """The examples of these users, bool [users]; all of them where these users have none."""
    chosen = users[np.searchsorted(dataset.offsets, examples.start, side='right') - 1]
    return examples.of(chosen) if chosen.any() else examples


def warm_config(config: RunConfig) -> RunConfig:
    """The config of a training that goes on: one epoch, at low and constant rates."""
    train = config.train
    return dataclasses.replace(config, train=dataclasses.replace(
        train, max_epochs=EPOCHS, learning_rate=min(train.learning_rate, LEARNING_RATE),
        table_learning_rate=min(train.table_learning_rate, TABLE_LEARNING_RATE),
        seen_learning_rate=min(train.seen_learning_rate, SEEN_LEARNING_RATE), schedule='constant', warmup_steps=0,
        decay_steps=0,
    ))
