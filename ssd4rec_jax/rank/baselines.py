"""Rankings that a model must beat: popularity, and how often one item followed another."""
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
