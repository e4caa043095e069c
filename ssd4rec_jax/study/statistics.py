"""What two rows of a study differ by, with its uncertainty over users and seeds."""
from typing import NamedTuple

import numpy as np
from scipy import stats

from ssd4rec_jax.rank.report import RESAMPLES, WORTH


class Difference(NamedTuple):
    """mean: of the metric, this row less the other. low, high: its 95% bootstrap interval over users and seeds. p: of a
    paired t-test over users, two-sided; None where no user differs."""

    mean: float
    low: float
    high: float
    p: float | None


def user_values(ranks: np.ndarray, users: np.ndarray, metric: str) -> np.ndarray:
    """float64 [distinct users], each user's value of a metric such as 'NDCG@10': the mean over its held-out items.

    ranks: int [targets] from 1; 0 where the target was left out, which counts as not found. users: int [targets].
    """
    name, _, cutoff = metric.partition('@')
    found = (ranks > 0) & (ranks <= int(cutoff))
    worth = np.zeros(len(ranks))
    worth[found] = WORTH[name](ranks[found])
    _, each = np.unique(users, return_inverse=True)
    return np.bincount(each, worth) / np.bincount(each)


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
    p = float(stats.ttest_1samp(each_user, 0.0).pvalue) if np.any(each_user != each_user[0]) else None
    return Difference(float(each_user.mean()), float(low), float(high), p)
