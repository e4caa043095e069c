"""Training, validation and test examples of a prepared log, as integer triples."""
import dataclasses

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset


@dataclasses.dataclass(frozen=True)
class ExampleIndex:
    """Examples (history, target) that copy no history.

    items: int32, the dataset's flat item array; example e reads items[start[e]:stop[e]].
    start, stop: int64 [examples].
    target: int32, internal id of the item to predict, [examples] after each history. With every_prefix it is
      [len(items)] after each item: every prefix of a history has its own.
    cut: histories that max_history shortened.
    """

    items: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray
    cut: int
    every_prefix: bool = False

    def __len__(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [examples], items in each history."""
        return self.stop - self.start

    @property
    def num_targets(self) -> np.ndarray:
        """int64 [examples], items to predict of each."""
        return self.lengths if self.every_prefix else np.ones(len(self), np.int64)

    def target_counts(self, num_items: int) -> np.ndarray:
        """int64 [num_items + 1], how often each item is a target."""
        if not self.every_prefix:
            return np.bincount(self.target, minlength=num_items + 1)
        ends = np.zeros(len(self.items) + 1, np.int8)
        np.add.at(ends, self.start, 1)
        np.add.at(ends, self.stop, -1)
        return np.bincount(self.target[np.cumsum(ends[:-1], dtype=np.int8) > 0], minlength=num_items + 1)


def train_examples(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """Every prefix of lengths 1 .. n-3 of a user's n items predicts the next, as RecBole does."""
    counts = np.maximum(np.diff(dataset.offsets) - 3, 0)
    user_start = np.repeat(dataset.offsets[:-1], counts)
    first = np.cumsum(counts) - counts
    length = np.arange(1, len(user_start) + 1) - np.repeat(first, counts)
    return _index(dataset, user_start, user_start + length, max_history)


def train_histories(dataset: SequenceDataset) -> ExampleIndex:
    """The same prefixes as one example a user: items 1 .. n-3, each of them followed by a target."""
    users = np.flatnonzero(dataset.lengths > 3)
    items = np.asarray(dataset.items)
    return ExampleIndex(
        items=items, start=dataset.offsets[users], stop=dataset.offsets[users + 1] - 3,
        target=np.append(items[1:], np.int32(0)), cut=0, every_prefix=True,
    )


def valid_examples(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """Items 1 .. n-2 predict item n-1; example u is user u."""
    return _index(dataset, dataset.offsets[:-1], dataset.offsets[1:] - 2, max_history)


def test_examples(dataset: SequenceDataset, *, max_history: int = 0) -> ExampleIndex:
    """Items 1 .. n-1, the validation item included, predict item n; example u is user u."""
    return _index(dataset, dataset.offsets[:-1], dataset.offsets[1:] - 1, max_history)


test_examples.__test__ = False  # its name is the split's; pytest must not collect it


def _index(dataset, start, stop, max_history):
    newest = np.maximum(start, stop - max_history) if max_history else start
    items = np.asarray(dataset.items)  # a plain view of a memory map, which gathers faster
    return ExampleIndex(
        items=items, start=newest, stop=stop, target=items[stop],
        cut=int(np.count_nonzero(newest > start)),
    )
