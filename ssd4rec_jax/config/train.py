"""Settings of training."""
import dataclasses

from ssd4rec_jax.config.plugs import loss_settings
from ssd4rec_jax.errors import ConfigError

OBJECTIVES = ('auto', 'prefix', 'one_pass', 'truncated', 'fastest', 'cloze')
IN_ONE_PASS = 'one_pass', 'truncated'  # those whose steps read all prefixes of a history at once
OPTIMIZERS = ('adam', 'adamw')
SCHEDULES = ('constant', 'warmup_cosine')
TABLE_OPTIMIZERS = ('auto', 'adam', 'adagrad')

# Above this number of items, loss 'auto' samples. The full softmax of a step with 1,024 targets at D 256 then takes
# 3 TFLOP, and Adam rewrites 3 GB.
SAMPLED_ABOVE = 1_000_000


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of the training loop; the defaults are the published ones.

    objective: 'prefix', 'one_pass', 'fastest', which takes one_pass where it is exact and else prefix, or 'auto', which
      takes prefix, 'truncated', which trains on the newest items of each history alone, and 'cloze' for networks that
      predict hidden items (see ssd4rec_jax.train.objective).
    last_alone: with 'cloze', the share of histories of which the last item alone is hidden.
    loss: 'full' for the softmax over the whole catalogue, 'sampled' (see ssd4rec_jax.train.sampled_softmax), 'gbce'
      (see ssd4rec_jax.train.gbce), 'uniform' (see ssd4rec_jax.train.uniform_softmax), the name of a registered loss, or
      'auto', which samples above a million items. With a sampled loss and table_optimizer 'auto' or
      'adagrad', row-wise Adagrad updates the rows of the item table that a step touches (see
      ssd4rec_jax.train.row_updates), and learning_rate, optimizer, weight_decay and clip_norm apply to all other
      parameters only.
    num_negatives: the number of items that each step draws uniformly for a sampled loss.
    table_optimizer: what updates the item table: 'adam' (all of it) or 'adagrad' (row by row) at table_learning_rate,
      or 'auto', which takes adagrad with a sampled loss and else updates it like all other parameters.
    table_learning_rate: the learning rate of an item table that has an optimiser of its own; it follows the schedule.
    seen_learning_rate: the learning rate of Adam for the bias of model.seen_bias, which has few numbers and far to go.
    targets_per_step: the number of prediction targets that a step holds on average; with 'cloze' the number of items,
      hidden or not.
    max_epochs: the largest number of epochs.
    learning_rate: the learning rate, or its peak where the schedule changes it.
    optimizer: 'adam', or 'adamw' for Adam with weight_decay.
    weight_decay: the decoupled weight decay of 'adamw'.
    schedule: 'constant', or 'warmup_cosine' for a linear rise and then the fall of a cosine.
    warmup_steps: with 'warmup_cosine' and decay_steps, the number of steps of the rise.
    decay_steps: with 'warmup_cosine', the number of steps after which the fall ends, those of the rise included; 0
      means all steps of max_epochs.
    warmup_share: with 'warmup_cosine' and without decay_steps, the share of all steps that the rise takes.
    ema_decay: above 0, runs are evaluated and answer with an exponential moving average of the parameters, of which
      this share is kept at each step (less in the first steps). A sampled loss leaves the item table out of it.
    clip_norm: the global gradient norm above which gradients are scaled down to it; 0 disables this.
    patience: training stops at evaluation number patience + 1 in a row that is worse than the best.
    seed: decides the initial parameters, the order of the examples, and all random draws.
    checkpoint_seconds: after how much time the next checkpoint is written, within an epoch or as one ends. The best
      epoch's state stays in memory until then. 0 writes one as each epoch ends, and none within it.
    log_every: the number of steps between two lines of metrics.jsonl.
    """

    objective: str = 'auto'
    last_alone: float = 0.5
    loss: str = 'auto'
    num_negatives: int = 8192
    table_optimizer: str = 'auto'
    table_learning_rate: float = 0.1
    seen_learning_rate: float = 0.05
    targets_per_step: int = 1024
    max_epochs: int = 300
    learning_rate: float = 1e-3
    optimizer: str = 'adam'
    weight_decay: float = 0.0
    schedule: str = 'constant'
    warmup_steps: int = 0
    decay_steps: int = 0
    warmup_share: float = 0.0
    ema_decay: float = 0.0
    clip_norm: float = 0.0
    patience: int = 10
    seed: int = 2024
    checkpoint_seconds: float = 60.0
    log_every: int = 50

    def __post_init__(self):
        for name in ('num_negatives', 'targets_per_step', 'max_epochs', 'log_every'):
            if getattr(self, name) < 1:
                raise ConfigError(f'train.{name}={getattr(self, name)} must be at least 1')
        for name in (
            'patience', 'seed', 'warmup_steps', 'decay_steps', 'clip_norm', 'weight_decay', 'checkpoint_seconds',
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f'train.{name}={getattr(self, name)} must not be negative')
        for name in ('learning_rate', 'table_learning_rate', 'seen_learning_rate'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'train.{name}={getattr(self, name)} must be positive')
        loss_settings(self.loss)  # Refuses a name that is not registered.
        for name in ('warmup_share', 'ema_decay', 'last_alone'):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f'train.{name}={getattr(self, name)} must be in [0, 1)')
        for name, known in (
            ('objective', OBJECTIVES), ('optimizer', OPTIMIZERS), ('schedule', SCHEDULES),
            ('table_optimizer', TABLE_OPTIMIZERS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f'train.{name}={getattr(self, name)!r} must be one of {", ".join(known)}')
        if self.weight_decay and self.optimizer == 'adam':
            raise ConfigError('train.weight_decay needs train.optimizer=adamw; plain Adam has none')
        if self.schedule == 'warmup_cosine' and self.warmup_steps and self.decay_steps <= self.warmup_steps:
            raise ConfigError(
                f'train.schedule=warmup_cosine needs train.decay_steps={self.decay_steps} above '
                f'train.warmup_steps={self.warmup_steps}'
            )

    @property
    def schedule_spans_epochs(self) -> bool:
        """Whether the learning rate depends on how many steps max_epochs have."""
        return self.schedule == 'warmup_cosine' and not self.decay_steps

    def loss_name(self, num_items: int) -> str:
        """The name of the loss on a catalogue of num_items items, with 'auto' resolved."""
        if self.loss != 'auto':
            return self.loss
        return 'sampled' if num_items > SAMPLED_ABOVE else 'full'
