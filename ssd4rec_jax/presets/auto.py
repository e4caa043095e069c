"""Settings that fit a log and a machine, for who names no preset."""
import math

import numpy as np

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.data.dataset import SequenceDataset

# Above this mean length of a history reading all its prefixes in one pass saves more than its noisier gradient costs.
_LONG = 30


def auto_config(dataset: SequenceDataset, *, platform: str) -> tuple[RunConfig, str]:
    """(settings for this log on this platform, a sentence that says what was chosen and why).

    A small network with LayerNorm and dropout on the embedding, a sampled softmax and row-wise Adagrad for the item
    table: on the logs measured so far it learns several times faster than the published settings, to a better ranking
    (docs/measurements.md). On 'gpu' and 'tpu' it is as wide as the published one.
    """
    mean = float(np.mean(dataset.lengths))
    is_long = mean > _LONG
    targets = int(np.maximum(dataset.lengths - 3, 1).sum())
    hidden_size = 64 if platform == 'cpu' else 256
    # About a hundred steps an epoch teach a small log, and a step of 1,024 targets keeps the matrix units of a CPU
    # busy.
    targets_per_step = int(np.clip(2 ** round(math.log2(max(targets, 1) / 100)), 64, 1024))
    negatives = int(np.clip(2 ** math.ceil(math.log2(dataset.num_items)), 64, 2048))
    config = RunConfig(
        dataset.name,
        ModelConfig(hidden_size=hidden_size, num_layers=1, dropout_prob=0.3, norm_embedding=True),
        DataConfig(mask_ratio=0.2, min_interactions=1),
        TrainConfig(
            objective='one_pass' if is_long else 'prefix', loss='sampled', num_negatives=negatives,
            targets_per_step=targets_per_step, max_epochs=50, patience=5,
        ),
    )
    return config, (
        f'settings: {hidden_size} wide, 1 layer, {config.train.objective} '
        f'(histories hold {mean:.0f} items on average), '
        f'{negatives:,} negatives of {dataset.num_items:,} items, {targets_per_step:,} targets per step'
    )
