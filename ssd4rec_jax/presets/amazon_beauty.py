"""Amazon Beauty as published: 22,363 users, 12,101 items, 131,413 training targets.

    python -m experiments.train --dataset=amazon-beauty
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.presets.families import better


def get_config() -> RunConfig:
    """The configuration for Amazon Beauty."""
    return RunConfig(
        dataset='amazon-beauty',
        model=ModelConfig(num_layers=1, dropout_prob=0.4, norm_embedding=False),
        data=DataConfig(mask_ratio=0.2),
    )


def get_better(hidden_size: int) -> RunConfig:
    """The settings that validation chose for histories of this length (docs/results.md), for a network of any width."""
    return better(
        get_config(), mean_length=8.9, num_items=12_101, num_targets=131_413, hidden_size=hidden_size
    )
