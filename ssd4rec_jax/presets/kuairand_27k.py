"""KuaiRand-27K: 32 million videos before the 5-core; a bfloat16 item table, trained with a sampled softmax.

    python -m experiments.train --dataset=kuairand-27k --distributed --model_shards=16

The authors trained on KuaiRand-Pure only; the network and the masking are the ones that they published for it.
max_history is ours: a user has 11,800 items on average, and each of them is a training target with its own history.
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig


def get_config() -> RunConfig:
    """The configuration for KuaiRand-27K."""
    return RunConfig(
        dataset='kuairand-27k',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True, table_dtype='bfloat16'),
        data=DataConfig(mask_ratio=0.2, max_history=256),
        train=TrainConfig(loss='sampled', targets_per_step=16_384),
    )
