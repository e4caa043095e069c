"""The optimiser that a TrainConfig names, from optax."""
import optax

from ssd4rec_jax.train_config import TrainConfig


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Learning rate as a function of the optimiser's step."""
    if config.schedule == 'warmup_cosine':
        return optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, max(config.warmup_steps, 1), config.decay_steps
        )
    return optax.constant_schedule(config.learning_rate)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam (torch's defaults, as published) or AdamW, with optional global-norm clipping before it."""
    schedule = learning_rate_schedule(config)
    if config.optimizer == 'adamw':
        update = optax.adamw(schedule, weight_decay=config.weight_decay)
    else:
        update = optax.adam(schedule)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update
