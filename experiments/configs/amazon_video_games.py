"""Amazon Video Games as published: 24,303 users, 10,672 items.

    python -m experiments.train --dataset=amazon-video-games
"""
from experiments.config import ExperimentConfig
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.model.config import ModelConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        dataset='amazon-video-games',
        model=ModelConfig(num_layers=1, dropout_prob=0.4, norm_embedding=False),
        data=DataConfig(mask_ratio=0.1),
    )
