"""How a model is trained."""
import dataclasses

from ssd4rec_jax.errors import ConfigError

OBJECTIVES = ('auto', 'prefix', 'one_pass')
OPTIMIZERS = ('adam', 'adamw')
SCHEDULES = ('constant', 'warmup_cosine')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop; defaults are the published ones.

    objective: 'prefix', 'one_pass' or 'auto', which takes prefix (see ssd4rec_jax.objective).
    targets_per_step: prediction targets a step holds on average.
    patience: stop at evaluation number patience + 1 in a row that is worse than the best.
    clip_norm: global gradient norm above which gradients are scaled down; 0 never does.
    warmup_steps, decay_steps: of the warmup_cosine schedule.
    checkpoint_seconds: longest time between two checkpoints; each epoch's end writes one anyway.
    log_every: steps between two lines of metrics.jsonl.
    """

    objective: str = 'auto'
    targets_per_step: int = 1024
    max_epochs: int = 300
    learning_rate: float = 1e-3
    optimizer: str = 'adam'
    weight_decay: float = 0.0
    schedule: str = 'constant'
    warmup_steps: int = 0
    decay_steps: int = 0
    clip_norm: float = 0.0
    patience: int = 10
    seed: int = 2024
    checkpoint_seconds: float = 60.0
    log_every: int = 50

    def __post_init__(self):
        for name in ('targets_per_step', 'max_epochs', 'log_every'):
            if getattr(self, name) < 1:
                raise ConfigError(f'train.{name}={getattr(self, name)} must be at least 1')
        for name in ('patience', 'seed', 'warmup_steps', 'decay_steps', 'clip_norm', 'weight_decay'):
            if getattr(self, name) < 0:
                raise ConfigError(f'train.{name}={getattr(self, name)} must not be negative')
        if not self.learning_rate > 0:
            raise ConfigError(f'train.learning_rate={self.learning_rate} must be positive')
        if not self.checkpoint_seconds > 0:
            raise ConfigError(f'train.checkpoint_seconds={self.checkpoint_seconds} must be positive')
        if self.objective not in OBJECTIVES:
            raise ConfigError(f'train.objective={self.objective!r} must be one of {", ".join(OBJECTIVES)}')
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f'train.optimizer={self.optimizer!r} must be one of {", ".join(OPTIMIZERS)}')
        if self.schedule not in SCHEDULES:
            raise ConfigError(f'train.schedule={self.schedule!r} must be one of {", ".join(SCHEDULES)}')
        if self.weight_decay and self.optimizer == 'adam':
            raise ConfigError('train.weight_decay needs train.optimizer=adamw; plain Adam has none')
        if self.schedule == 'warmup_cosine' and self.decay_steps <= self.warmup_steps:
            raise ConfigError(
                f'train.schedule=warmup_cosine needs train.decay_steps={self.decay_steps} above '
                f'train.warmup_steps={self.warmup_steps}'
            )
