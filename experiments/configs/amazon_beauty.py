"""Amazon Beauty as published: 22,363 users, 12,101 items, 131,413 training targets.

    python -m experiments.train --dataset=amazon-beauty
"""
from experiments.config import ExperimentConfig
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.model.config import ModelConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        dataset='amazon-beauty',
        model=ModelConfig(num_layers=1, dropout_prob=0.4, norm_embedding=False),
        data=DataConfig(mask_ratio=0.2),
    )
