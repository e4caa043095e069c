"""Metrics of a ranking with their uncertainty, of parts of the users, and of the lists that users are shown."""
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

# What a rank is worth, by metric; nothing beyond the cutoff. With one relevant item per history recall is HR, and MAP
# is MRR.
WORTH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'HR': lambda rank: np.ones(len(rank)),
    'NDCG': lambda rank: 1 / np.log2(rank + 1),
    'MRR': lambda rank: 1 / rank,
}
RESAMPLES = 1000
TAIL_SHARE = 0.8  # of the items, the rarer ones, are the tail


def metric_frame(
    ranks: np.ndarray, cutoffs: Sequence[int], *, users: np.ndarray | None = None, seed: int = 0
) -> pl.DataFrame:
    """The columns metric, value, low, high: the mean over held-out items and its 95% bootstrap interval over users.

    ranks: int [items] from 1; 0 where the item was not ranked at all, which counts as not found. users: int [items],
    whose they are; None where each is another user's. Users are resampled RESAMPLES times, each with all its items; the
    interval is that of the percentiles.
    """
    if users is not None and len(np.unique(users)) < len(users):
        return _of_several(ranks, cutoffs, users, seed)
    rows = []
    found = np.bincount(np.where((ranks > 0) & (ranks <= max(cutoffs)), ranks, 0), minlength=max(cutoffs) + 1)
    draws = np.random.default_rng(seed).multinomial(len(ranks), found / len(ranks), RESAMPLES)
    worth_of = {name: worth(np.arange(1, max(cutoffs) + 1)) for name, worth in WORTH.items()}
    for k in cutoffs:
        for name, worth in worth_of.items():
            resampled = draws[:, 1:k + 1] @ worth[:k] / len(ranks)
            low, high = np.quantile(resampled, (0.025, 0.975))
            rows.append((f'{name}@{k}', float(found[1:k + 1] @ worth[:k] / len(ranks)), float(low), float(high)))
    return pl.DataFrame(rows, schema=['metric', 'value', 'low', 'high'], orient='row')


def _of_several(ranks, cutoffs, users, seed):
    """`metric_frame` where users have several items, which are not independent of each other."""
    _, user = np.unique(users, return_inverse=True)
    names = [f'{name}@{k}' for k in cutoffs for name in WORTH]
    found = np.maximum(ranks, 1)
    worths = [np.where((ranks > 0) & (ranks <= k), worth(found), 0.0) for k in cutoffs for worth in WORTH.values()]
    sums = np.stack([np.bincount(user, weights=worth) for worth in [*worths, np.ones(len(ranks))]], axis=1)
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(0, len(sums), len(sums)), minlength=len(sums)) @ sums for _ in range(RESAMPLES))
    low, high = np.quantile([total[:-1] / total[-1] for total in drawn], (0.025, 0.975), axis=0)
    return pl.DataFrame({'metric': names, 'value': np.mean(worths, axis=1), 'low': low, 'high': high})


def set_metric_frame(
    lists: np.ndarray, held_out: Sequence[np.ndarray], cutoffs: Sequence[int], *, seed: int = 0
) -> pl.DataFrame:
    """The columns metric, value, low, high of recall and MAP, for users with several held-out items each.

    lists: int [users, max(cutoffs) or the catalogue's size], what each is shown, 0 where a list is short.
    held_out: each user's items.
    recall@k is the share of them in the first k places; MAP@k the mean over users of the average precision, that is of
    the precision at each of the first k places that holds one of them, over the number that fits: at most k.
    """
    found = np.asarray([np.isin(own, items) for own, items in zip(lists, held_out, strict=True)])
    sizes = np.asarray([len(np.unique(items)) for items in held_out])
    hits = np.cumsum(found, axis=1)
    precisions = np.cumsum(found * hits / np.arange(1, hits.shape[1] + 1), axis=1)
    names = [f'{name}@{k}' for k in cutoffs for name in ('recall', 'MAP')]
    values = np.stack([
        column for k in cutoffs for last in [min(k, hits.shape[1]) - 1]  # a list may hold the whole catalogue
        for column in (hits[:, last] / sizes, precisions[:, last] / np.minimum(sizes, k))
    ], axis=1)
    rng = np.random.default_rng(seed)
    resampled = [values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(RESAMPLES)]
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return pl.DataFrame({'metric': names, 'value': values.mean(axis=0), 'low': low, 'high': high})


def list_metrics(items: np.ndarray, counts: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float]:
    """What the lists [users, at least max(cutoffs)] of internal item ids, 0 where a list is short, are like.

    counts: int [items + 1], how often each item occurs in training. coverage: share of the catalogue that is in some
    list. gini: inequality of how often items are listed, 0 where all are listed alike (the formula of the mean absolute
    difference). novelty: mean of -log2 of an item's share of the log, in bits. tail: share of listed items among the
    TAIL_SHARE of the catalogue that occur least.
    """
    catalogue = len(counts) - 1
    share = (counts[1:] + 1) / (counts[1:].sum() + catalogue)  # items of no training event have a share as well
    in_tail = np.zeros(catalogue, bool)
    in_tail[np.argsort(counts[1:], kind='stable')[:int(TAIL_SHARE * catalogue)]] = True
    metrics: dict[str, float] = {}
    for k in cutoffs:
        listed = items[:, :k]
        listed = listed[listed > 0] - 1
        times = np.sort(np.bincount(listed, minlength=catalogue))
        position = np.arange(1, catalogue + 1)
        total = max(int(times.sum()), 1)
        metrics |= {
            f'coverage@{k}': float(np.count_nonzero(times) / catalogue),
            f'gini@{k}': float((2 * position - catalogue - 1) @ times / (catalogue * total)),
            f'novelty@{k}': float(-np.log2(share[listed]).sum() / total),
            f'tail@{k}': float(in_tail[listed].sum() / total),
        }
    return metrics


def grouped(
    ranks: np.ndarray, values: np.ndarray, cutoffs: Sequence[int], *, users: np.ndarray | None = None, groups: int = 4
) -> pl.DataFrame:
    """`metric_frame` of the held-out items of each quantile of a value, with the columns from, to, users before it.

    values: int [items], such as history lengths or how popular the item is. users: as in metric_frame.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, groups + 1), method='lower'))
    group = np.clip(np.searchsorted(edges, values, side='right') - 1, 0, max(len(edges) - 2, 0))
    frames = []
    for number in np.unique(group):
        own = group == number
        head = {'from': int(values[own].min()), 'to': int(values[own].max()), 'users': int(own.sum())}
        frame = metric_frame(ranks[own], cutoffs, users=None if users is None else users[own])
        frames.append(frame.with_columns(**{k: pl.lit(v) for k, v in head.items()}))
    return pl.concat(frames).select('from', 'to', 'users', 'metric', 'value', 'low', 'high')
