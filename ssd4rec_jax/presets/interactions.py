"""Any interaction log: csv, Parquet, JSON lines, .inter (--data_dir names the file).

    python -m experiments.train --dataset=interactions --data_dir=LOG

Nothing is left out by default: of a small shop's log a 5-core often leaves nothing, a customer with one purchase still
wants recommendations, and an item sold once costs one row of the table. Published figures need
--set=data.min_interactions=5.
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The settings of this data set."""
    return RunConfig(
        dataset='interactions',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1, min_interactions=1),
    )
