"""Generated users whose next item follows from the order of several earlier items; nothing is downloaded.

    python -m experiments.train

The network has one small layer and the steps are small, so that it learns within minutes on two cores: its validation
NDCG@10 is about 0.6 after 7 epochs, and that of popularity is 0.05.
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig


def get_config() -> RunConfig:
    """The configuration for the generated log."""
    return RunConfig(
        dataset='synthetic',
        model=ModelConfig(hidden_size=64, num_layers=1, dropout_prob=0.2, norm_embedding=True),
        data=DataConfig(mask_ratio=0.1),
        train=TrainConfig(max_epochs=7, patience=3, targets_per_step=256, learning_rate=3e-3),
    )
