"""What two rows of a study differ by, with its uncertainty over users and seeds."""
from typing import NamedTuple

import numpy as np
from scipy import stats

from ssd4rec_jax.rank.report import RESAMPLES, WORTH

FIRST = 10  # Records keep the ranks up to here; what is compared needs no more.


class Difference(NamedTuple):
    """mean: of the metric, this row less the other. low, high: its 95% bootstrap interval over users and seeds. p: of a
    paired t-test over users, two-sided; None where no user differs, 0 where all differ by the same."""

    mean: float
    low: float
    high: float
    p: float | None


def user_values(ranks: np.ndarray, users: np.ndarray, metric: str) -> np.ndarray:
    """float64 [distinct users], each user's value of a metric such as 'NDCG@10': the mean over its held-out items.

    ranks: int [targets] from 1; 0 where the target was left out, which counts as not found. users: int [targets].
    """
    _, each = np.unique(users, return_inverse=True)
    return np.bincount(each, _worth(ranks, metric)) / np.bincount(each)


def _worth(ranks: np.ndarray, metric: str) -> np.ndarray:
    name, _, cutoff = metric.partition('@')
    found = (ranks > 0) & (ranks <= int(cutoff))
    worth = np.zeros(len(ranks))
    worth[found] = WORTH[name](ranks[found])
    return worth


def kept_ranks(ranks: dict[str, np.ndarray], users: np.ndarray) -> dict[str, str]:
    """What a cell's record keeps of its ranks by protocol, from which `kept_values` has each user's metrics.

    ranks, users: as in `user_values`. For each protocol 'user:rank' of the held-out items that are among the first
    FIRST; under 'targets' how many held-out items each user has, '' where each has one. A user is their place among the
    distinct ones, from 0.
    """
    _, each, targets = np.unique(users, return_inverse=True, return_counts=True)
    kept = {'targets': '' if len(targets) == len(users) else ' '.join(map(str, targets))}
    for seen, of_targets in ranks.items():
        found = np.flatnonzero((of_targets > 0) & (of_targets <= FIRST))
        kept[seen] = ' '.join(f'{user}:{rank}' for user, rank in zip(each[found], of_targets[found], strict=True))
    return kept


def kept_values(kept: dict[str, str], targets: int, seen: str, metric: str) -> np.ndarray:
    """float64 [distinct users], as `user_values` of a metric at no more than FIRST. targets: how many there are."""
    pairs = np.array([pair.split(':') for pair in kept[seen].split()], int).reshape(-1, 2)
    each = np.array(kept['targets'].split(), int) if kept['targets'] else np.ones(targets, int)
    return np.bincount(pairs[:, 0], _worth(pairs[:, 1], metric), minlength=len(each)) / each


def difference(own: np.ndarray, other: np.ndarray, *, seed: int = 0) -> Difference:
    """own, other: float64 [seeds, users], the same users in the same order, seeds in pairs.

    A row that has no seeds is repeated for each of the other's. The bootstrap draws users and, apart from them, seeds
    with replacement, RESAMPLES times; its interval is that of the percentiles. The t-test takes each user once, with
    the mean over seeds, since the seeds of one user are not independent of each other.
    """
    apart = own - other
    each_user = apart.mean(axis=0)
    # Users with the same differences are exchangeable, so that it is enough to draw how many of each kind there are.
    kinds, counts = np.unique(apart, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    users = rng.multinomial(apart.shape[1], counts / counts.sum(), RESAMPLES)
    seeds = rng.multinomial(len(apart), np.full(len(apart), 1 / len(apart)), RESAMPLES) / len(apart)
    means = np.sum(users @ kinds.T / apart.shape[1] * seeds, axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    p: float | None
    if np.any(each_user != each_user[0]):
        p = float(stats.ttest_1samp(each_user, 0.0).pvalue)
    else:  # Where all users differ by the same, chance has no part in it.
        p = 0.0 if each_user[0] else None
    return Difference(float(each_user.mean()), float(low), float(high), p)
