"""The optimiser that a TrainConfig names: optax's, and row-wise Adagrad for the table of a sampled softmax."""
import optax

from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.train.row_updates import SparseTableOptimizer


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate as a function of the optimiser's step."""
    if config.schedule == 'warmup_cosine':
        return optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, max(config.warmup_steps, 1), config.decay_steps
        )
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(config: TrainConfig, *, sparse_table: bool) -> optax.GradientTransformation | SparseTableOptimizer:
    """Adam (torch's defaults, as published) or AdamW, with optional global-norm clipping before it.

    It updates all parameters or, with sparse_table, all but the item table, which row-wise Adagrad updates.
    """
    schedule = learning_rate_schedule(config)
    if config.optimizer == 'adamw':
        update = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        update = optax.adam(schedule)
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return SparseTableOptimizer(update, config.table_learning_rate) if sparse_table else update
