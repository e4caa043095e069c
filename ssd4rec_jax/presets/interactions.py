"""Any interaction log as csv, Parquet, JSON lines or .inter, which --data_dir names.

    python -m experiments.train --dataset=interactions --data_dir=LOG

By default nothing is left out. A 5-core often leaves nothing of a small shop's log, a customer with one purchase still
wants recommendations, and an item that was sold once costs only one row of the table. Published figures need
--set=data.min_interactions=5.
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The configuration for any interaction log."""
    return RunConfig(
        dataset='interactions',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1, min_interactions=1),
    )
