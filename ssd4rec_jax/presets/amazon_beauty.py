"""Amazon Beauty as published: 22,363 users, 12,101 items, 131,413 training targets.

    python -m experiments.train --dataset=amazon-beauty
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The configuration for Amazon Beauty."""
    return RunConfig(
        dataset='amazon-beauty',
        model=ModelConfig(num_layers=1, dropout_prob=0.4, norm_embedding=False),
        data=DataConfig(mask_ratio=0.2),
    )
