"""Which interactions of a prepared log are trained on, and which are held out to be predicted."""
import dataclasses
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.times import from_words, in_words
from ssd4rec_jax.errors import DataError

# What a log in files says of each interaction, in the order of a user's history; of a context no file says more than
# that it came before a target.
PARTS = 'train', 'context', 'valid', 'test'


class Targets(NamedTuple):
    """int64 [users] each: of user u the interactions start[u] .. stop[u] - 1 are predicted, each from all before it."""

    start: np.ndarray
    stop: np.ndarray

    def positions(self) -> np.ndarray:
        """int64 [targets], the place of each target in the flat item array, users one after another."""
        counts = self.stop - self.start
        first = np.cumsum(counts) - counts
        return np.repeat(self.start - first, counts) + np.arange(counts.sum())

    def users(self) -> np.ndarray:
        """int64 [targets], the user of each target."""
        return np.repeat(np.arange(len(self.start)), self.stop - self.start)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A protocol applied to a log.

    protocol: what it is, in one line.
    train_stop: int64 [users], user u trains on the interactions offsets[u] .. train_stop[u] - 1.
    valid, test: what is predicted while training, and at the end.
    unseen_is_missed: a target that is no item of training counts as not found, whatever its score.
    """

    protocol: str
    train_stop: np.ndarray
    valid: Targets
    test: Targets
    unseen_is_missed: bool = False

    def targets(self, split: str) -> Targets:
        """Those of 'valid' or 'test'."""
        return {'valid': self.valid, 'test': self.test}[split]


def leave_out(offsets: np.ndarray, last: int = 1) -> Split:
    """Each user's last interactions are tested, as many before them validated.

    With one it is RecBole's protocol: a user of three interactions has no validation item and one of fewer no test item
    either; what is not held out trains.
    """
    start, stop = offsets[:-1], offsets[1:]
    # At least two interactions of a user train: one that is read and one that is predicted.
    spare = np.maximum(stop - start - 2, 0)
    tested = np.minimum(spare, last)
    validated = np.minimum(spare - tested, last)
    test_start = stop - tested
    valid_start = test_start - validated
    what = 'the last interaction of each user is tested, the one before it validated' if last == 1 else (
        f'the last {last} interactions of each user are tested, the {last} before them validated'
    )
    return Split(
        f'leave-one-out: {what}' if last == 1 else f'last {last}: {what}', valid_start,
        Targets(valid_start, test_start), Targets(test_start, stop),
    )


def make_split(
    offsets: np.ndarray, times: np.ndarray | None, time_unit: str, config: DataConfig, parts: np.ndarray | None = None
) -> Split:
    """The split that data.split names of a log.

    offsets, times, time_unit, parts: as in SequenceDataset. DataError where the log does not allow it.
    """
    if config.split == 'time':
        return _by_time(offsets, times, time_unit, config)
    if config.split == 'files':
        return _by_file(offsets, parts)
    if config.split == 'users':
        return _by_user(offsets, config.split_share)
    if config.split == 'none':
        start, stop = offsets[:-1], offsets[1:]
        last = Targets(np.where(stop - start > 1, stop - 1, stop), stop)
        return Split(
            'none: trained on everything; the figures are of last interactions that training has seen', stop, last, last
        )
    return leave_out(offsets, config.split_last if config.split == 'last_n' else 1)


def _by_time(offsets: np.ndarray, times: np.ndarray | None, unit: str, config: DataConfig) -> Split:
    if times is None or not unit:
        raise DataError(
            'data.split=time needs times, and those of this log are positions alone: name its time column with '
            '--time_column, or split by data.split=leave_one_out, last_n or users'
        )
    cuts = []
    for key, share in (('split_valid_time', 0.8), ('split_test_time', 0.9)):
        words = getattr(config, key)
        at_share = int(np.quantile(times, share, method='higher'))
        cuts.append(from_words(words, unit, f'data.{key}') if words else at_share)
    if not times.min() < cuts[0] < cuts[1] <= times.max():
        raise DataError(
            f'data.split=time cuts at {in_words(cuts[0], unit)} and {in_words(cuts[1], unit)}, which do not lie in '
            'this order '
            f'between the first time, {in_words(int(times.min()), unit)}, and the last, '
            f'{in_words(int(times.max()), unit)}: '
            'set data.split_valid_time and data.split_test_time'
        )
    start, stop = offsets[:-1], offsets[1:]
    before = [np.concatenate([[0], np.cumsum(times < cut)]) for cut in cuts]
    train_stop, valid_stop = (start + count[stop] - count[start] for count in before)
    # A first interaction has nothing before it to be predicted from.
    test_start = np.minimum(np.maximum(valid_stop, start + 1), stop)
    valid_start = np.minimum(np.maximum(train_stop, start + 1), valid_stop)
    return Split(
        f'time: trained before {in_words(cuts[0], unit)}, validated until {in_words(cuts[1], unit)}, tested from '
        'there on; '
        'items that training never saw count as not found', train_stop,
        Targets(np.minimum(valid_start, valid_stop), valid_stop), Targets(test_start, stop), unseen_is_missed=True,
    )


def _by_user(offsets: np.ndarray, share: float) -> Split:
    start, stop = offsets[:-1], offsets[1:]
    users = len(start)
    held = int(round(share * users))
    if not held or 2 * held >= users:
        raise DataError(
            f'data.split=users: data.split_share={share:g} of {users} users leaves none to test or to train'
        )
    drawn = np.random.default_rng(0).permutation(users)
    role = np.zeros(users, np.int8)
    role[drawn[:held]], role[drawn[held:2 * held]] = 2, 1
    last = np.where(stop - start > 1, stop - 1, stop)
    valid, test = (Targets(np.where(role == part, last, stop), stop) for part in (1, 2))
    return Split(
        f'users: {held} users are tested and {held} validated, each by the last interaction, and train nothing; items '
        'that '
        'training never saw count as not found', np.where(role == 0, stop, start), valid, test, unseen_is_missed=True,
    )


def _by_file(offsets: np.ndarray, parts: np.ndarray | None) -> Split:
    if parts is None:
        raise DataError(
            'data.split=files needs a log in three files: name them with --train_file, --valid_file and --test_file, '
            'or the folder that holds them with --data_dir'
        )
    start, stop = offsets[:-1], offsets[1:]
    # A user's interactions lie in the order of their parts.
    before = [np.concatenate([[0], np.cumsum(parts < part)]) for part in range(1, len(PARTS))]
    train_stop, context_stop, valid_stop = (start + count[stop] - count[start] for count in before)
    # A first interaction has nothing before it to be predicted from.
    valid = Targets(np.minimum(np.maximum(context_stop, start + 1), valid_stop), valid_stop)
    test = Targets(np.minimum(np.maximum(valid_stop, start + 1), stop), stop)
    given = np.bincount(parts, minlength=len(PARTS))[2:]
    predicted = [int((targets.stop - targets.start).sum()) for targets in (valid, test)]
    for part, count in zip(PARTS[2:], predicted, strict=True):
        if not count:
            raise DataError(f'data.split=files: no row of the {part} file has an earlier one of the same user')
    lost = int(given.sum()) - sum(predicted)
    first = f'; {lost} of their rows, with no earlier one of the same user, are not predicted' if lost else ''
    return Split(
        f'files: trained, validated and tested on the rows of one file each{first}; items that training never saw '
        'count as not found', train_stop, valid, test, unseen_is_missed=True,
    )
