"""The optimisers that a TrainConfig selects: optax's, and row-wise Adagrad for the item table."""
from collections.abc import Callable

import jax
import optax

from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING
from ssd4rec_jax.train.row_updates import SparseTableOptimizer, scale_by_row_wise_adagrad


def learning_rate_schedule(config: TrainConfig, steps_per_epoch: int = 0) -> optax.Schedule:
    """The learning rate as a function of the number of optimiser steps made before.

    steps_per_epoch: needed where the schedule spans train.max_epochs.
    """
    if config.schedule == 'warmup_cosine':
        total = config.decay_steps or config.max_epochs * steps_per_epoch
        if not total:
            raise ConfigError('train.schedule=warmup_cosine needs train.decay_steps here, where there are no epochs')
        warmup = config.warmup_steps if config.decay_steps else round(config.warmup_share * total)
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, max(warmup, 1), max(total, 2))
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(
    config: TrainConfig, *, sparse_table: bool, has_seen: bool = False, steps_per_epoch: int = 0
) -> optax.GradientTransformation | SparseTableOptimizer:
    """Adam (with torch's defaults, as published) or AdamW, preceded by clipping of the global norm where that is set.

    It updates all parameters. With sparse_table it updates all but the item table, and row-wise Adagrad updates that.
    has_seen: whether there is a seen-item term, which Adam then updates with a learning rate of its own.
    steps_per_epoch: as in learning_rate_schedule.
    """
    schedule = learning_rate_schedule(config, steps_per_epoch)
    table_rate = _in_step_with(schedule, config, config.table_learning_rate)
    if config.optimizer == 'adamw':
        update = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        update = optax.adam(schedule)
    groups = {'seen': optax.adam(config.seen_learning_rate)} if has_seen else {}
    if config.table_optimizer != 'auto' and not sparse_table:
        by_row = config.table_optimizer == 'adagrad'
        groups[ITEM_EMBEDDING] = optax.chain(
            scale_by_row_wise_adagrad() if by_row else optax.scale_by_adam(), optax.scale_by_learning_rate(table_rate)
        )
    if groups:
        update = optax.partition(
            {**groups, 'others': update},
            lambda params: {name: name if name in groups else 'others' for name in params},
        )
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    if not sparse_table:
        return update
    return SparseTableOptimizer(update, table_rate)


def _in_step_with(
    schedule: optax.Schedule, config: TrainConfig, rate: float
) -> float | Callable[[jax.typing.ArrayLike], jax.Array]:
    """A learning rate that rises and falls like the schedule, whose peak is config.learning_rate."""
    if config.schedule == 'constant':
        return rate
    return lambda step: schedule(step) * (rate / config.learning_rate)
