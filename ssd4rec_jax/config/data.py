"""Settings of what preparation, masking and packing do to a log."""
import dataclasses

from ssd4rec_jax.errors import ConfigError

TIMESTAMP_PRECISIONS = ('exact', 'float32')
PACKINGS = 'packed', 'padded'
SPLITS = ('leave_one_out', 'last_n', 'time', 'users', 'files', 'none')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The settings of the path from a log to packed batches.

    mask_ratio: the probability (the paper's rho) that an input item is replaced by item 0 in training.
    max_history: the number of newest items that are kept of each history; 0 keeps all of them.
    tokens_per_row: the length of a packed row that is aimed at. Rows are shorter where a step needs fewer tokens, and
      longer only where a single history is longer.
    rows_per_step: the number of packed rows in a step; 0 chooses it from tokens_per_row and the number of devices.
    packing: 'packed' lays histories end to end in the rows of training; 'padded' gives each a row of its own, which is
      as long as the longest, and is there to be compared with.
    timestamp_precision: 'exact' orders interactions by their integer time; 'float32' rounds the time first, as RecBole
      does.
    min_interactions: k of the iterated k-core: users and items with fewer interactions are left out.
    split: which interactions are held out, one of SPLITS (ssd4rec_jax.data.splits).
      With 'files' the log's own files say it (--train_file, --valid_file, --test_file).
    split_last: with 'last_n', how many of each user are tested, and as many validated.
    split_valid_time, split_test_time: with 'time', where validation and test begin, as ISO dates or numbers in the
      log's unit; '' cuts after 80% and 90% of the interactions.
    split_share: with 'users', the share of users that is tested, and as many validated.
    min_user_interactions, min_item_interactions: k of users and of items where they differ; 0 takes min_interactions.
    """

    mask_ratio: float = 0.1
    max_history: int = 0
    tokens_per_row: int = 8192
    rows_per_step: int = 0
    packing: str = 'packed'
    timestamp_precision: str = 'exact'
    min_interactions: int = 5
    min_user_interactions: int = 0
    min_item_interactions: int = 0
    split: str = 'leave_one_out'
    split_last: int = 1
    split_valid_time: str = ''
    split_test_time: str = ''
    split_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.mask_ratio < 1.0:
            raise ConfigError(f'data.mask_ratio={self.mask_ratio} must be in [0, 1)')
        if self.max_history < 0:
            raise ConfigError(f'data.max_history={self.max_history} must be 0 (keep all) or positive')
        if self.rows_per_step < 0:
            raise ConfigError(f'data.rows_per_step={self.rows_per_step} must be 0 (choose) or positive')
        if self.packing not in PACKINGS:
            raise ConfigError(f'data.packing={self.packing!r} must be one of {", ".join(PACKINGS)}')
        if self.tokens_per_row < 16:
            raise ConfigError(f'data.tokens_per_row={self.tokens_per_row} must be at least 16')
        if self.min_interactions < 1:
            raise ConfigError(f'data.min_interactions={self.min_interactions} must be at least 1, which keeps all')
        for key in ('min_user_interactions', 'min_item_interactions'):
            if getattr(self, key) < 0:
                raise ConfigError(f'data.{key}={getattr(self, key)} must be 0 (as data.min_interactions) or positive')
        if self.split not in SPLITS:
            raise ConfigError(f'data.split={self.split!r} must be one of {", ".join(SPLITS)}')
        if self.split_last < 1:
            raise ConfigError(f'data.split_last={self.split_last} must be at least 1')
        if not 0 < self.split_share < 0.5:
            raise ConfigError(f'data.split_share={self.split_share} must lie between 0 and 0.5')
        if self.timestamp_precision not in TIMESTAMP_PRECISIONS:
            raise ConfigError(
                f'data.timestamp_precision={self.timestamp_precision!r} must be one of '
                f'{", ".join(TIMESTAMP_PRECISIONS)}'
            )

    @property
    def user_core(self) -> int:
        """Fewest interactions of a user that is kept."""
        return self.min_user_interactions or self.min_interactions

    @property
    def item_core(self) -> int:
        """Fewest interactions of an item that is kept."""
        return self.min_item_interactions or self.min_interactions
