"""Amazon Video Games as published: 24,303 users, 10,672 items.

    python -m experiments.train --dataset=amazon-video-games
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.presets.families import better


def get_config() -> RunConfig:
    """The configuration for Amazon Video Games."""
    return RunConfig(
        dataset='amazon-video-games',
        model=ModelConfig(num_layers=1, dropout_prob=0.4, norm_embedding=False),
        data=DataConfig(mask_ratio=0.1),
    )


def get_better(hidden_size: int) -> RunConfig:
    """The settings that validation chose for histories of this length (docs/results.md), for a network of any width."""
    return better(
        get_config(), mean_length=9.5, num_items=10_672, num_targets=158_871, hidden_size=hidden_size
    )
