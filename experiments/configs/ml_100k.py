"""MovieLens 100K; the authors give no settings, these are MovieLens 1M's.

    python -m experiments.train --dataset=ml-100k
"""
from experiments.config import ExperimentConfig
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.model.config import ModelConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        dataset='ml-100k',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )
