"""Settings that were measured to rank better than the published ones, for short and for long histories.

They were chosen by validation, on a CPU (docs/results.md). What both have in common: all prefixes of a history are read
in one pass where that is exact, a sampled softmax teaches, or a full one where a sample would hold the whole catalogue,
row-wise Adagrad updates the item table, LayerNorm and dropout follow the embedding, and items that a history holds have
a learned bias. Where histories are short, what often followed their newest items ranks higher; elsewhere validation
decides, once the network is trained, whether it does.
"""
import dataclasses
import math

import numpy as np

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.plugs import loss_settings
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig

# Histories with more items than this in the mean are long. Amazon's hold 9 and 10, MovieLens' more than 100.
LONG_ABOVE = 30
# With a larger share of interactions with what a user had before, or more training targets for each item, validation
# decides whether followers help. Beauty has 11 targets for each item and Video Games 17, where weights were measured;
# Wikipedia's edits are 88% repeats.
REPEATS_ABOVE = 0.1
TARGETS_PER_ITEM_BELOW = 30
# The table of followers has 512 bytes for each item, and each device holds all of it.
FIT_FOLLOWERS_UP_TO = 2**20  # items
SMALL = 64
# Where items come back, what was seen before ranks well after the first epoch, and what the network adds comes late: on
# Wikipedia's edits two of three trainings ended after 8 and 9 epochs, though their best ones are the 33rd and 35th.
PATIENCE, PATIENCE_WITH_REPEATS = 6, 16
MEMBERS, FOLLOWER_WEIGHT_OF_MEMBERS = 3, 1.5  # Their mean is surer than one network, and leans less on counts.


@dataclasses.dataclass(frozen=True)
class Family:
    """What depends on how long histories are; the fields are settings of the sections model, data and train."""

    num_layers: int
    beta: float
    dropout_prob: float
    mask_ratio: float
    most_negatives: int
    max_epochs: int
    schedule: str
    follower_weight: float


SHORT = Family(
    num_layers=1, beta=0.1, dropout_prob=0.3, mask_ratio=0.2, most_negatives=2048, max_epochs=48,
    schedule='warmup_cosine', follower_weight=2.0,
)
LONG = Family(
    num_layers=2, beta=0.0, dropout_prob=0.2, mask_ratio=0.1, most_negatives=1024, max_epochs=40,
    schedule='constant', follower_weight=0.0,
)


def better(
    published: RunConfig, *, mean_length: float, num_items: int, num_targets: int, repeats: float = 0.0,
    hidden_size: int = SMALL, fit_followers: bool = True,
) -> RunConfig:
    """The settings for a log of this kind, on the data that the published ones prepare.

    mean_length: the number of items of a history in the mean. num_targets: how many training targets an epoch has.
    repeats: the share of interactions with an item that the user had before. fit_followers: whether validation decides
    over followers where they have no weight here.
    """
    family = LONG if mean_length > LONG_ABOVE else SHORT
    has_followers = repeats <= REPEATS_ABOVE and num_targets < TARGETS_PER_ITEM_BELOW * num_items
    follower_weight = family.follower_weight if has_followers else 0.0
    model = ModelConfig(
        hidden_size=hidden_size, num_layers=family.num_layers, beta=family.beta, dropout_prob=family.dropout_prob,
        norm_embedding=True, seen_bias=True,
        follower_weight=follower_weight,
        fit_followers=fit_followers and not follower_weight and num_items <= FIT_FOLLOWERS_UP_TO,
    )
    sampled = TrainConfig(loss='sampled', num_negatives=family.most_negatives)
    full = TrainConfig(loss='full', table_optimizer='adagrad')
    train = dataclasses.replace(
        sampled if num_items > family.most_negatives else full, objective='fastest',
        # About a hundred steps an epoch teach a small log, and a step of 1,024 targets keeps the matrix units of a CPU
        # busy.
        targets_per_step=int(np.clip(2 ** round(math.log2(max(num_targets, 1) / 100)), 64, 1024)),
        max_epochs=family.max_epochs, patience=PATIENCE if repeats <= REPEATS_ABOVE else PATIENCE_WITH_REPEATS,
        schedule=family.schedule, warmup_share=0.05,
    )
    data = dataclasses.replace(published.data, mask_ratio=family.mask_ratio)
    return dataclasses.replace(published, model=model, data=data, train=train, loss=loss_settings(train.loss)())


def side_by_side(config: RunConfig) -> RunConfig:
    """The same settings for networks that learn side by side, where that was measured: with short histories.

    It takes MEMBERS times as long, and ranks Beauty's test items 2 to 3% better (docs/results.md).
    """
    if not config.model.follower_weight:
        return config
    model = dataclasses.replace(config.model, members=MEMBERS, follower_weight=FOLLOWER_WEIGHT_OF_MEMBERS)
    return dataclasses.replace(config, model=model)
