"""Any category of Amazon's reviews of 2014, 2018 or 2023; the settings are those of Video Games.

    python -m experiments.train --dataset=amazon-2023-Video_Games
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config(dataset: str) -> RunConfig:
    """The settings of amazon-YEAR-CATEGORY."""
    return RunConfig(
        dataset=dataset,
        model=ModelConfig(num_layers=1, dropout_prob=0.4, norm_embedding=False),
        data=DataConfig(mask_ratio=0.1),
    )
