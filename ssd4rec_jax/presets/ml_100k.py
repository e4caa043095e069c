"""MovieLens 100K. The authors give no settings for it; these are the published ones of MovieLens 1M.

    python -m experiments.train --dataset=ml-100k
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.presets.families import better


def get_config() -> RunConfig:
    """The configuration for MovieLens 100K."""
    return RunConfig(
        dataset='ml-100k',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
    )


def get_better(hidden_size: int) -> RunConfig:
    """The settings that validation chose for histories of this length (docs/results.md), for a network of any width."""
    return better(
        get_config(), mean_length=105.3, num_items=1_349, num_targets=96_458, hidden_size=hidden_size,
        fit_followers=False,  # Validation has chosen 0.
    )
