"""KuaiRand-1K, with the published settings of KuaiRand-Pure.

    python -m experiments.train --dataset=kuairand-1k
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig


def get_config() -> RunConfig:
    """The configuration for KuaiRand-1K."""
    return RunConfig(
        dataset='kuairand-1k',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.2),
    )
