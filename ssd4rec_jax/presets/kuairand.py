"""KuaiRand-Pure as published: 23,951 users, 7,111 items, 1,062,567 training targets.

    python -m experiments.train --dataset=kuairand
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.presets.families import better


def get_config() -> RunConfig:
    """The configuration for KuaiRand-Pure."""
    return RunConfig(
        dataset='kuairand',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.2),
    )


def get_better(hidden_size: int) -> RunConfig:
    """The settings that validation chose for histories of this length (docs/results.md), for a network of any width."""
    return better(
        get_config(), mean_length=47.4, num_items=7_111, num_targets=1_062_567, hidden_size=hidden_size
    )
