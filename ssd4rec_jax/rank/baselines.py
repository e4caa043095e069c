"""Rankings that a model must beat: popularity, and how often one item followed another."""
import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset

_HELD_OUT = {'valid': 2, 'test': 1}


def popularity_ranks(dataset: SequenceDataset, split: str) -> np.ndarray:
    """The rank of each user's held-out item by popularity: int64 [users], counted from 1.

    An item's popularity is how often it occurs among items 1 .. n-2 of all users, where n is the length of a user's
    history. Items of equal popularity rank by lower internal id. split: 'valid' or 'test'.
    """
    return _popularity_ranks(dataset)[_targets(dataset, split)]


def transition_ranks(dataset: SequenceDataset, split: str) -> np.ndarray:
    """The rank of each user's held-out item among the followers of the item before it: int64 [users], counted from 1.

    Items rank by how often they followed that item in the training histories. Items that followed it equally often,
    or never, rank by popularity and then by lower internal id. split: 'valid' or 'test'.
    """
    size = dataset.num_items + 1
    by_popularity = _popularity_ranks(dataset)
    training = _training_mask(dataset)
    inside = training[1:] & training[:-1]  # Each user ends with held-out items, so no pair spans two users.
    pairs = dataset.items[:-1][inside].astype(np.int64) * size + dataset.items[1:][inside]
    pairs, times = np.unique(pairs, return_counts=True)
    before, after = np.divmod(pairs, size)
    first = np.searchsorted(before, np.arange(size + 1))  # Item i has the pairs first[i] .. first[i + 1] - 1.
    targets = _targets(dataset, split)
    last = dataset.items[dataset.offsets[1:] - _HELD_OUT[split] - 1]
    rank = np.empty(len(targets), np.int64)
    for user, (item, target) in enumerate(zip(last, targets, strict=True)):
        own = slice(first[item], first[item + 1])
        followers, followed = after[own], times[own]
        more_popular = by_popularity[followers] < by_popularity[target]
        at = np.flatnonzero(followers == target)
        if len(at):
            rank[user] = 1 + np.sum((followed > followed[at]) | ((followed == followed[at]) & more_popular))
        else:  # It ranks behind all followers; popularity orders the rest.
            rank[user] = len(followers) + by_popularity[target] - np.sum(more_popular)
    return rank


def _targets(dataset: SequenceDataset, split: str) -> np.ndarray:
    return dataset.items[dataset.offsets[1:] - _HELD_OUT[split]]


def _training_mask(dataset: SequenceDataset) -> np.ndarray:
    mask = np.ones(len(dataset.items), bool)
    for held_out in _HELD_OUT.values():
        mask[dataset.offsets[1:] - held_out] = False
    return mask


def training_counts(dataset: SequenceDataset) -> np.ndarray:
    """int64 [items + 1], how often each item occurs in training: among items 1 .. n-2 of all users."""
    return np.bincount(dataset.items[_training_mask(dataset)], minlength=dataset.num_items + 1)


def _popularity_ranks(dataset: SequenceDataset) -> np.ndarray:
    """int64 [items + 1]: each item's rank, from 1, by how often it occurs in training; equal counts rank by id."""
    counts = training_counts(dataset)
    rank = np.zeros(dataset.num_items + 1, np.int64)
    rank[np.argsort(-counts[1:], kind='stable') + 1] = np.arange(1, dataset.num_items + 1)
    return rank
