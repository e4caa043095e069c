"""The optimisers that a TrainConfig selects: optax's, and row-wise Adagrad for the item table of a sampled loss."""
import optax

from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.train.row_updates import SparseTableOptimizer


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """The learning rate as a function of the number of optimiser steps made before."""
    if config.schedule == 'warmup_cosine':
        return optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, max(config.warmup_steps, 1), config.decay_steps
        )
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(
    config: TrainConfig, *, sparse_table: bool, has_seen: bool = False
) -> optax.GradientTransformation | SparseTableOptimizer:
    """Adam (with torch's defaults, as published) or AdamW, preceded by clipping of the global norm where that is set.

    It updates all parameters. With sparse_table it updates all but the item table, and row-wise Adagrad updates that.
    has_seen: whether there is a seen-item term, which Adam then updates with a learning rate of its own.
    """
    schedule = learning_rate_schedule(config)
    if config.optimizer == 'adamw':
        update = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        update = optax.adam(schedule)
    if has_seen:
        update = optax.partition(
            {'seen': optax.adam(config.seen_learning_rate), 'others': update},
            lambda params: {name: 'seen' if name == 'seen' else 'others' for name in params},
        )
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return SparseTableOptimizer(update, config.table_learning_rate) if sparse_table else update
