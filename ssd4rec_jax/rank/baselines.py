"""Rankings that a model must beat: popularity, how often one item followed another, and what came together."""
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csr_array

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
    by_popularity = _popularity_ranks(dataset)
    trained, histories = _trained(dataset), _weighted_histories(dataset, split)
    targets = dataset.items[dataset.held_out.targets(split).positions()].astype(np.int64)
    blocks = _blocks(trained)
    # A single block, as of most logs, is made once.
    likenesses = functools.lru_cache(1)(lambda number: _likenesses(trained, blocks[number]))
    rank = np.ones(len(targets), np.int64)
    own = np.zeros(len(targets))
    for number, block in enumerate(blocks):
        mine = np.flatnonzero((targets >= block.start) & (targets < block.stop))
        own[mine] = _own_scores(histories[mine], likenesses(number), targets[mine] - block.start)
    for number, block in enumerate(blocks):
        item = np.arange(block.start, block.stop)
        for some, score in _scores(histories, likenesses(number)):
            ahead = score > own[some, None]
            ahead |= (score == own[some, None]) & (by_popularity[block] < by_popularity[targets[some], None])
            ahead &= item != targets[some, None]
            if seen_out:
                ahead[histories[some, block].nonzero()] = False
            rank[some] += np.count_nonzero(ahead, axis=1)
    rank = _missed_last(dataset, targets, rank)
    if seen_out:
        rank[histories[np.arange(len(targets)), targets] > 0] = 0
    return rank


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


# So many numbers a block of likenesses holds, and so many scores are computed at once.
_LIKENESSES, _SCORES = 2**25, 2**24


def _trained(dataset: SequenceDataset) -> csr_array:
    """[users, items + 1]: 1 / norm of an item where a user trained on it, so that columns have the length 1."""
    training = trained_on(dataset)
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)[training]
    size = dataset.num_items + 1
    user, item = np.divmod(np.unique(user * size + np.asarray(dataset.items)[training]), size)
    norm = np.sqrt(np.bincount(item, minlength=size))
    return csr_array((1 / norm[item], (user, item)), shape=(dataset.num_users, size))


def _weighted_histories(dataset: SequenceDataset, split: str) -> csr_array:
    """[targets, items + 1]: the weight of each item in the history before a target, k / n of its newest place."""
    held_out = dataset.held_out.targets(split)
    places = held_out.positions()
    length = places - dataset.offsets[:-1][held_out.users()]
    each = np.repeat(np.arange(len(places)), length)
    from_end = (np.cumsum(length) - 1)[each] - np.arange(len(each))
    item = dataset.items[places[each] - 1 - from_end].astype(np.int64)
    newest = np.lexsort((from_end, item, each))
    newest = newest[np.flatnonzero(np.diff(each[newest] * (dataset.num_items + 1) + item[newest], prepend=-1))]
    weight = 1 - from_end[newest] / length[each[newest]]
    return csr_array((weight, (each[newest], item[newest])), shape=(len(places), dataset.num_items + 1))


def _blocks(trained: csr_array) -> list[slice]:
    """Blocks of items, each so long that its likenesses to all items are not too many."""
    size = trained.shape[1]
    with_others = trained.astype(bool).T @ np.diff(trained.indptr)  # not less than the items that are alike at all
    block = np.cumsum(np.minimum(with_others, size)[1:]) // _LIKENESSES  # item 0 is none
    first = 1 + np.flatnonzero(np.diff(block, prepend=-1))
    return [slice(*ends) for ends in itertools.pairwise([*first, size])]


def _likenesses(trained: csr_array, block: slice) -> csr_array | np.ndarray:
    """[items + 1, items of a block]: the cosine of two items, of an item with itself 0."""
    alike = (trained.T @ trained[:, block]).tocsr()
    alike.data[np.repeat(np.arange(alike.shape[0]), np.diff(alike.indptr)) == alike.indices + block.start] = 0
    # A product reads a dense array in order: eight of its numbers take as long as one of a sparse array.
    return alike.toarray() if 4 * alike.nnz > math.prod(alike.shape) else alike


def _own_scores(histories: csr_array, alike: csr_array | np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [histories], the score of one item of a block for each history."""
    row = np.repeat(np.arange(len(targets)), np.diff(histories.indptr))
    terms = histories.data * alike[histories.indices, targets[row]]
    return np.round(np.bincount(row, terms, minlength=len(targets)), 9)


def _scores(histories: csr_array, alike: csr_array | np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(some of the histories, the scores of a block of items for them), float64 [histories, items]."""
    step = max(1, _SCORES // alike.shape[1])
    for start in range(0, histories.shape[0], step):
        some = slice(start, min(start + step, histories.shape[0]))
        score = histories[some] @ alike
        # Sums of equal terms in another order are equal so.
        yield some, np.round(score if isinstance(score, np.ndarray) else score.toarray(), 9)


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
