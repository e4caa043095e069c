"""Any interaction log in a csv, tsv or RecBole .inter file (--data_dir names the file).

    python -m experiments.train --dataset=interactions
"""
from experiments.config import ExperimentConfig
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.model.config import ModelConfig


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        dataset='interactions',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )
