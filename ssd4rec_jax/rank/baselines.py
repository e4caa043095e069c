"""Rankings that a model must beat: popularity, how often one item followed another, and what came together."""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import trained_on, unseen


def popularity_ranks(dataset: SequenceDataset, split: str, *, seen_out: bool = False) -> np.ndarray:
    """The rank of each held-out item by popularity: int64 [targets], counted from 1.

    An item's popularity is how often it occurs in training (of leave-one-out, among items 1 .. n-2 of all users, where
    n is the length of a user's history). Items of equal popularity rank by lower internal id. split: 'valid' or 'test'.
    seen_out: items that the user has done before are left out; a target among them has the rank 0.
    """
    by_popularity = _popularity_ranks(dataset)
    return _ranks(dataset, split, lambda _, items: by_popularity[items], seen_out)


def transition_ranks(dataset: SequenceDataset, split: str, *, seen_out: bool = False) -> np.ndarray:
    """The rank of each held-out item among the followers of the item before it: int64 [targets], counted from 1.

    Items rank by how often they followed that item in the training histories. Items that followed it equally often,
    or never, rank by popularity and then by lower internal id. split, seen_out: as in popularity_ranks.
    """
    size = dataset.num_items + 1
    by_popularity = _popularity_ranks(dataset)
    training = trained_on(dataset)
    inside = training[1:] & training[:-1]
    inside[dataset.offsets[1:-1] - 1] = False  # No pair spans two users.
    pairs = dataset.items[:-1][inside].astype(np.int64) * size + dataset.items[1:][inside]
    pairs, times = np.unique(pairs, return_counts=True)
    before, after = np.divmod(pairs, size)
    first = np.searchsorted(before, np.arange(size + 1))  # Item i has the pairs first[i] .. first[i + 1] - 1.
    place = np.empty(len(pairs), np.int64)  # of a pair among those of the same item before
    place[np.lexsort((by_popularity[after], -times, before))] = np.arange(len(pairs))
    place -= first[before] - 1
    popular = np.sort(before * size + by_popularity[after])

    def ranking(last: np.ndarray, items: np.ndarray) -> np.ndarray:
        at = np.searchsorted(pairs, last * size + items)
        followed = np.append(pairs, -1)[at] == last * size + items
        # Other items rank behind all followers; popularity orders them.
        more_popular = np.searchsorted(popular, last * size + by_popularity[items]) - first[last]
        behind = first[last + 1] - first[last] + by_popularity[items] - more_popular
        return np.where(followed, np.append(place, 0)[at], behind)

    return _ranks(dataset, split, ranking, seen_out)


def knn_ranks(dataset: SequenceDataset, split: str, *, seen_out: bool = False) -> np.ndarray:
    """The rank of each held-out item by its likeness to the items of the history: int64 [targets], counted from 1.

    Two items are as alike as the cosine of the users that trained on them, and item k of a history of n, counted from
    the oldest, has the weight k / n (item-kNN with the linear weights of V-SkNN: Ludewig and Jannach, "Evaluation of
    session-based recommendation algorithms", 2018). An item that a history holds several times counts once, as its
    newest, and gives nothing to itself. Equal items rank by popularity and then by lower internal id. split, seen_out:
    as in popularity_ranks.
    """
    size = dataset.num_items + 1
    by_popularity = _popularity_ranks(dataset)
    training = trained_on(dataset)
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)[training]
    user, item = np.divmod(np.unique(user * size + np.asarray(dataset.items)[training]), size)
    items_of = _Groups.of(user, item, dataset.num_users)
    users_of = _Groups.of(item, user, size)
    norm = np.sqrt(np.maximum(np.bincount(item, minlength=size), 1))
    targets = dataset.held_out.targets(split)
    places, starts = targets.positions(), dataset.offsets[targets.users()]
    rank, was_seen = np.empty(len(places), np.int64), np.zeros(len(places), bool)
    for number, (start, place) in enumerate(zip(starts, places, strict=True)):
        target, history = dataset.items[place], np.asarray(dataset.items[start:place])
        held, from_end = np.unique(history[::-1], return_index=True)
        weight = 1 - from_end / len(history)
        users, of_item = users_of.members(held)
        by_user = np.bincount(users, (weight / norm[held])[of_item], minlength=dataset.num_users)
        near = np.flatnonzero(by_user)
        together, of_user = items_of.members(near)
        score = np.bincount(together, by_user[near][of_user], minlength=size) / norm
        known = users_of.counts[held] > 0
        score[held[known]] -= weight[known]  # the cosine of an item with itself is 1
        score = np.round(score, 9)  # sums of equal terms in another order are equal
        ahead = (score > score[target]) | ((score == score[target]) & (by_popularity < by_popularity[target]))
        if seen_out:
            ahead[held] = False
            was_seen[number] = target in held
        rank[number] = 1 + np.count_nonzero(ahead[1:])
    return np.where(was_seen, 0, _missed_last(dataset, dataset.items[places], rank))


