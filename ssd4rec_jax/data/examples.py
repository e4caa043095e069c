"""Training, validation and test examples of a prepared log, as integer triples."""
import dataclasses
from collections.abc import Mapping

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.features import Feature
from ssd4rec_jax.data.gaps import Gaps
from ssd4rec_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class ExampleIndex:
    """Examples (history, target) that copy no history.

    items: int32, the dataset's flat item array; example e reads items[start[e]:stop[e]].
    start, stop: int64 [examples].
    target: int32, internal id of the item to predict, [examples] after each history. With every_prefix it is
      [len(items)] after each item: every prefix of a history has its own.
    hidden: with every_prefix, the share of a history's items but the last that are targets, in the mean.
    cut: histories that max_history shortened.
    missed: bool [examples], targets that count as not found whatever they score; None where there is none.
    features: {name: one value for each of `items`} that the network reads.
    """

    items: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray
    cut: int
    every_prefix: bool = False
    hidden: float = 1.0
    missed: np.ndarray | None = None
    features: Mapping[str, Feature | Gaps] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [examples], items in each history."""
        return self.stop - self.start

    @property
    def num_targets(self) -> np.ndarray:
        """float64 [examples], items to predict of each, as many as are expected where chance decides."""
        return 1 + self.hidden * (self.lengths - 1) if self.every_prefix else np.ones(len(self))

    def of(self, chosen: np.ndarray) -> 'ExampleIndex':
        """The examples where `chosen`, bool [examples], is True."""
        return dataclasses.replace(
            self, start=self.start[chosen], stop=self.stop[chosen],
            target=self.target if self.every_prefix else self.target[chosen],
            missed=None if self.missed is None else self.missed[chosen],
        )

    def target_counts(self, num_items: int) -> np.ndarray:
        """float64 [num_items + 1], how often each item is a target, as expected where chance decides."""
        if not self.every_prefix:
            return np.bincount(self.target, minlength=num_items + 1).astype(np.float64)
        ends = np.zeros(len(self.items) + 1, np.int8)
        np.add.at(ends, self.start, 1)
        np.add.at(ends, self.stop, -1)
        counts = np.bincount(self.target[np.cumsum(ends[:-1], dtype=np.int8) > 0], minlength=num_items + 1)
        last = np.bincount(self.target[self.stop - 1], minlength=num_items + 1)
        return self.hidden * counts + (1 - self.hidden) * last


def train_examples(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """Every prefix of what a user trains on predicts the next item, as RecBole does.

    With leave-one-out these are the prefixes of lengths 1 .. n-3 of a user's n items. DataError where there is none.
    """
    start = dataset.offsets[:-1]
    counts = np.maximum(dataset.held_out.train_stop - start - 1, 0)
    user_start = np.repeat(start, counts)
    first = np.cumsum(counts) - counts
    length = np.arange(1, len(user_start) + 1) - np.repeat(first, counts)
    return _index(dataset, user_start, user_start + length, max_history, 'train on')


def train_histories(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """The same prefixes as one example a user, each item of which is followed by a target.

    With max_history it holds the newest items alone: what comes before them is neither read nor predicted.
    """
    stop = dataset.held_out.train_stop - 1
    users = np.flatnonzero(stop > dataset.offsets[:-1])
    index = _index(dataset, dataset.offsets[users], stop[users], max_history, 'train on')
    return dataclasses.replace(index, target=np.append(index.items[1:], np.int32(0)), every_prefix=True)


def train_windows(dataset: SequenceDataset, length: int, *, hidden: float = 1.0) -> ExampleIndex:
    """What each user trains on, cut from the newest item back into windows of `length` items, 0 for a single one.

    Each window is an example that holds its own targets: those of its items that a step hides. hidden: as in
    ExampleIndex. A window of one item, which would leave nothing to read, is left out. DataError where none is left.
    """
    start, stop = dataset.offsets[:-1], dataset.held_out.train_stop
    length = length or int((stop - start).max())
    counts = -(-(stop - start) // length)
    newer = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    stop = np.repeat(stop, counts) - newer * length
    start = np.maximum(np.repeat(start, counts), stop - length)
    kept = stop - start > 1
    if not kept.any():
        raise DataError(f'the log leaves nothing to train on: {nothing_left(dataset)}')
    items = np.asarray(dataset.items)
    return ExampleIndex(
        items=items, start=start[kept], stop=stop[kept], target=items, cut=0, every_prefix=True, hidden=hidden,
        features=dataset.values_read,
    )


def valid_examples(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """Each validation target with all that the user did before it; with leave-one-out, 1 .. n-2 predict item n-1."""
    return _held_out(dataset, 'valid', max_history)


def test_examples(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """Each test target with all before it, validation items included; with leave-one-out, 1 .. n-1 predict item n."""
    return _held_out(dataset, 'test', max_history)


test_examples.__test__ = False  # type: ignore[attr-defined]  # its name is the split's; pytest must not collect it


def _held_out(dataset: SequenceDataset, name: str, max_history: int) -> ExampleIndex:
    split = dataset.held_out
    targets = split.targets(name)
    stop = targets.positions()
    purpose = {'valid': 'validate on', 'test': 'test'}[name]
    index = _index(dataset, dataset.offsets[:-1][targets.users()], stop, max_history, purpose)
    missed = unseen(dataset)[index.target] if split.unseen_is_missed else None
    return dataclasses.replace(index, missed=missed)


def nothing_left(dataset: SequenceDataset) -> str:
    """Why a split leaves nothing for one of its parts, and what can be done."""
    return (
        f'histories have at most {dataset.lengths.max()} interactions, and the split is {dataset.held_out.protocol}: '
        'give longer histories, or hold out whole users with --set=data.split=users'
    )


def trained_on(dataset: SequenceDataset) -> np.ndarray:
    """bool [interactions], which of them training reads."""
    change = np.zeros(len(dataset.items) + 1, np.int32)
    np.add.at(change, dataset.offsets[:-1], 1)
    np.add.at(change, dataset.held_out.train_stop, -1)
    return np.cumsum(change[:-1], dtype=np.int32) > 0


def unseen(dataset: SequenceDataset) -> np.ndarray:
    """bool [num_items + 1], which items occur nowhere in training."""
    found = np.ones(dataset.num_items + 1, bool)
    found[dataset.items[trained_on(dataset)]] = False
    return found


def _index(
    dataset: SequenceDataset, start: np.ndarray, stop: np.ndarray, max_history: int, purpose: str
) -> ExampleIndex:
    if not len(start):
        raise DataError(f'the log leaves nothing to {purpose}: {nothing_left(dataset)}')
    newest = np.maximum(start, stop - max_history) if max_history else start
    items = np.asarray(dataset.items)  # a plain view of a memory map, which gathers faster
    return ExampleIndex(
        items=items, start=newest, stop=stop, target=items[stop],
        cut=int(np.count_nonzero(newest > start)), features=dataset.values_read,
    )
