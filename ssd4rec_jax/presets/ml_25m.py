"""MovieLens 25M; the authors give no settings, these are MovieLens 1M's.

    python -m experiments.train --dataset=ml-25m
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The settings of this data set."""
    return RunConfig(
        dataset='ml-25m',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )
