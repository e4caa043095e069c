"""KuaiRand-27K: 32 million videos before the 5-core; its table is kept in bfloat16 and trained by a sampled softmax.

    python -m experiments.train --dataset=kuairand-27k --distributed --model_shards=16

The authors trained on KuaiRand-Pure alone; network and masking are theirs for it. max_history is ours: a user has
11,800 items on average, every one of which is a training target with the history before it.
"""
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import TrainConfig


def get_config() -> RunConfig:
    """The settings of this data set."""
    return RunConfig(
        dataset='kuairand-27k',
        model=ModelConfig(num_layers=2, dropout_prob=0.2, norm_embedding=True, table_dtype='bfloat16'),
        data=DataConfig(mask_ratio=0.2, max_history=256),
        train=TrainConfig(loss='sampled', targets_per_step=16_384),
    )
