"""MovieLens 1M as published: 6,040 users, 3,416 items, 981,491 training targets.

    python -m experiments.train --dataset=ml-1m
"""
from experiments.config import ExperimentConfig
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.model.config import ModelConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        dataset='ml-1m',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )
