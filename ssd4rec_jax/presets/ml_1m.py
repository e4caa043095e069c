"""MovieLens 1M as published: 6,040 users, 3,416 items, 981,491 training targets.

    python -m experiments.train --dataset=ml-1m
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The configuration for MovieLens 1M."""
    return RunConfig(
        dataset='ml-1m',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )
