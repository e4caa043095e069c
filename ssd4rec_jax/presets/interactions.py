"""Any interaction log in a csv, tsv or RecBole .inter file, which --data_dir names.

    python -m experiments.train --dataset=interactions
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The configuration for any interaction log."""
    return RunConfig(
        dataset='interactions',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )
