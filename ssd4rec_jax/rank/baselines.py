"""Rankings that a model must beat: popularity, how often one item followed another, and what came together."""
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import trained_on, unseen


def popularity_ranks(dataset: SequenceDataset, split: str) -> np.ndarray:
    """The rank of each held-out item by popularity: int64 [targets], counted from 1.

    An item's popularity is how often it occurs in training (of leave-one-out, among items 1 .. n-2 of all users, where
    n is the length of a user's history). Items of equal popularity rank by lower internal id. split: 'valid' or 'test'.
    """
    targets = dataset.items[dataset.held_out.targets(split).positions()]
    return _missed_last(dataset, targets, _popularity_ranks(dataset)[targets])


def transition_ranks(dataset: SequenceDataset, split: str) -> np.ndarray:
    """The rank of each held-out item among the followers of the item before it: int64 [targets], counted from 1.

    Items rank by how often they followed that item in the training histories. Items that followed it equally often,
    or never, rank by popularity and then by lower internal id. split: 'valid' or 'test'.
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
    places = dataset.held_out.targets(split).positions()
    targets, last = dataset.items[places], dataset.items[places - 1]
    rank = np.empty(len(targets), np.int64)
    for number, (item, target) in enumerate(zip(last, targets, strict=True)):
        own = slice(first[item], first[item + 1])
        followers, followed = after[own], times[own]
        more_popular = by_popularity[followers] < by_popularity[target]
        at = np.flatnonzero(followers == target)
        if len(at):
            rank[number] = 1 + np.sum((followed > followed[at]) | ((followed == followed[at]) & more_popular))
        else:  # It ranks behind all followers; popularity orders the rest.
            rank[number] = len(followers) + by_popularity[target] - np.sum(more_popular)
    return _missed_last(dataset, targets, rank)


def knn_ranks(dataset: SequenceDataset, split: str) -> np.ndarray:
    """The rank of each held-out item by its likeness to the items of the history: int64 [targets], counted from 1.

    Two items are as alike as the cosine of the users that trained on them, and item k of a history of n, counted from
    the oldest, has the weight k / n (item-kNN with the linear weights of V-SkNN: Ludewig and Jannach, "Evaluation of
    session-based recommendation algorithms", 2018). An item that a history holds several times counts once, as its
    newest, and gives nothing to itself. Equal items rank by popularity and then by lower internal id. split: 'valid' or
    'test'.
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
    rank = np.empty(len(places), np.int64)
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
        rank[number] = 1 + np.count_nonzero(ahead[1:])
    return _missed_last(dataset, dataset.items[places], rank)


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
