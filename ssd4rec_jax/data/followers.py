"""Which items follow which: for each item those that came soon after it in training, and how strongly.

Short logs hold more of such pairs than a small network can keep apart, so that counting them adds to what it learns.
The counts are those of item-to-item neighbourhood models for sessions, such as Ludewig and Jannach, "Evaluation of
session-based recommendation algorithms", 2018.
"""
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import trained_on

WINDOW = 10  # the most positions by which a follower comes later
PER_ITEM = 64  # followers that are kept of each item
PRIOR = 5.0  # occurrences that are added to each item's own, so that rare items do not seem certain
SMALL = 0.03  # the similarity above which the strength grows like a logarithm
_PAIRS_AT_ONCE = 2**24


class Followers(NamedTuple):
    """The strongest followers of each item, best first.

    items: int32 [items + 1, PER_ITEM], 0 where there are fewer. strength: float32 of the same shape, 0 there.
    """

    items: np.ndarray
    strength: np.ndarray

    def times(self, weight: float) -> 'Followers | None':
        """The same, so many times as strong; None where nothing is left of it."""
        return self._replace(strength=self.strength * np.float32(weight)) if weight else None


def followers_of(settings: Any, dataset: SequenceDataset) -> Followers | None:
    """What a network with these settings ranks with: None where they have no follower_weight above 0."""
    weight = getattr(settings, 'follower_weight', 0.0)
    return count_followers(dataset).times(weight) if weight else None


def count_followers(dataset: SequenceDataset) -> Followers:
    """The followers of each item in the histories that train.

    Item j after item i has the similarity c_ij / sqrt((n_i + PRIOR) (n_j + PRIOR)), where n counts occurrences and c_ij
    sums d^-1/2 over all pairs of the two in a history, j coming d <= WINDOW positions after i; an item that comes back
    follows itself. The strength is log(1 + similarity / SMALL).
    """
    size = dataset.num_items + 1
    items = np.full((size, PER_ITEM), 0, np.int32)
    strength = np.zeros((size, PER_ITEM), np.float32)
    trained = trained_on(dataset)
    read = np.asarray(dataset.items)[trained]
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)[trained]
    norm = np.sqrt(np.bincount(read, minlength=size) + PRIOR)
    for first, stop in _blocks(read, size):
        pair, count = _counted(read, user, first, stop, size)
        before, after = np.divmod(pair, size)
        value = np.log1p(count / (norm[before] * norm[after] * SMALL))
        order = np.lexsort((after, -value, before))
        before, after, value = before[order], after[order], value[order]
        place = np.arange(len(before)) - np.searchsorted(before, before)
        best = place < PER_ITEM
        items[before[best], place[best]] = after[best]
        strength[before[best], place[best]] = value[best]
    return Followers(items, strength)


def with_new_items(followers: Followers, groups: Sequence[np.ndarray]) -> Followers:
    """The same with one further item for each group of known ones, which has no followers yet.

    It follows each item as strongly as its group, ids of items, does in the mean; that one of them comes back says
    nothing of it.
    """
    rows, width = followers.items.shape
    others = np.where(followers.items != np.arange(rows)[:, None], followers.strength, 0)
    own = [np.where(np.isin(followers.items, group), others, 0).sum(1) / len(group) for group in groups]
    strength = np.hstack([followers.strength, np.stack(own, 1).astype(np.float32)])
    new = np.broadcast_to(np.arange(rows, rows + len(groups), dtype=np.int32), (rows, len(groups)))
    items = np.where(strength > 0, np.hstack([followers.items, new]), 0)
    best = np.argsort(-strength, axis=1, kind='stable')[:, :width]
    return Followers(*(
        np.pad(np.take_along_axis(table, best, 1), ((0, len(groups)), (0, 0))) for table in (items, strength)
    ))


def _blocks(read: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of items with at most _PAIRS_AT_ONCE pairs each, or of a single item."""
    pairs = np.cumsum(np.bincount(read, minlength=size)) * WINDOW
    first = 0
    while first < size:
        before = pairs[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(pairs, before + _PAIRS_AT_ONCE, side='right')))
        yield first, stop
        first = stop


def _counted(
    read: np.ndarray, user: np.ndarray, first: int, stop: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 before * size + after, ascending; float64 c) of the pairs whose first item is in first .. stop - 1."""
    inside = (read >= first) & (read < stop)
    pairs, weights = [], []
    for distance in range(1, min(WINDOW, len(read) - 1) + 1):
        before, after = read[:-distance], read[distance:]
        real = inside[:-distance] & (user[:-distance] == user[distance:])
        pairs.append(before[real].astype(np.int64) * size + after[real])
        weights.append(np.full(len(pairs[-1]), distance ** -0.5))
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0)
    pair, each = np.unique(np.concatenate(pairs), return_inverse=True)
    return pair, np.bincount(each, np.concatenate(weights), minlength=len(pair))