# The rankings that count and learn nothing, by name: (dataset, split, seen_out=False) -> ranks.
BASELINES: dict[str, Callable[..., np.ndarray]] = {
    'popularity': popularity_ranks, 'transition': transition_ranks, 'item-knn': knn_ranks,
}


def _ranks(
    dataset: SequenceDataset, split: str, ranking: Callable[[np.ndarray, np.ndarray], np.ndarray], seen_out: bool
) -> np.ndarray:
    """The rank of each held-out item by a ranking: (the item before, an item), int64 [n] each -> its rank from 1."""
    held_out = dataset.held_out.targets(split)
    places = held_out.positions()
    items = np.asarray(dataset.items)
    targets, last = items[places].astype(np.int64), items[places - 1].astype(np.int64)
    rank = ranking(last, targets)
    if not seen_out:
        return _missed_last(dataset, targets, rank)
    start = dataset.offsets[:-1][held_out.users()]
    each = np.repeat(np.arange(len(places)), places - start)
    seen = items[np.arange(len(each)) - (np.cumsum(places - start) - places)[each]]
    number, item = np.divmod(np.unique(each * (dataset.num_items + 1) + seen), dataset.num_items + 1)
    better = number[ranking(last[number], item) < rank[number]]
    rank = _missed_last(dataset, targets, rank - np.bincount(better, minlength=len(rank)))
    rank[number[item == targets[number]]] = 0
    return rank


class _Groups(NamedTuple):
    """Members of groups: those of group g are flat[first[g]:first[g] + counts[g]]."""

    flat: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, group: np.ndarray, member: np.ndarray, groups: int) -> '_Groups':
        counts = np.bincount(group, minlength=groups)
        return cls(member[np.argsort(group, kind='stable')], np.cumsum(counts) - counts, counts)

    def members(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the members of all chosen groups, for each of them the index of its group in `chosen`)."""
        of_group = np.repeat(np.arange(len(chosen)), self.counts[chosen])
        before = np.cumsum(self.counts[chosen]) - self.counts[chosen]
        return self.flat[np.arange(len(of_group)) - (before - self.first[chosen])[of_group]], of_group


def _missed_last(dataset: SequenceDataset, targets: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The ranks, behind all items where the split counts a target as not found."""
    if not dataset.held_out.unseen_is_missed:
        return rank
    return np.where(unseen(dataset)[targets], dataset.num_items + 1, rank)


def training_counts(dataset: SequenceDataset) -> np.ndarray:
    """int64 [items + 1], how often each item occurs in training."""
    return np.bincount(dataset.items[trained_on(dataset)], minlength=dataset.num_items + 1)


def _popularity_ranks(dataset: SequenceDataset) -> np.ndarray:
    """int64 [items + 1]: each item's rank, from 1, by how often it occurs in training; equal counts rank by id."""
    counts = training_counts(dataset)
    rank = np.zeros(dataset.num_items + 1, np.int64)
    rank[np.argsort(-counts[1:], kind='stable') + 1] = np.arange(1, dataset.num_items + 1)
    return rank
